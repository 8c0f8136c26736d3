package io.fletch.sampling;

/**
 * Prophet (specs/diffusion.md 7): exits when the mean gap of the two largest logits over the region
 * is at least 7.5, 5 or 2.5, for progress {@code (step + 1) / T} below 0.33, below 0.67, and from
 * there on. The gap is taken from logits without temperature. An empty region never exits.
 * Committed positions count where the forward still runs them (a cache may have frozen them).
 */
final class ProphetExit implements ExitPolicy {
  private final Exit.Prophet options;
  private final Progress progress;
  private final int regionFrom;
  private final int regionTo;

  ProphetExit(Exit.Prophet options, Progress progress, int regionFrom, int regionTo) {
    this.options = options;
    this.progress = progress;
    this.regionFrom = regionFrom;
    this.regionTo = regionTo;
  }

  @Override
  public boolean fires(CanvasState state, Evaluation evaluation, int from, int to) {
    int start = Math.max(regionFrom, from);
    int end = Math.min(regionTo, to);
    if (start >= end) {
      return false;
    }
    double sum = 0;
    int counted = 0;
    for (int p = start; p < end; p++) {
      if (evaluation.has(p)) {
        sum += evaluation.gap[p];
        counted++;
      } else if (state.masked(p)) {
        return false;
      }
    }
    if (counted == 0) {
      return false;
    }
    double p = (progress.index(state) + 1.0) / progress.total();
    double tau = p < 0.33 ? options.early() : p < 0.67 ? options.middle() : options.late();
    return sum / counted >= tau;
  }
}
