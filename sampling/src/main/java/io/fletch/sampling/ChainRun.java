package io.fletch.sampling;

import java.util.List;

/**
 * The static chain (specs/diffusion.md 1): evaluate, test the exits, commit what the transfer
 * policy selects, go on to the next block when one is finished. Plain decoding, FreeDave (a
 * drafting source of evaluations) and NAP (a policy over streams) are this loop.
 */
final class ChainRun implements DecodeRun {
  private final CanvasState state;
  private final EvaluationSource source;
  private final TransferPolicy transfer;
  private final List<ExitPolicy> exits;
  private final Exit.EndFill endFill;
  private final DiffusionModel model;
  private final Steps steps;
  private final Tally tally;
  private Evaluation previous;
  private DecodeTrace.Step pending;

  ChainRun(
      CanvasState state,
      EvaluationSource source,
      TransferPolicy transfer,
      List<ExitPolicy> exits,
      Exit.EndFill endFill,
      DiffusionModel model,
      Steps steps,
      Tally tally) {
    this.state = state;
    this.source = source;
    this.transfer = transfer;
    this.exits = exits;
    this.endFill = endFill;
    this.model = model;
    this.steps = steps;
    this.tally = tally;
  }

  /**
   * What the state's step commits. Steps of the schedule that commit nothing are taken here: the
   * canvas stays, so its evaluation stays (specs/diffusion.md 3.2).
   *
   * @return empty only if a policy that edits has nothing to change
   */
  static Selection pick(TransferPolicy transfer, CanvasState state, Evaluation evaluation) {
    while (true) {
      Selection selection = transfer.select(state, evaluation);
      if (!selection.isEmpty() || state.masksInBlock() == 0) {
        return selection;
      }
      boolean possible = false;
      for (int p = state.from; p < state.to; p++) {
        possible |= state.masked(p) && evaluation.proposal[p] >= 0;
      }
      if (!possible) {
        throw new SamplingException(
            "the model proposes the mask token for every mask in ["
                + state.from
                + ", "
                + state.to
                + "); suppress it");
      }
      state.apply(selection);
    }
  }

  @Override
  public boolean finished() {
    return state.from >= state.length() && pending == null;
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
    Evaluation e = source.evaluate(state, previous);
    int fillFrom = model.bidirectional() ? state.prompt : state.from;
    int fillTo = model.bidirectional() ? state.length() : state.to;
    boolean exit = false;
    for (ExitPolicy x : exits) {
      // Each policy sees every state, also when another one fires.
      exit |= e.coversMasks(state, fillFrom, fillTo) && x.fires(state, e, fillFrom, fillTo);
    }
    DecodeTrace.Step step;
    if (exit) {
      if (tally.exitStep < 0) {
        tally.exitStep = state.step;
      }
      step = fill(e, fillFrom, fillTo);
    } else {
      step = commit(e);
    }
    if (transfer.finished(state)) {
      int from = state.from;
      int to = state.to;
      boolean ended = ends(from, to);
      state.advance();
      source.blockDone(from, state.from, e);
      previous = null;
      if (ended && state.masks > 0) {
        pending = steps.endFill(state, model.fillId(), tally);
      }
    } else {
      previous = e;
    }
    return step;
  }

  private DecodeTrace.Step commit(Evaluation e) {
    boolean clean = state.masksInBlock() == 0;
    Selection selection = pick(transfer, state, e);
    if (clean) {
      state.postSteps++;
      state.settled = selection.isEmpty();
    }
    int before = state.committed;
    DecodeTrace.Step step = steps.commit(state, selection, e, tally);
    state.apply(selection);
    tally.committed += state.committed - before;
    tally.steps++;
    return step;
  }

  private DecodeTrace.Step fill(Evaluation e, int from, int to) {
    Selection selection = new Selection();
    for (int p = from; p < to; p++) {
      if (state.masked(p) && e.argmax[p] != model.maskId()) {
        selection.add(p, e.argmax[p]);
      }
    }
    DecodeTrace.Step step = steps.exit(state, selection, e, tally);
    state.apply(selection);
    state.filled += selection.size();
    tally.filled += selection.size();
    return step;
  }

  private boolean ends(int from, int to) {
    return endFill != null && ends(state, model, endFill, from, to);
  }

  /** Whether a finished block ends the answer. */
  static boolean ends(
      CanvasState state, DiffusionModel model, Exit.EndFill endFill, int from, int to) {
    boolean any = false;
    for (int p = Math.max(from, state.prompt); p < to; p++) {
      boolean end = model.ends(state.tokens[p]);
      if (endFill.wholeBlock() && !end && state.tokens[p] != model.fillId()) {
        return false;
      }
      any |= end;
    }
    return any || endFill.wholeBlock();
  }
}
