package io.fletch.graph;

/**
 * A float32 activation of shape {@code [rows, width]}, defined once by one op.
 *
 * @param id position in definition order
 * @param width elements per row
 * @param rows which rows it has
 * @param name for printing, unique in its graph, for example {@code blk.3.attn_q}
 */
public record Value(int id, int width, Rows rows, String name) {
  /** Row sets a value can have. */
  public enum Rows {
    /** One row per token of the batch. */
    BATCH,
    /** One row per token whose logits were asked for. */
    LOGITS
  }
}
