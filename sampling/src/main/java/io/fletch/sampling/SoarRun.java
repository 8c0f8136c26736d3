package io.fletch.sampling;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * SOAR (specs/diffusion.md 8): a beam over unmasking positions.
 *
 * <p>Each loop evaluates all canvases of the beam in one forward. A canvas with enough masks of the
 * block above tau gives one candidate that commits the most confident of them together; else its
 * candidates commit one token each, at the best, second best, ... position. The best candidates by
 * score (sum, or mean, of committed probabilities) without duplicates make the next beam; where a
 * parallel candidate exists and the leader has committed enough at once, the beam collapses to it.
 * Goes on until no mask is left.
 *
 * <p>Every canvas has a cache of its own and a fork copies it. Under a cache policy canvases wait
 * at the end of a block for the others, so that scores are compared on equally fresh values.
 */
final class SoarRun implements DecodeRun {
  private static final class Beam {
    final CanvasState state;
    final CachePolicy policy;
    int cache;
    final List<DecodeTrace.Step> history;
    Evaluation evaluation;
    boolean parallel;
    int justCommitted;
    Beam parent;

    Beam(CanvasState state, CachePolicy policy, int cache, List<DecodeTrace.Step> history) {
      this.state = state;
      this.policy = policy;
      this.cache = cache;
      this.history = history;
    }
  }

  private final Search.Soar options;
  private final Evaluator evaluator;
  private final boolean wait;
  private final List<ExitPolicy> exits;
  private final Exit.EndFill endFill;
  private final DiffusionModel model;
  private final Steps steps;
  private final Tally tally;
  private final boolean[] reported;
  private List<Beam> beams = new ArrayList<>();

  SoarRun(
      Search.Soar options,
      CanvasState start,
      CachePolicy policy,
      Evaluator evaluator,
      boolean wait,
      List<ExitPolicy> exits,
      Exit.EndFill endFill,
      DiffusionModel model,
      Steps steps,
      Tally tally) {
    this.options = options;
    this.evaluator = evaluator;
    this.wait = wait;
    this.exits = exits;
    this.endFill = endFill;
    this.model = model;
    this.steps = steps;
    this.tally = tally;
    reported = new boolean[start.length()];
    beams.add(new Beam(start, policy, 0, new ArrayList<>()));
  }

  @Override
  public boolean finished() {
    return beams.stream().allMatch(b -> b.state.masks == 0);
  }

  @Override
  public CanvasState state() {
    return beams.getFirst().state;
  }

  /** The steps that led to the best canvas. */
  List<DecodeTrace.Step> history() {
    return beams.getFirst().history;
  }

  /** The best canvas's score: sum, or mean, of its committed probabilities. */
  double score() {
    return score(beams.getFirst());
  }

  /** Canvases in the beam, for tests. */
  List<CanvasState> canvases() {
    return beams.stream().map(b -> b.state).toList();
  }

  private double score(Beam b) {
    return options.mean() ? b.state.score / Math.max(1, b.state.committed) : b.state.score;
  }

  @Override
  public DecodeTrace.Step step() {
    if (finished()) {
      return null;
    }
    List<Beam> active = new ArrayList<>();
    for (Beam b : beams) {
      if (b.state.masks > 0 && b.state.masksInBlock() > 0) {
        active.add(b);
      }
    }
    evaluate(active);
    Beam best = beams.getFirst();
    boolean exit = best.state.masks > 0 && active.contains(best) && exits(best);
    if (exit) {
      if (tally.exitStep < 0) {
        tally.exitStep = best.state.step;
      }
      beams = new ArrayList<>(List.of(best));
    } else {
      choose(active);
    }
    closeBlocks();
    if (finished()) {
      beams = new ArrayList<>(beams.subList(0, 1)); // the best one is the answer
    }
    return report();
  }

  private void evaluate(List<Beam> active) {
    List<Evaluator.Job> jobs = new ArrayList<>();
    for (Beam b : active) {
      Region before = b.policy.before(b.state);
      if (before != null) {
        evaluator.store(b.state, before, b.cache);
        b.policy.stored(before);
      }
      jobs.add(new Evaluator.Job(b.state, b.policy.plan(b.state), b.cache, 0));
    }
    List<Evaluation> results = evaluator.evaluate(jobs);
    for (int i = 0; i < active.size(); i++) {
      Beam b = active.get(i);
      b.evaluation = results.get(i);
      b.policy.evaluated(b.state, jobs.get(i).region());
    }
  }

  private boolean exits(Beam best) {
    CanvasState s = best.state;
    int from = model.bidirectional() ? s.prompt : s.from;
    int to = model.bidirectional() ? s.length() : s.to;
    boolean fires = false;
    for (ExitPolicy x : exits) {
      fires |= best.evaluation.coversMasks(s, from, to) && x.fires(s, best.evaluation, from, to);
    }
    if (fires) {
      Selection selection = new Selection();
      for (int p = from; p < to; p++) {
        if (s.masked(p) && best.evaluation.argmax[p] != model.maskId()) {
          selection.add(p, best.evaluation.argmax[p]);
        }
      }
      best.history.add(steps.exit(s, selection, best.evaluation, tally));
      s.apply(selection);
      s.filled += selection.size();
    }
    return fires;
  }

  private void choose(List<Beam> active) {
    List<Beam> pool = new ArrayList<>();
    for (Beam b : beams) {
      if (!active.contains(b)) {
        b.parallel = false;
        b.justCommitted = 0;
        b.parent = b;
        pool.add(b);
        continue;
      }
      candidates(b, pool);
    }
    // Stable: equal scores keep the order of beams and of positions.
    pool.sort((a, b) -> Double.compare(score(b), score(a)));
    List<Beam> unique = new ArrayList<>();
    for (Beam c : pool) {
      if (unique.stream().noneMatch(u -> u.state.sameCanvas(c.state))) {
        unique.add(c);
      }
    }
    boolean parallel = pool.stream().anyMatch(c -> c.parallel);
    int keep =
        parallel && unique.getFirst().justCommitted >= options.collapse() ? 1 : options.beams();
    List<Beam> next = unique.subList(0, Math.min(keep, unique.size()));
    assignCaches(next);
    beams = new ArrayList<>(next);
    tally.steps++;
  }

  private void candidates(Beam b, List<Beam> pool) {
    int[] ranking = Ranking.best(b.state, b.evaluation);
    if (ranking.length == 0) {
      throw new SamplingException("the model proposes the mask token everywhere; suppress it");
    }
    int sure = 0;
    while (sure < ranking.length && b.evaluation.confidence[ranking[sure]] > options.tau()) {
      sure++;
    }
    if (sure >= options.minParallel()) {
      Selection s = Ranking.take(ranking, Math.min(sure, options.maxParallel()), b.evaluation);
      pool.add(child(b, s, true));
      return;
    }
    for (int r = 0; r < Math.min(options.beams(), ranking.length); r++) {
      Selection s = new Selection();
      s.add(ranking[r], b.evaluation.proposal[ranking[r]]);
      pool.add(child(b, s, false));
    }
  }

  private Beam child(Beam parent, Selection selection, boolean parallel) {
    Beam c =
        new Beam(parent.state.copy(), parent.policy.copy(), -1, new ArrayList<>(parent.history));
    c.evaluation = parent.evaluation;
    c.parent = parent;
    c.parallel = parallel;
    c.justCommitted = selection.size();
    c.history.add(steps.commit(c.state, selection, parent.evaluation, tally));
    for (int i = 0; i < selection.size(); i++) {
      c.state.score += Math.max(0, parent.evaluation.confidence[selection.position(i)]);
    }
    c.state.apply(selection);
    return c;
  }

  /** The first child of a canvas takes over its cache; others get a copy in a free one. */
  private void assignCaches(List<Beam> next) {
    Set<Integer> taken = new HashSet<>();
    List<Beam> homeless = new ArrayList<>();
    for (Beam c : next) {
      if (taken.add(c.parent.cache)) {
        c.cache = c.parent.cache;
      } else {
        homeless.add(c);
      }
    }
    int free = 0;
    for (Beam c : homeless) {
      while (!taken.add(free)) {
        free++;
      }
      c.cache = free;
      if (wait) {
        evaluator.fork(c.parent.cache, free, c.state.length());
      }
    }
    for (Beam c : next) {
      c.parent = null;
    }
  }

  private void closeBlocks() {
    boolean allDone = beams.stream().allMatch(b -> b.state.masksInBlock() == 0);
    for (Beam b : beams) {
      CanvasState s = b.state;
      if (s.masks == 0 || s.masksInBlock() > 0 || (wait && !allDone)) {
        continue;
      }
      int from = s.from;
      int to = s.to;
      boolean ended = endFill != null && ChainRun.ends(s, model, endFill, from, to);
      s.advance();
      Region frozen = b.policy.blockDone(from, s.from, b.evaluation);
      if (frozen != null && b.evaluation.slotOffset != 0) {
        throw new AssertionError("a beam's rows are always in place");
      }
      if (ended && s.masks > 0) {
        b.history.add(steps.endFill(s, model.fillId(), tally));
      }
    }
  }

  private float confidence(int offset) {
    for (DecodeTrace.Step s : history()) {
      int i = s.offsets().indexOf(offset);
      if (i >= 0) {
        return s.confidences().get(i);
      }
    }
    return 0;
  }

  /** Tokens that all canvases have come to agree on: they are final. */
  private DecodeTrace.Step report() {
    CanvasState best = state();
    List<Integer> offsets = new ArrayList<>();
    List<Integer> tokens = new ArrayList<>();
    List<Float> confidences = new ArrayList<>();
    for (int p = best.prompt; p < best.length(); p++) {
      int token = best.tokens[p];
      int position = p;
      if (!reported[p]
          && !best.masked(p)
          && beams.stream().allMatch(b -> b.state.tokens[position] == token)) {
        reported[p] = true;
        offsets.add(p - best.prompt);
        tokens.add(token);
        confidences.add(confidence(p - best.prompt));
      }
    }
    tally.filled = best.filled;
    tally.committed = best.committed - best.filled;
    return new DecodeTrace.Step(
        history().getLast().kind(),
        tally.forwards,
        tally.rows,
        best.step,
        List.copyOf(offsets),
        List.copyOf(tokens),
        List.copyOf(confidences),
        history().getLast().leftmost());
  }
}
