package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Session;
import io.fletch.UnitPolicy;
import io.fletch.sampling.UnitUse;
import java.util.List;
import java.util.Optional;

/** Teacher-forced runs of models whose units may rest (specs autoregressive P6). Stateless. */
public final class UnitScores {
  /**
   * A run over given tokens.
   *
   * @param logits {@code [token][vocabulary]}
   * @param scores what each deciding op of the graph saw, {@code [token][decision]}; not a number
   *     where it had nothing to decide
   * @param units what became of the units
   */
  public record Run(float[][] logits, float[][] scores, UnitUse units) {}

  private UnitScores() {}

  /**
   * Runs tokens with the policies of the session's model.
   *
   * @param start index of the first token that counts as generated
   * @throws FletchException if the session is not one of an autoregressive model
   */
  public static Run of(Session session, int[] ids, int start) {
    return of(session, ids, start, Optional.empty());
  }

  /**
   * Runs tokens with other policies.
   *
   * @param start index of the first token that counts as generated
   * @param policies in place of those of the session's model, as an answer may have them
   * @throws FletchException if the session is not one of an autoregressive model, or the model was
   *     not opened for the policies
   */
  public static Run of(Session session, int[] ids, int start, Optional<List<UnitPolicy>> policies) {
    if (!(session instanceof AutoregressiveSession s)) {
      throw new FletchException("units rest in autoregressive models only");
    }
    return s.unitScores(ids, start, policies);
  }
}
