package io.fletch.sampling;

import java.util.Objects;

/** When a run may end before every step is done: any number per run. */
public sealed interface Exit {
  /**
   * Fills everything behind a finished block that ends the answer (specs/diffusion.md 3.5, 6.6).
   *
   * @param wholeBlock only if the whole block is ending or fill tokens
   */
  record EndFill(boolean wholeBlock) implements Exit {}

  /**
   * Prophet (7): all masks are filled once the mean gap between the two largest logits, over the
   * region that holds the answer proper, reaches a threshold that falls in three stages.
   *
   * @param regionFrom first position of the region, counted from the start of the answer
   * @param regionLength its length; 0 never exits, -1 for up to the end of the answer
   * @param early threshold while progress is below 0.33
   * @param middle threshold while progress is below 0.67
   * @param late threshold from there on
   */
  record Prophet(int regionFrom, int regionLength, float early, float middle, float late)
      implements Exit {
    /** Checks. */
    public Prophet {
      Checks.atLeast("regionFrom", regionFrom, 0);
      Checks.atLeast("regionLength", regionLength, -1);
      Checks.range("early", early, 0, Float.POSITIVE_INFINITY);
      Checks.range("middle", middle, 0, Float.POSITIVE_INFINITY);
      Checks.range("late", late, 0, Float.POSITIVE_INFINITY);
    }

    /** The published thresholds over a region. */
    public static Prophet over(int regionFrom, int regionLength) {
      return new Prophet(regionFrom, regionLength, 7.5f, 5, 2.5f);
    }
  }

  /** How SchED's threshold falls. */
  enum Shape {
    /** Straight from hi to lo. */
    LINEAR,
    /** Half a cosine from hi to lo. */
    COSINE,
    /** Exponentially with rate k. */
    EXPONENTIAL
  }

  /**
   * SchED (10): all masks are filled once the mean gap over the answer reaches a threshold that
   * falls smoothly with progress.
   *
   * @param shape how it falls
   * @param hi threshold at progress 0
   * @param lo threshold at progress 1 (for {@code EXPONENTIAL} in the limit)
   * @param rate k of {@code EXPONENTIAL}
   * @param wholeAnswer mean over all answer positions (the paper) instead of those still masked
   *     (the released code)
   * @param guard also require that no masked position's most likely token has changed since the
   *     state before
   * @param maxChange share of masked positions that may have changed
   * @param patience states in a row that must have been stable before
   * @param minProgress least share of the answer that must be committed
   */
  record Sched(
      Shape shape,
      float hi,
      float lo,
      float rate,
      boolean wholeAnswer,
      boolean guard,
      float maxChange,
      int patience,
      float minProgress)
      implements Exit {
    /** Checks. */
    public Sched {
      Objects.requireNonNull(shape, "shape");
      Checks.range("hi", hi, 0, Float.POSITIVE_INFINITY);
      Checks.range("lo", lo, 0, hi);
      Checks.range("rate", rate, 0, 1e6);
      Checks.range("maxChange", maxChange, 0, 1);
      Checks.atLeast("patience", patience, 0);
      Checks.range("minProgress", minProgress, 0, 1);
    }

    /** Exponential with this rate from 7.5 to 2.5, with the guard. */
    public static Sched exponential(float rate) {
      return new Sched(Shape.EXPONENTIAL, 7.5f, 2.5f, rate, false, true, 0, 0, 0);
    }

    /** The threshold at progress {@code p} in [0, 1]. */
    public double threshold(double p) {
      if (Float.isInfinite(hi)) {
        return hi;
      }
      return switch (shape) {
        case LINEAR -> hi + ((double) lo - hi) * p;
        case COSINE -> lo + ((double) hi - lo) * (1 + Math.cos(Math.PI * p)) / 2;
        case EXPONENTIAL -> lo + ((double) hi - lo) * Math.exp(-rate * p);
      };
    }
  }
}
