package io.fletch.runtime.calibrate;

import io.fletch.Session;
import io.fletch.UnitPolicy;
import io.fletch.runtime.engine.UnitScores;
import io.fletch.sampling.RowStatistics;
import io.fletch.sampling.UnitUse;
import java.util.List;
import java.util.Optional;

/**
 * What resting units cost on given tokens: likelihood, and how often the likeliest next token stays
 * the same. Tokens of prompts do not count. Stateless.
 */
public final class UnitEvaluation {
  /**
   * A comparison.
   *
   * @param tokens predicted
   * @param denseNats mean of -ln p by all units
   * @param nats the same under the policies
   * @param agreement share of tokens with the same likeliest token
   * @param units what became of the units
   */
  public record Result(
      long tokens, double denseNats, double nats, double agreement, UnitUse units) {
    /** Perplexity by all units. */
    public double densePerplexity() {
      return Math.exp(denseNats);
    }

    /** Perplexity under the policies. */
    public double perplexity() {
      return Math.exp(nats);
    }
  }

  private UnitEvaluation() {}

  /**
   * Compares.
   *
   * @param dense a session of the model without policies
   * @param resting one of the same model with them
   * @param done hears of every text
   */
  public static Result of(Session dense, Session resting, List<ForcedText> texts, Runnable done) {
    return of(dense, resting, texts, Optional.empty(), done);
  }

  /**
   * Compares.
   *
   * @param dense a session of the model without policies
   * @param resting one of the same model with them
   * @param policies in place of those of the latter
   * @param done hears of every text
   */
  public static Result of(
      Session dense,
      Session resting,
      List<ForcedText> texts,
      Optional<List<UnitPolicy>> policies,
      Runnable done) {
    long tokens = 0;
    long agreeing = 0;
    double denseNats = 0;
    double nats = 0;
    UnitUse units = UnitUse.NONE;
    RowStatistics of = new RowStatistics();
    RowStatistics under = new RowStatistics();
    for (ForcedText text : texts) {
      int[] ids = text.ids();
      float[][] expected = dense.logits(ids);
      UnitScores.Run run = UnitScores.of(resting, ids, text.start(), policies);
      units = units.plus(run.units());
      for (int i = Math.max(1, text.start()); i < ids.length; i++) {
        float[] now = run.logits()[i - 1];
        of.set(expected[i - 1], 0, expected[i - 1].length);
        under.set(now, 0, now.length);
        denseNats -= expected[i - 1][ids[i]] - of.logSumExp;
        nats -= now[ids[i]] - under.logSumExp;
        agreeing += of.argmax == under.argmax ? 1 : 0;
        tokens++;
      }
      done.run();
    }
    double n = Math.max(1, tokens);
    return new Result(tokens, denseNats / n, nats / n, agreeing / n, units);
  }
}
