package io.fletch.sampling;

/**
 * SchED (specs/diffusion.md 10): exits when the mean gap of the two largest logits over the answer
 * (over its masks by default) is at least a threshold that falls with progress {@code step / (T -
 * 1)}. The released code also wants the most likely tokens of the masks unchanged since the state
 * before, which is the guard here; so it never exits at the first state.
 */
final class SchedExit implements ExitPolicy {
  private final Exit.Sched options;
  private final Progress progress;
  private int[] before;
  private int stable;
  private int blockBefore = -1;

  SchedExit(Exit.Sched options, Progress progress) {
    this.options = options;
    this.progress = progress;
  }

  @Override
  public boolean fires(CanvasState state, Evaluation evaluation, int from, int to) {
    int masks = 0;
    int counted = 0;
    int changed = 0;
    double sum = 0;
    boolean known = before != null && blockBefore == from;
    for (int p = from; p < to; p++) {
      boolean masked = state.masked(p);
      if (masked) {
        masks++;
        if (known && before[p] != evaluation.argmax[p]) {
          changed++;
        }
      }
      if (masked || options.wholeAnswer()) {
        if (evaluation.has(p)) {
          sum += evaluation.gap[p];
          counted++;
        } else if (masked) {
          return false;
        }
      }
    }
    stable = known && changed <= options.maxChange() * masks ? stable + 1 : 0;
    before = evaluation.argmax;
    blockBefore = from;
    if (counted == 0 || (options.guard() && stable <= options.patience())) {
      return false;
    }
    double done = 1 - (double) masks / (to - from);
    int last = progress.total() - 1;
    double p = last == 0 ? 0 : (double) progress.index(state) / last;
    return done >= options.minProgress() && sum / counted >= options.threshold(p);
  }
}
