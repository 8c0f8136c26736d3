package io.fletch.sampling;

/** A run from the first mask to the last: the chain, the beam or the guided loop. */
interface DecodeRun {
  /** Does one step; null if nothing was left to do. */
  DecodeTrace.Step step();

  /** The best canvas so far. */
  CanvasState state();

  /** Whether nothing is left to do. */
  boolean finished();
}
