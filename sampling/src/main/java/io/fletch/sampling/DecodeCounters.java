package io.fletch.sampling;

/**
 * What a run cost.
 *
 * @param forwards passes over the diffusion model's weights (NFE)
 * @param rows rows run
 * @param headRows rows whose logits were computed
 * @param bytesRead bytes of weights and cache read, -1 if the model does not say
 * @param steps steps that committed something
 * @param committed tokens committed to masks by steps (not by an exit)
 * @param filled tokens filled in by an exit
 * @param drafted canvases evaluated ahead of their step, or tokens proposed to a guide, or by the
 *     small model of token routing
 * @param accepted those of them that were used
 * @param exitStep step before which a run exited early, -1 if it did not
 * @param guideForwards passes over the weights of the guide or of the small model
 * @param guideRows rows run by it
 * @param weights what was used of the weights, small model included; {@link WeightUse#NONE} for
 *     diffusion models, whose passes are all alike
 * @param units what techniques that let units rest did; {@link UnitUse#NONE} without one
 */
public record DecodeCounters(
    long forwards,
    long rows,
    long headRows,
    long bytesRead,
    long steps,
    long committed,
    long filled,
    long drafted,
    long accepted,
    int exitStep,
    long guideForwards,
    long guideRows,
    WeightUse weights,
    UnitUse units) {
  /** Counters without the use of weights. */
  public DecodeCounters(
      long forwards,
      long rows,
      long headRows,
      long bytesRead,
      long steps,
      long committed,
      long filled,
      long drafted,
      long accepted,
      int exitStep,
      long guideForwards,
      long guideRows) {
    this(
        forwards,
        rows,
        headRows,
        bytesRead,
        steps,
        committed,
        filled,
        drafted,
        accepted,
        exitStep,
        guideForwards,
        guideRows,
        WeightUse.NONE,
        UnitUse.NONE);
  }

  /** Tokens of the answer per forward (TPF), the measure that does not depend on hardware. */
  public double tokensPerForward() {
    return forwards == 0 ? 0 : (double) (committed + filled) / forwards;
  }
}
