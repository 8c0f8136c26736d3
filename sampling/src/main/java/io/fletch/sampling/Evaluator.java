package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Runs canvases: turns a state and a region into windows, asks for logits of the positions that the
 * schedule will look at and of no others, and reduces them to an {@link Evaluation}. Counts. One
 * per run, used by one thread.
 */
final class Evaluator {
  /**
   * One canvas to run.
   *
   * @param state the canvas
   * @param region its rows
   * @param cache which cache (of the conditional half)
   * @param slotOffset how far behind their positions its rows are written
   */
  record Job(CanvasState state, Region region, int cache, int slotOffset) {}

  /**
   * Positions to look at besides the masks of the active block.
   *
   * @param everyMask masks behind the block too
   * @param edits committed positions of the block too
   * @param from every position from here
   * @param to to here, masked or not
   */
  record Scope(boolean everyMask, boolean edits, int from, int to) {
    boolean wants(CanvasState s, int position) {
      boolean inBlock = position >= s.from && position < s.to;
      return (s.masked(position) && (everyMask || inBlock))
          || (edits && inBlock)
          || (position >= from && position < to);
    }
  }

  private final CanvasForward forward;
  private final DiffusionModel model;
  private final boolean guided;
  private final Proposer proposer;
  private final Scope scope;
  private final Tally tally;

  Evaluator(
      CanvasForward forward,
      DiffusionModel model,
      DiffusionOptions options,
      Proposer proposer,
      Scope scope,
      Tally tally) {
    this.forward = forward;
    this.model = model;
    guided = options.guidance() > 0;
    this.proposer = proposer;
    this.scope = scope;
    this.tally = tally;
  }

  /** Runs the canvases in one forward. */
  List<Evaluation> evaluate(List<Job> jobs) {
    List<CanvasWindow> windows = new ArrayList<>();
    List<int[]> headsOf = new ArrayList<>();
    for (Job job : jobs) {
      int[] heads = heads(job.state(), job.region());
      headsOf.add(heads);
      add(windows, job, heads);
    }
    run(windows);
    List<Evaluation> results = new ArrayList<>();
    for (int j = 0; j < jobs.size(); j++) {
      Job job = jobs.get(j);
      CanvasState s = job.state();
      Evaluation e = new Evaluation(s.length(), job.cache(), job.slotOffset());
      int[] heads = headsOf.get(j);
      int window = guided ? 2 * j : j;
      int h = 0;
      for (int p = s.prompt; p < s.length(); p++) {
        int row = row(p) - job.region().from();
        if (row < 0 || row >= job.region().rows() || !scope.wants(s, p)) {
          continue;
        }
        while (heads[h] != row) {
          h++;
        }
        proposer.propose(window, h, s, p, e);
      }
      results.add(e);
    }
    return results;
  }

  /** Runs clean rows for their keys and values only. */
  void store(CanvasState state, Region region, int cache) {
    List<CanvasWindow> windows = new ArrayList<>();
    add(windows, new Job(state, region, cache, 0), new int[0]);
    run(windows);
  }

  /** Moves rows of an evaluated canvas into their places, in both halves. */
  void settle(Region region, Evaluation evaluation) {
    if (evaluation.slotOffset != 0) {
      for (int half = 0; half < (guided ? 2 : 1); half++) {
        int cache = half(evaluation.cache, half);
        forward.copy(
            cache, region.from() + evaluation.slotOffset, cache, region.from(), region.rows());
      }
    }
  }

  /** Copies the first {@code count} slots of a cache into another, in both halves. */
  void fork(int fromCache, int toCache, int count) {
    for (int half = 0; half < (guided ? 2 : 1); half++) {
      forward.copy(half(fromCache, half), 0, half(toCache, half), 0, count);
    }
  }

  private int half(int cache, int half) {
    return guided ? 2 * cache + half : cache;
  }

  private int row(int position) {
    return Math.max(0, position - model.lead());
  }

  private int[] heads(CanvasState s, Region region) {
    int[] rows = new int[region.rows()];
    int n = 0;
    int last = -1;
    for (int p = s.prompt; p < s.length(); p++) {
      int row = row(p) - region.from();
      if (row >= 0 && row < region.rows() && row != last && scope.wants(s, p)) {
        rows[n++] = row;
        last = row;
      }
    }
    return Arrays.copyOf(rows, n);
  }

  private void add(List<CanvasWindow> windows, Job job, int[] heads) {
    Region r = job.region();
    for (int half = 0; half < (guided ? 2 : 1); half++) {
      int[] tokens = Arrays.copyOfRange(job.state().tokens, r.from(), r.to());
      if (half == 1) {
        for (int i = r.from(); i < Math.min(r.to(), job.state().prompt); i++) {
          tokens[i - r.from()] = model.maskId();
        }
      }
      windows.add(
          new CanvasWindow(
              half(job.cache(), half),
              r.from(),
              r.from() + job.slotOffset(),
              r.prefix(),
              r.suffixFrom(),
              r.suffixTo(),
              model.bidirectional()
                  ? CanvasWindow.Own.BIDIRECTIONAL
                  : CanvasWindow.Own.BLOCK_CAUSAL,
              model.block(),
              tokens,
              heads));
    }
  }

  private void run(List<CanvasWindow> windows) {
    forward.run(windows);
    tally.forwards++;
    for (CanvasWindow w : windows) {
      tally.rows += w.rows();
      tally.headRows += w.heads().length;
    }
  }
}
