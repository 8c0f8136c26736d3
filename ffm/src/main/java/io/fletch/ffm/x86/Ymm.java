package io.fletch.ffm.x86;

/** 256-bit vector registers in encoding order; 16 and above need AVX-512. */
public enum Ymm implements Vec {
  YMM0,
  YMM1,
  YMM2,
  YMM3,
  YMM4,
  YMM5,
  YMM6,
  YMM7,
  YMM8,
  YMM9,
  YMM10,
  YMM11,
  YMM12,
  YMM13,
  YMM14,
  YMM15,
  YMM16,
  YMM17,
  YMM18,
  YMM19,
  YMM20,
  YMM21,
  YMM22,
  YMM23,
  YMM24,
  YMM25,
  YMM26,
  YMM27,
  YMM28,
  YMM29,
  YMM30,
  YMM31;

  private static final Ymm[] ALL = values();

  /** The register of a number, 0 to 31. */
  public static Ymm of(int code) {
    return ALL[code];
  }

  @Override
  public int code() {
    return ordinal();
  }

  @Override
  public int bytes() {
    return 32;
  }
}
