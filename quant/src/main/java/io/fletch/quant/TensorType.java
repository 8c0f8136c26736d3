package io.fletch.quant;

/**
 * How the elements of a tensor are stored: {@link #blockSize()} consecutive elements of a row share
 * {@link #blockBytes()} bytes.
 *
 * <p>Ids are those of GGUF (specs weights 1.1); layouts are in specs weights 2.2.
 */
public enum TensorType {
  F32(0, 1, 4),
  F16(1, 1, 2),
  Q4_0(2, 32, 18),
  Q4_1(3, 32, 20),
  Q5_0(6, 32, 22),
  Q5_1(7, 32, 24),
  Q8_0(8, 32, 34),
  Q2_K(10, 256, 84),
  Q3_K(11, 256, 110),
  Q4_K(12, 256, 144),
  Q5_K(13, 256, 176),
  Q6_K(14, 256, 210),
  IQ4_NL(20, 32, 18),
  IQ4_XS(23, 256, 136),
  I8(24, 1, 1),
  I16(25, 1, 2),
  I32(26, 1, 4),
  I64(27, 1, 8),
  F64(28, 1, 8),
  BF16(30, 1, 2),
  MXFP4(39, 32, 17);

  private final int ggufId;
  private final int blockSize;
  private final int blockBytes;

  TensorType(int ggufId, int blockSize, int blockBytes) {
    this.ggufId = ggufId;
    this.blockSize = blockSize;
    this.blockBytes = blockBytes;
  }

  /** The type id in a GGUF tensor info. */
  public int ggufId() {
    return ggufId;
  }

  /** Elements per block; a row holds a whole number of blocks. */
  public int blockSize() {
    return blockSize;
  }

  /** Bytes per block. */
  public int blockBytes() {
    return blockBytes;
  }

  /** Whether elements share a block scale. */
  public boolean isQuantized() {
    return blockSize > 1;
  }

  /**
   * Bytes of {@code elements} consecutive elements.
   *
   * @throws IllegalArgumentException if that is not a whole number of blocks
   * @throws ArithmeticException if the size overflows a long
   */
  public long bytes(long elements) {
    if (elements < 0 || elements % blockSize != 0) {
      throw new IllegalArgumentException(
          "not a whole number of "
              + this
              + " blocks: blockSize="
              + blockSize
              + " elements="
              + elements);
    }
    return Math.multiplyExact(elements / blockSize, (long) blockBytes);
  }
}
