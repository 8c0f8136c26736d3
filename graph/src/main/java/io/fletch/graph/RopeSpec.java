package io.fletch.graph;

/**
 * Rotary position embedding (specs weights 1.7), reduced to one inverse frequency per rotated pair
 * and one magnitude.
 *
 * <p>Pair {@code i} of a head turns by {@code position * inverseFrequency[i]}; cosine and sine are
 * multiplied by {@code magnitude}. Scaling schemes (linear, llama3 factors, YaRN, long/short
 * factors) are folded into the table by the model builder.
 *
 * @param style which elements form a pair
 * @param inverseFrequency one per pair; {@code 2 * length} elements of a head are rotated, the rest
 *     pass through
 * @param magnitude 1 unless YaRN or long-context scaling sets it
 */
public record RopeSpec(Style style, float[] inverseFrequency, float magnitude) {
  /** Which elements of a head form pair {@code i}, n = number of rotated elements. */
  public enum Style {
    /** (2i, 2i+1): GGUF llama, llada. */
    NORM,
    /** (i, i + n/2): everything else. */
    NEOX
  }
}
