package io.fletch;

/**
 * Decides for single tokens which attention and feed-forward units of a model run. Given when a
 * model is opened ({@link ModelOptions#withUnits}), because the decisions are part of its graph; an
 * answer may change thresholds or ask for all units ({@link GenerationOptions#withUnits}).
 *
 * <p>Keys and values of every token are stored whatever is decided, so the cache is complete. It is
 * not the cache that the dense model would have: an answer with other policies runs the tokens
 * again that were computed under these.
 */
public sealed interface UnitPolicy permits FfnSkip, UnitDrop, UnitForecasts {}
