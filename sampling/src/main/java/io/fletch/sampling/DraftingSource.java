package io.fletch.sampling;

import java.util.ArrayList;
import java.util.List;
import java.util.function.LongSupplier;

/**
 * FreeDave (specs/diffusion.md 6): evaluates states of the chain before the chain reaches them.
 *
 * <p>Asked for a state x that it does not know, it drafts: c_1 = x, and c_{k+1} is the step that
 * the transfer policy would take from c_k on the proposals of the state before x, which are stale
 * but usually still right. One forward evaluates all c_k, each seeing the kept rows and itself.
 * Asked for a state that equals one of them, it answers without a forward. So the chain is the
 * static chain by construction, whatever the model, and never takes more forwards than it: c_1 is
 * always used. This is the exact acceptance rule ("largest j with c_j = S(c_best)") also for base
 * steps of varying size.
 *
 * <p>Drafts end at the block and before a forward that changes what the cache keeps; a canvas that
 * is evaluated ahead was evaluated on the very rows that the static chain would have seen.
 *
 * <p>With {@code adaptive} the source compares measured times: forwards with drafts are used while
 * their time per answered state is at most that of a plain forward; every 16th state it tries
 * again. The tokens do not depend on it.
 */
final class DraftingSource implements EvaluationSource {
  private static final int TRIAL_PERIOD = 16;

  private record Known(CanvasState state, Region region, Evaluation evaluation) {}

  private final Evaluator evaluator;
  private final CachePolicy policy;
  private final TransferPolicy transfer;
  private final Search.FreeDave options;
  private final CachedSource plain;
  private final Tally tally;
  private final LongSupplier clock;
  private final List<Known> known = new ArrayList<>();
  private double plainTime;
  private double draftTime;
  private double draftAnswers;
  private int plainStates;
  private long lastDraftTime;
  private int lastAnswers;

  DraftingSource(
      Evaluator evaluator,
      CachePolicy policy,
      TransferPolicy transfer,
      Search.FreeDave options,
      Tally tally,
      LongSupplier clock) {
    this.evaluator = evaluator;
    this.policy = policy;
    this.transfer = transfer;
    this.options = options;
    plain = new CachedSource(evaluator, policy, 0);
    this.tally = tally;
    this.clock = clock;
  }

  @Override
  public Evaluation evaluate(CanvasState state, Evaluation previous) {
    plain.prepare(state);
    Region region = policy.plan(state);
    if (!region.refresh()) {
      for (Known k : known) {
        if (k.region().equals(region) && k.state().sameCanvas(state)) {
          tally.accepted++;
          lastAnswers++;
          return k.evaluation();
        }
      }
    }
    learn();
    known.clear();
    List<CanvasState> drafts = new ArrayList<>();
    drafts.add(state);
    if (!region.refresh() && previous != null && worthDrafting()) {
      draft(drafts, region, previous);
    }
    long start = options.adaptive() ? clock.getAsLong() : 0;
    List<Evaluation> results = run(drafts, region);
    if (options.adaptive()) {
      long time = clock.getAsLong() - start;
      if (drafts.size() > 1) {
        lastDraftTime = time;
        lastAnswers = 1;
      } else if (!region.refresh()) {
        plainTime = average(plainTime, time);
      }
    }
    for (int k = 1; k < drafts.size(); k++) {
      known.add(new Known(drafts.get(k), region, results.get(k)));
      tally.drafted++;
    }
    policy.evaluated(state, region);
    return results.getFirst();
  }

  private void draft(List<CanvasState> drafts, Region region, Evaluation previous) {
    CanvasState c = drafts.getFirst();
    int limit = options.depth();
    if (options.maxRows() > 0) {
      limit = Math.min(limit, Math.max(1, options.maxRows() / region.rows()));
    }
    while (drafts.size() < limit) {
      CanvasState next = c.copy();
      Selection selection = ChainRun.pick(transfer, next, previous);
      next.apply(selection);
      if (selection.isEmpty()
          || next.masksInBlock() == 0
          || policy.refreshesWithin(drafts.getFirst(), next.step - drafts.getFirst().step)) {
        return;
      }
      drafts.add(next);
      c = next;
    }
  }

  private List<Evaluation> run(List<CanvasState> drafts, Region region) {
    List<Evaluator.Job> jobs = new ArrayList<>();
    for (int k = 0; k < drafts.size(); k++) {
      CanvasState c = drafts.get(k);
      // The first is in place, the others have slots of their own behind the canvas.
      int offset = k == 0 ? 0 : c.length() + (k - 1) * region.rows() - region.from();
      jobs.add(new Evaluator.Job(c, region, 0, offset));
    }
    if (!options.sequential()) {
      return evaluator.evaluate(jobs);
    }
    List<Evaluation> results = new ArrayList<>();
    for (Evaluator.Job job : jobs) {
      results.addAll(evaluator.evaluate(List.of(job)));
    }
    return results;
  }

  private boolean worthDrafting() {
    if (options.depth() == 1) {
      return false;
    }
    if (!options.adaptive() || draftTime == 0) {
      return true;
    }
    if (plainTime == 0) {
      return false; // one plain forward to compare with
    }
    if (draftTime / draftAnswers <= plainTime) {
      return true;
    }
    return ++plainStates % TRIAL_PERIOD == 0;
  }

  /** Learns what the latest forward with drafts was worth, once no more states can be answered. */
  private void learn() {
    if (lastDraftTime > 0) {
      draftTime = average(draftTime, lastDraftTime);
      draftAnswers = average(draftAnswers, lastAnswers);
      lastDraftTime = 0;
    }
  }

  private static double average(double old, double value) {
    return old == 0 ? value : 0.75 * old + 0.25 * value;
  }

  @Override
  public void blockDone(int from, int to, Evaluation evaluation) {
    plain.blockDone(from, to, evaluation);
  }
}
