package io.fletch.sampling;

import java.util.Objects;

/**
 * Random projections of the direction of a hidden state: sums of its elements with random signs,
 * divided by its norm, so that each has a variance of about 1 for states in random directions.
 * Immutable.
 */
final class HiddenProjections {
  /** What the signs are drawn from: part of the meaning of a stored router. */
  private static final long SEED = 4242;

  private final int width;
  private final boolean[][] positive;

  HiddenProjections(int width, int count) {
    if (width < 1) {
      throw new IllegalArgumentException("hidden width: expected>=1 actual=" + width);
    }
    this.width = width;
    positive = new boolean[count][width];
    for (int p = 0; p < count; p++) {
      for (int i = 0; i < width; i++) {
        positive[p][i] = CounterRandom.uniform(SEED, p, i, 0, 0) < 0.5;
      }
    }
  }

  int width() {
    return width;
  }

  void apply(float[] hidden, double[] into) {
    Objects.checkFromIndexSize(0, width, hidden.length);
    double squares = 0;
    for (int i = 0; i < width; i++) {
      squares += (double) hidden[i] * hidden[i];
    }
    double norm = Math.sqrt(Math.max(squares, 1e-20));
    for (int p = 0; p < positive.length; p++) {
      boolean[] signs = positive[p];
      double sum = 0;
      for (int i = 0; i < width; i++) {
        sum += signs[i] ? hidden[i] : -hidden[i];
      }
      into[p] = sum / norm;
    }
  }
}
