package io.fletch.sampling;

/**
 * Chooses what a step commits: a pure function of state and evaluation, ties broken by the lowest
 * position (specs/diffusion.md 1). Stateless; the options are in {@link Transfer}.
 */
interface TransferPolicy {
  /** What to commit; empty for a step of the schedule that commits nothing. */
  Selection select(CanvasState state, Evaluation evaluation);

  /** Whether the active block is finished. */
  default boolean finished(CanvasState state) {
    return state.masksInBlock() == 0;
  }

  /** Whether committed positions of the active block must be evaluated too. */
  default boolean edits() {
    return false;
  }

  /** The policy of these options. */
  static TransferPolicy of(DiffusionOptions options) {
    return switch (options.transfer()) {
      case Transfer.Schedule s ->
          new SchedulePolicy(options.stepsPerBlock(s.steps()), s.order(), options.seed());
      case Transfer.Dream d -> new DreamPolicy(options.stepsPerBlock(d.steps()), d, options.seed());
      case Transfer.Threshold t -> new ThresholdPolicy(t.tau());
      case Transfer.Factor f -> new FactorPolicy(f.factor());
      case Transfer.LocalLeap l -> new LocalLeapPolicy(l);
      case Transfer.Dynamic d -> new DynamicPolicy(options.stepsPerBlock(d.steps()), d.tau());
      case Transfer.Edit e -> new EditPolicy(e);
    };
  }
}
