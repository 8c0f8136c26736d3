package io.fletch.runtime.calibrate;

import io.fletch.Session;
import io.fletch.UnitPolicy;
import io.fletch.runtime.engine.HiddenStates;
import io.fletch.runtime.engine.UnitScores;
import java.util.List;
import java.util.Optional;

/** Runs of given tokens, in caches of their own, for those who calibrate or compare. Stateless. */
public final class ForcedRuns {
  /**
   * What a model says of tokens.
   *
   * @param logits {@code [token][vocabulary]}
   * @param hidden what the output matrix was applied to, {@code [token][width]}; rows of length 0
   *     where the model does not keep it
   */
  public record States(float[][] logits, float[][] hidden) {}

  private ForcedRuns() {}

  /**
   * Logits and hidden states of tokens.
   *
   * @throws io.fletch.FletchException if the session is not one of an autoregressive model
   */
  public static States states(Session session, int[] ids) {
    HiddenStates.Run run = HiddenStates.of(session, ids);
    return new States(run.logits(), run.hidden());
  }

  /**
   * Logits of tokens while units may rest.
   *
   * @param start index of the first token that counts as generated
   * @param policies in place of those of the session's model, as an answer may have them
   * @throws io.fletch.FletchException if the session is not one of an autoregressive model, or the
   *     model was not opened for the policies
   */
  public static float[][] logits(
      Session session, int[] ids, int start, Optional<List<UnitPolicy>> policies) {
    return UnitScores.of(session, ids, start, policies).logits();
  }
}
