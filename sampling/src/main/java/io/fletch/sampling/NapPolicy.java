package io.fletch.sampling;

/**
 * NAP (specs/diffusion.md 11): parallel-forced decoding of several reasoning streams and a summary.
 *
 * <p>A step has the budget {@code ceil(masks left / steps left)}, which is the even schedule with
 * its remainder at the front. It is split over the open streams that still have masks as evenly as
 * possible, the remainder going round from the lowest stream, further by one each step; what a
 * stream cannot use goes to the others. Inside a stream the most confident masks are committed. The
 * summary opens when at most a given share of the paths' positions is masked, and in the last step
 * in any case.
 */
final class NapPolicy implements TransferPolicy {
  private final int[] starts;
  private final int[] ends;
  private final int paths;
  private final int steps;
  private final float openShare;

  NapPolicy(Search.Nap options, int prompt) {
    paths = options.pathHeaders().size();
    int streams = paths + (options.summaryLength() > 0 ? 1 : 0);
    starts = new int[streams];
    ends = new int[streams];
    int at = prompt;
    for (int k = 0; k < paths; k++) {
      at += options.pathHeaders().get(k).size();
      starts[k] = at;
      at += options.pathLength();
      ends[k] = at;
    }
    if (streams > paths) {
      starts[paths] = at + options.summaryHeader().size();
      ends[paths] = starts[paths] + options.summaryLength();
    }
    openShare = options.openShare();
    int masks = paths * options.pathLength() + options.summaryLength();
    steps = options.steps() == 0 ? masks : options.steps();
  }

  /** Header tokens, and masks for paths and summary. */
  static int[] template(Search.Nap options, int mask) {
    int[] t = new int[options.length()];
    int at = 0;
    for (var header : options.pathHeaders()) {
      for (int id : header) {
        t[at++] = id;
      }
      for (int i = 0; i < options.pathLength(); i++) {
        t[at++] = mask;
      }
    }
    for (int id : options.summaryHeader()) {
      t[at++] = id;
    }
    while (at < t.length) {
      t[at++] = mask;
    }
    return t;
  }

  /** Streams, the summary last if it has one. */
  int streams() {
    return starts.length;
  }

  int start(int stream) {
    return starts[stream];
  }

  int end(int stream) {
    return ends[stream];
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    int left = Math.max(1, steps - state.step);
    int budget = (state.masks + left - 1) / left;
    int[] masks = new int[starts.length];
    int pathMasks = 0;
    int pathPositions = 0;
    for (int k = 0; k < starts.length; k++) {
      masks[k] = state.count(starts[k], ends[k]);
      if (k < paths) {
        pathMasks += masks[k];
        pathPositions += ends[k] - starts[k];
      }
    }
    boolean open = left == 1 || pathMasks <= openShare * pathPositions;
    if (starts.length > paths && !open) {
      masks[paths] = 0;
    }
    int[] quota = split(budget, masks, state.step);
    Selection selection = new Selection();
    for (int k = 0; k < starts.length; k++) {
      int[] ranking = Ranking.best(state, evaluation, starts[k], ends[k], evaluation.score);
      for (int i = 0; i < Math.min(quota[k], ranking.length); i++) {
        selection.add(ranking[i], evaluation.proposal[ranking[i]]);
      }
    }
    return selection;
  }

  /** Splits a budget over streams, none above its masks; {@code turn} rotates the remainder. */
  static int[] split(int budget, int[] masks, int turn) {
    int[] quota = new int[masks.length];
    int left = budget;
    while (left > 0) {
      int unfinished = 0;
      for (int k = 0; k < masks.length; k++) {
        if (quota[k] < masks[k]) {
          unfinished++;
        }
      }
      if (unfinished == 0) {
        break;
      }
      int each = left / unfinished;
      if (each == 0) {
        for (int i = 0; i < masks.length && left > 0; i++) {
          int k = (i + turn) % masks.length;
          if (quota[k] < masks[k]) {
            quota[k]++;
            left--;
          }
        }
        break;
      }
      for (int k = 0; k < masks.length; k++) {
        int n = Math.min(each, masks[k] - quota[k]);
        quota[k] += n;
        left -= n;
      }
    }
    return quota;
  }
}
