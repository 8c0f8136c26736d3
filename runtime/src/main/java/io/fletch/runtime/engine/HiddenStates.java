package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Session;

/** Logits of given tokens with the states that they were made of. Stateless. */
public final class HiddenStates {
  /**
   * A run.
   *
   * @param logits {@code [token][vocabulary]}
   * @param hidden what the output matrix was applied to, {@code [token][width]}; rows of length 0
   *     where the model does not keep it
   */
  public record Run(float[][] logits, float[][] hidden) {}

  private HiddenStates() {}

  /**
   * Runs tokens in a cache of their own.
   *
   * @throws FletchException if the session is not one of an autoregressive model
   */
  public static Run of(Session session, int[] ids) {
    if (!(session instanceof AutoregressiveSession s)) {
      throw new FletchException("hidden states are those of autoregressive models");
    }
    return s.hiddenStates(ids);
  }
}
