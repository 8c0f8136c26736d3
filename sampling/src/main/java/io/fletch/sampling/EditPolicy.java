package io.fletch.sampling;

/**
 * LLaDA2.1 editing (specs/diffusion.md 3.6): in one step, masks of the block above tau (at least
 * the best one), and tokens of the block whose most likely token is another one with probability
 * above the edit threshold. The block is finished when nothing changes any more or some steps after
 * its last mask. Committed tokens may change: no method that relies on them can be combined with
 * it.
 */
final class EditPolicy implements TransferPolicy {
  private final Transfer.Edit options;

  EditPolicy(Transfer.Edit options) {
    this.options = options;
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    int[] ranking = Ranking.best(state, evaluation);
    Selection s = new Selection();
    for (int i = 0; i < ranking.length; i++) {
      if (i == 0 || evaluation.confidence[ranking[i]] > options.tau()) {
        s.add(ranking[i], evaluation.proposal[ranking[i]]);
      }
    }
    for (int p = Math.max(state.from, state.prompt); p < state.to; p++) {
      if (!state.masked(p)
          && evaluation.proposal[p] >= 0
          && evaluation.proposal[p] != state.tokens[p]
          && evaluation.confidence[p] > options.editTau()) {
        s.add(p, evaluation.proposal[p]);
      }
    }
    return s;
  }

  @Override
  public boolean finished(CanvasState state) {
    return state.masksInBlock() == 0
        && (state.settled || state.postSteps >= options.maxPostSteps());
  }

  @Override
  public boolean edits() {
    return true;
  }
}
