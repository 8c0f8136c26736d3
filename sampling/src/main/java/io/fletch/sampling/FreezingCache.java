package io.fletch.sampling;

/**
 * FreeCache (specs/diffusion.md 5.1): the first forward runs every row and freezes the prompt;
 * later forwards run the rows behind the frozen ones. A block is frozen with the keys and values of
 * the forward whose step committed its last token, when those rows still held masks, or, with a
 * delay, of the forward after it. Every {@code refresh} steps (of the static chain, so that
 * drafting does not move it) all rows run and are written anew; with 1 that is no cache.
 */
final class FreezingCache implements CachePolicy {
  private final int lead;
  private final Caching.FreeCache options;
  private final int prompt;
  private boolean started;
  private int clean;
  private int pending;

  FreezingCache(int lead, int prompt, Caching.FreeCache options) {
    this.lead = lead;
    this.prompt = prompt;
    this.options = options;
  }

  @Override
  public Region plan(CanvasState s) {
    if (!started || (options.refresh() > 0 && s.step % options.refresh() == 0)) {
      return Region.full(s, true);
    }
    return new Region(clean, s.length(), clean, 0, 0, false);
  }

  @Override
  public boolean refreshesWithin(CanvasState s, int ahead) {
    if (!started || pending > clean) {
      return true;
    }
    int r = options.refresh();
    return r > 0 && (s.step + ahead) / r > s.step / r;
  }

  @Override
  public void evaluated(CanvasState s, Region region) {
    if (!started) {
      started = true;
      clean = Math.max(0, prompt - lead);
    }
    clean = Math.max(clean, pending);
  }

  @Override
  public Region blockDone(int from, int to, Evaluation evaluation) {
    int end = to - lead;
    if (end <= clean) {
      return null;
    }
    if (options.delay() > 0) {
      pending = end;
      return null;
    }
    Region frozen = new Region(clean, end, 0, 0, 0, true);
    clean = end;
    pending = end;
    return frozen;
  }

  @Override
  public CachePolicy copy() {
    FreezingCache c = new FreezingCache(lead, prompt, options);
    c.started = started;
    c.clean = clean;
    c.pending = pending;
    return c;
  }
}
