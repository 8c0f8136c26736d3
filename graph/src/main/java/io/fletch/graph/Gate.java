package io.fletch.graph;

/**
 * Names the unit gate an op obeys: one byte per (layer, unit, row) that kernels of the unit read
 * first (DESIGN 3, specs autoregressive P1). {@link #RUN} computes; {@link #SKIP} leaves the
 * residual row as it is. All-RUN is the same code path as dense and bit-identical.
 *
 * @param layer 0-based block index
 * @param unit which half of the block
 */
public record Gate(int layer, Unit unit) {
  /** Gate byte: compute the unit for this row. */
  public static final byte RUN = 0;

  /** Gate byte: the unit contributes nothing to this row. */
  public static final byte SKIP = 1;

  /** The two gated units of a block. */
  public enum Unit {
    ATTENTION,
    FFN
  }
}
