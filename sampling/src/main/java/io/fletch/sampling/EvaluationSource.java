package io.fletch.sampling;

/** Where the chain gets the evaluation of its next state from. Used by one thread. */
interface EvaluationSource {
  /**
   * The evaluation of a state whose block has masks.
   *
   * @param previous the evaluation that the state was made from; null at the start of a block
   */
  Evaluation evaluate(CanvasState state, Evaluation previous);

  /** The block [from, to) has been finished by a step on this evaluation. */
  void blockDone(int from, int to, Evaluation evaluation);
}
