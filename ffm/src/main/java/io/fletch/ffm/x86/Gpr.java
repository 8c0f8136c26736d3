package io.fletch.ffm.x86;

/** 64-bit general-purpose registers in encoding order. */
public enum Gpr {
  RAX,
  RCX,
  RDX,
  RBX,
  RSP,
  RBP,
  RSI,
  RDI,
  R8,
  R9,
  R10,
  R11,
  R12,
  R13,
  R14,
  R15;

  /** The number used in encodings, 0 to 15. */
  public int code() {
    return ordinal();
  }
}
