package io.fletch.sampling;

/**
 * Guided Diffusion (specs/diffusion.md 5.2): the diffusion model proposes a token for every mask,
 * which form a contiguous suffix; an autoregressive guide with the same vocabulary reads them from
 * the left, in chunks, and accepts until it first refuses. Accepted tokens are committed; if there
 * are none, the diffusion model's own first proposal. An accepted end token ends the answer.
 *
 * <p>After each step the guide's cache holds all accepted tokens but the last, which the next call
 * runs because its logits are needed.
 */
final class GuidedRun implements DecodeRun {
  private final CanvasState state;
  private final CachedSource source;
  private final CausalForward guide;
  private final Search.Guided options;
  private final DiffusionModel model;
  private final Steps steps;
  private final Tally tally;
  private final int[] buffer;
  private final float[] logits;
  private DecodeTrace.Step pending;

  GuidedRun(
      CanvasState state,
      CachedSource source,
      CausalForward guide,
      Search.Guided options,
      DiffusionModel model,
      Steps steps,
      Tally tally) {
    this.state = state;
    this.source = source;
    this.guide = guide;
    this.options = options;
    this.model = model;
    this.steps = steps;
    this.tally = tally;
    buffer = new int[state.length()];
    logits = new float[guide.vocabulary()];
    guide.truncate(0);
  }

  @Override
  public boolean finished() {
    return state.masks == 0 && pending == null;
  }

  @Override
  public CanvasState state() {
    return state;
  }

  @Override
  public DecodeTrace.Step step() {
    if (pending != null) {
      DecodeTrace.Step s = pending;
      pending = null;
      return s;
    }
    if (finished()) {
      return null;
    }
    Evaluation e = source.evaluate(state, null);
    int first = state.firstMask();
    System.arraycopy(state.tokens, 0, buffer, 0, first);
    int drafts = 0;
    while (first + drafts < state.length() && e.proposal[first + drafts] >= 0) {
      buffer[first + drafts] = e.proposal[first + drafts];
      drafts++;
    }
    if (drafts == 0) {
      throw new SamplingException("the model proposes the mask token; suppress it");
    }
    long forwards = guide.forwards();
    long rows = guide.rows();
    int accepted = accept(first, drafts);
    tally.guideForwards += guide.forwards() - forwards;
    tally.guideRows += guide.rows() - rows;
    tally.drafted += drafts;
    tally.accepted += accepted;
    Selection selection = new Selection();
    boolean end = false;
    for (int i = 0; i < Math.max(1, accepted) && !end; i++) {
      selection.add(first + i, buffer[first + i]);
      end = model.ends(buffer[first + i]);
    }
    DecodeTrace.Step step = steps.commit(state, selection, e, tally);
    state.apply(selection);
    tally.steps++;
    tally.committed += selection.size();
    guide.truncate(first + selection.size() - 1);
    if (end && state.masks > 0) {
      pending = steps.endFill(state, model.fillId(), tally);
    } else if (state.masksInBlock() == 0) {
      int from = state.from;
      state.advance();
      source.blockDone(from, state.from, e);
    }
    return step;
  }

  private int accept(int first, int drafts) {
    int accepted = 0;
    while (accepted < drafts) {
      int count = Math.min(Math.min(options.chunk(), guide.maxLogitRows()), drafts - accepted);
      int last = first + accepted - 1;
      if (guide.length() < last) {
        guide.append(buffer, guide.length(), last - guide.length(), CausalForward.Logits.NONE);
      }
      guide.append(buffer, last, count, CausalForward.Logits.ALL);
      for (int i = 0; i < count; i++) {
        if (!accepts(i, buffer[first + accepted])) {
          return accepted;
        }
        accepted++;
      }
    }
    return accepted;
  }

  private boolean accepts(int row, int draft) {
    if (draft >= guide.vocabulary()) {
      return false;
    }
    if (options.rule() == Search.GuideRule.DETERMINISTIC) {
      return guide.argmax(row) == draft;
    }
    guide.logits(row, logits);
    float own = logits[draft];
    float best = Float.NEGATIVE_INFINITY;
    int above = 0;
    for (int id = 0; id < logits.length; id++) {
      float l = logits[id];
      best = Math.max(best, l);
      if (l > own || (l == own && id < draft)) {
        above++;
      }
    }
    boolean top = above < options.top();
    return options.rule() == Search.GuideRule.TOP
        ? top
        : top && Math.exp((double) own - best) >= options.share();
  }
}
