package io.fletch.ffm.ptx;

/** Types of registers and of memory accesses (PTX ISA, fundamental types). */
public enum PtxType {
  /** Signed byte in memory; loads widen it to a 32-bit register. */
  S8("s8", 1, "b32"),
  /** Byte in memory; loads widen it to a 32-bit register. */
  U8("u8", 1, "b32"),
  /** Half-precision or bfloat16 bits. */
  B16("b16", 2, "b16"),
  U32("u32", 4, "b32"),
  S32("s32", 4, "b32"),
  U64("u64", 8, "b64"),
  F32("f32", 4, "f32"),
  F64("f64", 8, "f64"),
  PRED("pred", 0, "pred");

  private final String text;
  private final int bytes;
  private final String register;

  PtxType(String text, int bytes, String register) {
    this.text = text;
    this.bytes = bytes;
    this.register = register;
  }

  /** Bytes in memory. */
  public int bytes() {
    return bytes;
  }

  /** The suffix of instructions. */
  public String text() {
    return text;
  }

  String register() {
    return register;
  }

  boolean isFloat() {
    return this == F32 || this == F64;
  }
}
