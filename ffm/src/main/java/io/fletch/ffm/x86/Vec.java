package io.fletch.ffm.x86;

/** A vector register. Its width and number choose between VEX and EVEX encodings. */
public sealed interface Vec extends Operand permits Xmm, Ymm, Zmm {
  /** The number used in encodings, 0 to 31. */
  int code();

  /** Width in bytes: 16, 32 or 64. */
  int bytes();

  /** The register of a number at a width of 16, 32 or 64 bytes. */
  static Vec of(int bytes, int code) {
    return switch (bytes) {
      case 16 -> Xmm.of(code);
      case 32 -> Ymm.of(code);
      case 64 -> Zmm.of(code);
      default ->
          throw new IllegalArgumentException("vector width: expected=16|32|64 actual=" + bytes);
    };
  }

  /** The lowest 128 bits of this register. */
  default Xmm xmm() {
    return Xmm.of(code());
  }

  /** The lowest 256 bits of this register. */
  default Ymm ymm() {
    return Ymm.of(code());
  }
}
