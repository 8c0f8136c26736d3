package io.fletch.graph.cpu;

import io.fletch.graph.cpu.Kernels.ActivationFormat;

/**
 * Byte layout of one row of quantized activations. Every kernel set of this package uses it: rows
 * quantized by one set can be read by another.
 *
 * <p>A row of {@code n} elements, {@code n} a multiple of {@link #blockSize}, has three areas. Each
 * starts at a multiple of 64 bytes from the start of the row, and rows are multiples of 64 bytes,
 * so an aligned first row makes everything aligned:
 *
 * <ol>
 *   <li>codes: {@code i8[n]}, in element order;
 *   <li>scales: {@code f32[n / blockSize]};
 *   <li>sums of codes: {@code i32[n / 32]} for Q8_BLOCK32 (one per block); {@code i16[n / 16]} for
 *       Q8_BLOCK256 (sixteen per block, one per 16 elements).
 * </ol>
 *
 * Bytes between the areas are unspecified and may be left unwritten.
 *
 * <p>Quantization of a block, in float32:
 *
 * <pre>
 *   amax = max |x|                       (as an integer maximum of the bits without sign: NaN is largest)
 *   scale = amax / 127,  inverse = 127 / amax
 *   code = round-half-even(x * inverse)  in [-127, 127], never -128
 * </pre>
 *
 * <ul>
 *   <li>{@code amax < MIN_AMAX} (zero, or so small that {@code inverse} would overflow): scale 0,
 *       codes 0.
 *   <li>{@code amax} infinite or NaN: scale is the quiet NaN {@code 0x7fc00000}, codes 0. So one
 *       non-finite element makes every product with its row NaN; none is lost.
 * </ul>
 *
 * <p>Products with a row have a fixed order of float32 operations, so that every kernel set gives
 * the same bits. With {@code dX} the activation scale of a block and integer sums exact in 32 bits,
 * one accumulator per output starts at +0 and takes the blocks in ascending order:
 *
 * <pre>
 *   32-element types, d * code:          acc = fma(dW * dX, (float) sum(codeW * codeX), acc)
 *   Q4_1, Q5_1, then also:               acc = fma(m * dX, (float) sum(codeX), acc)
 *   256-element types, d * sc * code:    acc = fma(dW * dX, (float) sum_j(sc_j * sum(codeW * codeX)), acc)
 *   Q2_K, Q4_K, Q5_K, then also:         acc = fma(-(dmin * dX), (float) sum_j(min_j * sum(codeX)), acc)
 * </pre>
 *
 * where {@code codeW} is the signed code (for example {@code q - 8} for Q4_0, {@code q - 32} for
 * Q6_K, the table value for IQ4) and {@code dW} the scale as float32.
 *
 * <p>F32, F16 and BF16 weights (converted to float32, exact) with F32 activations, as well as every
 * other float32 sum over elements in this package, use sixteen partial sums: partial sum {@code l}
 * starts at +0 and takes the elements {@code i = l (mod 16)} in ascending order with {@code s_l =
 * fma(w_i, x_i, s_l)}; then {@code s_l += s_(l+8)} for l &lt; 8, {@code s_l += s_(l+4)} for l &lt;
 * 4, {@code s_l += s_(l+2)} for l &lt; 2, {@code s_0 + s_1}. That is one 512-bit or two 256-bit
 * registers, and the usual halving.
 */
final class ActivationLayout {
  /**
   * Blocks whose largest magnitude is below this are quantized to zero: 127 / amax stays finite.
   */
  static final float MIN_AMAX = 0x1p-120f;

  /** Partial sums of float32 reductions. */
  static final int LANES = 16;

  /** Elements per entry of the sums of a Q8_BLOCK256 row. */
  static final int SUM_GROUP = 16;

  private static final int ALIGNMENT = 64;

  private ActivationLayout() {}

  /** Elements that share a scale; 1 for F32. */
  static int blockSize(ActivationFormat format) {
    return switch (format) {
      case F32 -> 1;
      case Q8_BLOCK32 -> 32;
      case Q8_BLOCK256 -> 256;
    };
  }

  /** Offset of the scales from the start of the row. */
  static long scalesOffset(ActivationFormat format, int n) {
    checkQuantized(format, n);
    return align(n);
  }

  /** Offset of the sums from the start of the row. */
  static long sumsOffset(ActivationFormat format, int n) {
    return scalesOffset(format, n) + align(4L * (n / blockSize(format)));
  }

  /** Bytes of a row. */
  static long bytes(ActivationFormat format, int n) {
    return switch (format) {
      case F32 -> align(4L * n);
      case Q8_BLOCK32 -> sumsOffset(format, n) + align(4L * (n / 32));
      case Q8_BLOCK256 -> sumsOffset(format, n) + align(2L * (n / SUM_GROUP));
    };
  }

  private static void checkQuantized(ActivationFormat format, int n) {
    if (format == ActivationFormat.F32) {
      throw new IllegalArgumentException("F32 activations have no scales");
    }
    if (n < 0 || n % blockSize(format) != 0) {
      throw new IllegalArgumentException(
          "not a whole number of activation blocks: format="
              + format
              + " expected=multiple of "
              + blockSize(format)
              + " actual="
              + n);
    }
  }

  private static long align(long bytes) {
    return (bytes + ALIGNMENT - 1) & -ALIGNMENT;
  }
}
