package io.fletch.sampling;

/**
 * How far a run is: the step of a static schedule, else the tokens committed. A function of the
 * state alone (specs/diffusion.md 12, rule 2).
 *
 * @param total steps, or tokens, in all
 * @param bySteps which of them
 */
record Progress(int total, boolean bySteps) {
  static Progress of(DiffusionOptions options, int masks) {
    int blocks = options.answerLength() / options.blockLength();
    return switch (options.transfer()) {
      case Transfer.Schedule s
          when options.search() instanceof Search.None
              || options.search() instanceof Search.FreeDave ->
          new Progress(options.stepsPerBlock(s.steps()) * blocks, true);
      case Transfer.Dream d -> new Progress(options.stepsPerBlock(d.steps()) * blocks, true);
      default -> new Progress(masks, false);
    };
  }

  int index(CanvasState state) {
    return Math.min(total - 1, bySteps ? state.step : state.committed);
  }
}
