package io.fletch;

import io.fletch.runtime.engine.RouterFile;
import io.fletch.sampling.TokenRouter;
import io.fletch.sampling.TokenRouting;
import java.nio.file.Path;
import java.util.Map;
import java.util.Objects;

/**
 * A small model that answers in the place of the session's (R2R): it proposes every token, and
 * where the router's score reaches the threshold the session's model gives the token instead. The
 * small model must have the same tokens and stay open.
 *
 * @param small an autoregressive model
 * @param router judges proposals; it may be shared, every answer uses a copy
 * @param threshold 0 routes every token, positive infinity none
 * @param hold after a routed token the session's model goes on until the mean of so many latest
 *     scores is below the threshold too (published: 3); 0 to judge every token by itself
 */
public record Routing(Model small, TokenRouter router, double threshold, int hold) {
  /** Checks ranges. */
  public Routing {
    Objects.requireNonNull(small, "small");
    Objects.requireNonNull(router, "router");
    if (!(threshold >= 0)) {
      throw new IllegalArgumentException("threshold: expected>=0 actual=" + threshold);
    }
    if (hold < 0 || hold > TokenRouting.MOST_HOLD) {
      throw new IllegalArgumentException(
          "hold: expected=[0, " + TokenRouting.MOST_HOLD + "] actual=" + hold);
    }
  }

  /** Every token is judged by itself. */
  public Routing(Model small, TokenRouter router, double threshold) {
    this(small, router, threshold, 0);
  }

  /**
   * A router from a file that {@link #save} wrote, with its threshold.
   *
   * @throws FletchException if it is no such file, is damaged, or was trained for another pair of
   *     models
   */
  public static Routing load(Path file, Model small, Model large) {
    return RouterFile.load(file, small, large);
  }

  /**
   * Writes a trained router and this threshold for a pair of models, as a Fletch Arrow file.
   *
   * @param facts what else to record: texts and numbers, for example the share that was routed
   * @throws FletchException if the router is not a trained one
   */
  public void save(Path file, Model large, Map<String, Object> facts) {
    RouterFile.save(this, file, large, facts);
  }

  /** With another threshold. */
  public Routing withThreshold(double value) {
    return new Routing(small, router, value, hold);
  }

  /** With another memory of scores. */
  public Routing withHold(int value) {
    return new Routing(small, router, threshold, value);
  }
}
