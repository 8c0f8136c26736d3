package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Session;

/** Teacher-forced scores of the ops that decide about units (specs autoregressive P6). Stateless. */
public final class UnitScores {
  private UnitScores() {}

  /**
   * Runs tokens with the policies of the session's model, as if all had been generated, and tells
   * what each deciding op of its graph saw: {@code [token][decision]}, not a number where it had
   * nothing to decide.
   *
   * @throws FletchException if the session is not one of an autoregressive model
   */
  public static float[][] of(Session session, int[] ids) {
    if (!(session instanceof AutoregressiveSession s)) {
      throw new FletchException("units decide in autoregressive models only");
    }
    return s.unitScores(ids);
  }
}
