package io.fletch.ffm.x86;

/** 512-bit vector registers in encoding order; 16 and above need AVX-512. */
public enum Zmm implements Vec {
  ZMM0,
  ZMM1,
  ZMM2,
  ZMM3,
  ZMM4,
  ZMM5,
  ZMM6,
  ZMM7,
  ZMM8,
  ZMM9,
  ZMM10,
  ZMM11,
  ZMM12,
  ZMM13,
  ZMM14,
  ZMM15,
  ZMM16,
  ZMM17,
  ZMM18,
  ZMM19,
  ZMM20,
  ZMM21,
  ZMM22,
  ZMM23,
  ZMM24,
  ZMM25,
  ZMM26,
  ZMM27,
  ZMM28,
  ZMM29,
  ZMM30,
  ZMM31;

  private static final Zmm[] ALL = values();

  /** The register of a number, 0 to 31. */
  public static Zmm of(int code) {
    return ALL[code];
  }

  @Override
  public int code() {
    return ordinal();
  }

  @Override
  public int bytes() {
    return 64;
  }
}
