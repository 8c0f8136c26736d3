package io.fletch.tools;

import io.fletch.GenerationOptions;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.runtime.calibrate.ForcedRuns;
import io.fletch.sampling.RowStatistics;
import io.fletch.sampling.TokenRouter;
import java.util.Arrays;

/**
 * Perplexity of the answers that a question set gives, under a technique, teacher-forced: how
 * likely each of their tokens is after all before it (the end of the turn not counted). With token
 * routing a token is judged by the model that would have been asked for it, the router seeing the
 * small model's likeliest token. Used by one thread.
 */
final class ReferencePerplexity {
  private final RowStatistics statistics = new RowStatistics();
  private double nats;
  private long tokens;

  /** Whether anything was added: a router that needs hidden states cannot be measured. */
  boolean isMeasured() {
    return tokens > 0;
  }

  double value() {
    return Math.exp(nats / tokens);
  }

  /**
   * Adds an answer.
   *
   * @param session of the technique's model
   * @param small of the small model where the technique routes tokens; else null
   * @param options of the technique
   * @param prompt before the answer, at least one token
   */
  void add(Session session, Session small, GenerationOptions options, int[] prompt, int[] answer) {
    int[] ids = Arrays.copyOf(prompt, prompt.length + answer.length);
    System.arraycopy(answer, 0, ids, prompt.length, answer.length);
    TokenRouter router = options.routing().map(Routing::router).orElse(null);
    if (answer.length == 0
        || ids.length > session.model().info().contextLength()
        || (router != null && router.hiddenWidth() > 0)) {
      return;
    }
    float[][] logits = ForcedRuns.logits(session, ids, prompt.length, options.units());
    float[][] proposed = router == null ? null : small.logits(ids);
    for (int i = prompt.length; i < ids.length; i++) {
      float[] row = logits[i - 1];
      if (router != null) {
        float[] ours = proposed[i - 1];
        statistics.set(ours, 0, ours.length);
        double score = router.score(ours, ours.length, statistics.argmax);
        row = score >= options.routing().orElseThrow().threshold() ? row : ours;
      }
      statistics.set(row, 0, row.length);
      nats += statistics.logSumExp - row[ids[i]];
      tokens++;
    }
  }
}
