package io.fletch.sampling;

import java.util.Arrays;

/**
 * Values added to single logits before anything else looks at them: negative infinity suppresses an
 * id (the mask token, ids the tokenizer does not define), a finite value is a bias. Immutable.
 */
public final class LogitEdits {
  private static final LogitEdits NONE = new LogitEdits(new int[0], new float[0]);

  private final int[] ids;
  private final float[] addends;

  private LogitEdits(int[] ids, float[] addends) {
    this.ids = ids;
    this.addends = addends;
  }

  /** No edits. */
  public static LogitEdits none() {
    return NONE;
  }

  /**
   * Adds {@code addends[i]} to the logit of {@code ids[i]}.
   *
   * @throws IllegalArgumentException for a negative or repeated id, NaN or positive infinity
   */
  public static LogitEdits of(int[] ids, float[] addends) {
    if (ids.length != addends.length) {
      throw new IllegalArgumentException(
          "addends: expected=" + ids.length + " actual=" + addends.length);
    }
    int[] sorted = ids.clone();
    Arrays.sort(sorted);
    for (int i = 0; i < sorted.length; i++) {
      if (sorted[i] < 0 || (i > 0 && sorted[i] == sorted[i - 1])) {
        throw new IllegalArgumentException("token id is negative or repeated: actual=" + sorted[i]);
      }
    }
    for (float a : addends) {
      if (!(a < Float.POSITIVE_INFINITY)) {
        throw new IllegalArgumentException("logit addend: expected=below infinity actual=" + a);
      }
    }
    return new LogitEdits(ids.clone(), addends.clone());
  }

  /** Whether there are none. */
  public boolean isEmpty() {
    return ids.length == 0;
  }

  /** Number of edited ids. */
  public int size() {
    return ids.length;
  }

  /** The i-th edited id. */
  public int id(int i) {
    return ids[i];
  }

  /** What is added to the logit of {@link #id(int) id(i)}. */
  public float addend(int i) {
    return addends[i];
  }

  /** Applies the edits to a row of logits; ids outside the row are ignored. */
  public void apply(float[] logits, int offset, int count) {
    for (int i = 0; i < ids.length; i++) {
      if (ids[i] < count) {
        logits[offset + ids[i]] += addends[i];
      }
    }
  }
}
