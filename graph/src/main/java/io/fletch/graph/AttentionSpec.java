package io.fletch.graph;

/**
 * Shape and scoring of one attention unit. What a row may see is data of the batch ({@link Span}),
 * not part of the graph; only a sliding window, being a property of the layer, is here.
 *
 * @param layer index of the KV cache layer
 * @param heads query heads
 * @param kvHeads key/value heads; divides {@code heads}
 * @param keyDim elements of a query and a key head
 * @param valueDim elements of a value head
 * @param scale factor on the scores, usually {@code 1/sqrt(keyDim)}
 * @param softCap {@code cap * tanh(score / cap)} when positive, 0 for none
 * @param window a row sees at most this many latest slots, itself included, counted in the order of
 *     the sequence (prefix, then the span's rows up to it); slots after it are not limited; 0 for
 *     no limit
 */
public record AttentionSpec(
    int layer,
    int heads,
    int kvHeads,
    int keyDim,
    int valueDim,
    float scale,
    float softCap,
    int window) {
  /** Checks the head counts. */
  public AttentionSpec {
    if (heads <= 0 || kvHeads <= 0 || heads % kvHeads != 0) {
      throw new IllegalArgumentException(
          "kvHeads must divide heads: heads=" + heads + " kvHeads=" + kvHeads);
    }
  }

  /** Query heads that share a key/value head. */
  public int group() {
    return heads / kvHeads;
  }
}
