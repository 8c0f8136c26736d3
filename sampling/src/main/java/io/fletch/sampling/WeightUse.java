package io.fletch.sampling;

/**
 * What decoding used of a model's weights, the cost that bounds its speed where memory does.
 *
 * <p>The definitions hold for every technique:
 *
 * <ul>
 *   <li><b>Bytes read</b>: what the passes read, those of the prompt included. A pass reads each
 *       matrix once, whatever its rows; of the embedding a row per token; the output matrix only if
 *       it gives logits; the matrices of a unit that a technique skips only if some row runs it. A
 *       pass that {@code n} sessions share counts one n-th for each, and a row that had to run
 *       again counts again. Keys and values do not count.
 *   <li><b>Activated parameters</b>: for each token of the answer, the elements of the matrices
 *       that computed the logits it was drawn from, and of those that proposed it. Rows that only
 *       fill a cache (prompts, catching up) do not count here, but their passes do above.
 * </ul>
 *
 * <p>A dense model whose prompt fits into one pass so reads its weights once per token and
 * activates all its matrices.
 *
 * @param tokens tokens of answers, ending ones included
 * @param bytes bytes of weights read
 * @param activated sum over the tokens of the parameters activated
 */
public record WeightUse(long tokens, long bytes, long activated) {
  /** Nothing. */
  public static final WeightUse NONE = new WeightUse(0, 0, 0);

  /** Bytes read per token; 0 without tokens. */
  public double bytesPerToken() {
    return tokens == 0 ? 0 : (double) bytes / tokens;
  }

  /** Mean activated parameters per token; 0 without tokens. */
  public double activatedPerToken() {
    return tokens == 0 ? 0 : (double) activated / tokens;
  }

  /** Both together. */
  public WeightUse plus(WeightUse other) {
    return new WeightUse(tokens + other.tokens, bytes + other.bytes, activated + other.activated);
  }
}
