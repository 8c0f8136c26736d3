package io.fletch.sampling;

/**
 * Prefix and dual cache of Fast-dLLM (specs/diffusion.md 4): the first forward of a block runs
 * every row and its logits serve the block's first step; later forwards of the block run the rows
 * from the block on (prefix) or the block's rows only, with the rows behind it stale (dual).
 *
 * <p>Where row i predicts position i+1, the window begins one row earlier instead of committing the
 * block's first position from the full forward as the reference does, so that steps keep their size
 * (specs/diffusion.md 2.4 allows either).
 */
final class BlockRefreshCache implements CachePolicy {
  private final int lead;
  private final boolean dual;
  private int refreshed = -1;

  BlockRefreshCache(int lead, boolean dual) {
    this.lead = lead;
    this.dual = dual;
  }

  @Override
  public Region plan(CanvasState s) {
    if (refreshed != s.from) {
      return Region.full(s, true);
    }
    int from = Math.max(0, s.from - lead);
    return dual
        ? new Region(from, s.to, from, s.to, s.length(), false)
        : new Region(from, s.length(), from, 0, 0, false);
  }

  @Override
  public void evaluated(CanvasState s, Region region) {
    if (region.refresh()) {
      refreshed = s.from;
    }
  }

  @Override
  public CachePolicy copy() {
    BlockRefreshCache c = new BlockRefreshCache(lead, dual);
    c.refreshed = refreshed;
    return c;
  }
}
