package io.fletch.graph.cpu;

import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch.RowStatistics;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Optional;

/**
 * One complete set of CPU kernels: scalar, Vector API, or machine code. Stateless and thread-safe;
 * nothing allocates; every result depends on the operands of its row alone, with a fixed order of
 * reduction, so it is the same bit for bit for any row count, thread count and split.
 *
 * <p>Offsets and strides into float32 segments count <em>floats</em>; offsets into anything else
 * count bytes. All segments are native. Reads and writes never leave the stated ranges.
 * Element-wise kernels (activate, add, scale, softCap, rope) accept a destination that is one of
 * their operands.
 */
public interface Kernels {
  /** Positions whose softmax attention takes in one step, the first one a multiple of it. */
  int ATTENTION_CHUNK = 64;

  /** Positions of a segment of attention, the first one a multiple of it. */
  int ATTENTION_SEGMENT = 1024;

  /**
   * Name for plans and logs: {@code scalar}, {@code vector-256}, {@code x86-avx2}, {@code
   * x86-avx512-vnni}.
   */
  String name();

  /** The product kernel for weights of a type with rows of {@code in} elements. */
  Matmul matmul(TensorType type, int in);

  /** As {@link #matmul}, but reading the tensor's bytes as they are: a product that never packs. */
  default Matmul matmulMapped(TensorType type, int in) {
    return matmul(type, in);
  }

  /**
   * The product kernel for activations many of which are zero, whose weights it then does not read;
   * always packed. For F32, F16 and BF16.
   */
  default Matmul columnsMatmul(TensorType type, int in) {
    return new ColumnsMatmul(type, in, Optional.empty());
  }

  /**
   * As {@link #columnsMatmul}, for a matrix of a quantized type, with the bits of {@link #matmul};
   * it is for this one only. Empty where there is none.
   */
  default Optional<Matmul> codeColumnsMatmul(Tensor weight) {
    return Optional.empty();
  }

  /** The product kernel of a sparse matrix; it is for this one only. */
  default Matmul bitmapMatmul(SparseMatrix.Bitmap matrix) {
    return ScalarSparse.of(matrix);
  }

  /** The product kernel of a bitmap of codes; it is for this one only. */
  default Matmul bitmapMatmul(SparseMatrix.BitmapCodes matrix) {
    return ScalarSparse.of(matrix);
  }

  /** The product kernel of a 2:4 matrix; it is for this one only. */
  default Matmul twoOfFourMatmul(SparseMatrix.TwoOfFour matrix) {
    return ScalarSparse.of(matrix);
  }

  /** As {@link #twoOfFourMatmul}, but reading the values as they are: it never packs. */
  default Matmul twoOfFourMapped(SparseMatrix.TwoOfFour matrix) {
    return twoOfFourMatmul(matrix);
  }

  /** Products with one weight matrix {@code [out, in]}. */
  interface Matmul {
    /** Name for plans, for example {@code q4_0 x8 avx2}. */
    String name();

    /** The form activations are wanted in. */
    ActivationFormat activation();

    /**
     * Whether {@link #pack} gives a layout of its own (else the tensor's bytes are used as they
     * are).
     */
    boolean packs();

    /** Bytes of the packed matrix. */
    long packedBytes(long out);

    /** Rows that a worker's range must be a multiple of (except at the end of the matrix). */
    int rowGranule();

    /**
     * Packs rows {@code [from, to)} (multiples of the granule but at the end) of the row-major
     * matrix into the packed one, from base to base. A permutation of the bytes, possibly with
     * padding. Rows from a multiple {@code m} of the granule on lie from byte {@code
     * packedBytes(m)} on, as they would in a matrix of their own.
     */
    void pack(MemorySegment rowMajor, MemorySegment packed, long out, long from, long to);

    /**
     * {@code y[r, o] = sum_i W[o, i] x[r, i]} for rows {@code r} in {@code [0, rows)} and outputs
     * {@code o} in {@code [from, to)}, stored at {@code y[yOffset + r * yStride + o]}.
     *
     * @param weight the packed matrix (or the tensor where {@link #packs} is false), from its base
     * @param out rows of the whole matrix
     * @param x activations in {@link #activation()} form, row {@code r} at byte {@code xOffset + r
     *     * activationBytes(format, in)}
     */
    void run(
        MemorySegment weight,
        long out,
        long from,
        long to,
        MemorySegment x,
        long xOffset,
        int rows,
        MemorySegment y,
        long yOffset,
        long yStride);
  }

  /** Forms of activations that products read. The byte layout is private to a kernel set. */
  enum ActivationFormat {
    /** float32 as it is. */
    F32,
    /** 8-bit blocks of 32 with a scale (and sums). */
    Q8_BLOCK32,
    /** 8-bit blocks of 256 with a scale and sums of 16 or 32. */
    Q8_BLOCK256
  }

  /** Bytes of one row of activations in a format, a multiple of 64. */
  long activationBytes(ActivationFormat format, int n);

  /** Converts {@code x[offset .. offset + n)} into one row of a format other than F32. */
  void quantize(
      ActivationFormat format,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset);

  /**
   * Dequantizes {@code n} elements of a weight type starting at a block boundary: {@code dst[i] =
   * scale * w[i]}.
   */
  void dequantize(
      TensorType type,
      MemorySegment src,
      long srcOffset,
      int n,
      float scale,
      MemorySegment dst,
      long dstOffset);

  /** {@code dst = x * weight * (scale / sqrt(mean(x^2) + eps))}. */
  void rmsNorm(
      MemorySegment x,
      long offset,
      MemorySegment weight,
      int n,
      float eps,
      float scale,
      MemorySegment dst,
      long dstOffset);

  /**
   * LayerNorm of a row: {@code dst = (x - mean) / sqrt(variance + eps) * weight + bias}; the bias
   * is {@link MemorySegment#NULL} for none. The same plain loops in every kernel set: it is a small
   * part of the few models that have it.
   */
  default void layerNorm(
      MemorySegment x,
      long offset,
      MemorySegment weight,
      MemorySegment bias,
      int n,
      float eps,
      MemorySegment dst,
      long dstOffset) {
    LayerNorm.run(x, offset, weight, bias, n, eps, dst, dstOffset);
  }

  /**
   * Rotates one head: pair {@code i} by (cos[i], sin[i]); elements beyond the pairs are copied. In
   * place when source and destination are the same.
   *
   * @param table {@code cos} of all pairs then {@code sin} of all pairs, from {@code tableOffset}
   */
  void rope(
      RopeSpec.Style style,
      MemorySegment x,
      long offset,
      int headDim,
      MemorySegment table,
      long tableOffset,
      int pairs,
      MemorySegment dst,
      long dstOffset);

  /** {@code dst = act(gate) * up}. */
  void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      int n,
      MemorySegment dst,
      long dstOffset);

  /** {@code dst = act(x)}. */
  void activate(
      Activation activation,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset);

  /** {@code dst = a + scale * b}. */
  void add(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      float scale,
      int n,
      MemorySegment dst,
      long dstOffset);

  /**
   * {@code y[i] = fma(h[k], b[k, from + i], y[i])} for every row {@code k} of the factor, in this
   * order, and {@code i} in {@code [0, n)}.
   *
   * @param from column of the factor
   */
  void accumulate(
      LowRankFactor b,
      long from,
      int n,
      MemorySegment h,
      long hOffset,
      MemorySegment y,
      long yOffset);

  /** {@code dst = factor * x}. */
  void scale(MemorySegment x, long offset, float factor, int n, MemorySegment dst, long dstOffset);

  /** {@code dst[i] = a[i] * b[i]}. */
  void multiply(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      int n,
      MemorySegment dst,
      long dstOffset);

  /** {@code dst = cap * tanh(x / cap)}. */
  void softCap(MemorySegment x, long offset, float cap, int n, MemorySegment dst, long dstOffset);

  /** Bytes of {@code n} cache elements of a head. {@code n} is a multiple of 32 for Q8_0. */
  long kvBytes(KvCache.Type type, int n);

  /** Stores one key or value head of {@code n} floats into the cache at a byte offset. */
  void kvStore(
      KvCache.Type type, MemorySegment x, long offset, int n, MemorySegment kv, long kvOffset);

  /**
   * Floats of working memory that {@link #attention} needs for up to {@link AttentionTile#ROWS}
   * rows.
   */
  int attentionScratch(AttentionSpec spec);

  /**
   * Floats of what {@link #attention} leaves for a row: {@code [group]} maxima, {@code [group]}
   * sums of weights and {@code [group][valueDim]} values that are to be divided by the sums.
   */
  default int attentionState(AttentionSpec spec) {
    return spec.group() * (2 + spec.valueDim());
  }

  /**
   * Softmax attention of the rows of a tile for the {@link AttentionSpec#group} query heads that
   * share a key/value head, over the positions of one segment. Query head {@code h} of a row is
   * {@code queries[query + h * keyDim ..]}. Keys and values of positions that a row does not see
   * have no influence on its result, and those in front of the first and behind the last one that
   * some row sees need not be there. Layer, head counts beyond the group and window of the shape do
   * not matter here.
   *
   * <p>Positions are taken by chunks of {@link #ATTENTION_CHUNK}, so rows with other ends share
   * their chunks. The state of every row is written, also of one that sees nothing: -inf, 0, zeros.
   *
   * @param tile the rows; their states may go to the segment of the working memory, behind it
   * @param kv keys and values of all positions that some row sees
   * @param scratch working memory: begins with {@link #attentionScratch} floats for this call
   */
  void attention(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch);

  /**
   * Merges the state of a segment into that of the segments before it, as {@link AttentionRows}
   * says, for all heads of the group.
   *
   * @param merged index of the float at which the state begins that is updated
   * @param next index of the float at which the other one begins, which may be overwritten
   */
  default void attentionMerge(AttentionSpec spec, MemorySegment states, long merged, long next) {
    AttentionRows.merge(this, spec, states, merged, next);
  }

  /**
   * What a state results in, for all heads of the group: its values over its sums, zero where a sum
   * is.
   *
   * @param out takes {@code [group][valueDim]} results
   */
  default void attentionFinish(
      AttentionSpec spec, MemorySegment states, long state, MemorySegment out, long outOffset) {
    AttentionRows.finish(this, spec, states, state, out, outOffset);
  }

  /** The index of the largest element, the lowest on ties; NaN is never chosen. */
  int argmax(MemorySegment x, long offset, int n);

  /**
   * Reduces a row of logits, {@code x[offset .. offset + n)}, {@code n >= 1}; logarithm and entropy
   * to 1e-9.
   *
   * @return false where this set has no code for it: nothing was done
   */
  default boolean statistics(MemorySegment x, long offset, int n, RowStatistics into) {
    return false;
  }
}
