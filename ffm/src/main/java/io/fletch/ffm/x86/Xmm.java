package io.fletch.ffm.x86;

/** 128-bit vector registers in encoding order; 16 and above need AVX-512. */
public enum Xmm implements Vec {
  XMM0,
  XMM1,
  XMM2,
  XMM3,
  XMM4,
  XMM5,
  XMM6,
  XMM7,
  XMM8,
  XMM9,
  XMM10,
  XMM11,
  XMM12,
  XMM13,
  XMM14,
  XMM15,
  XMM16,
  XMM17,
  XMM18,
  XMM19,
  XMM20,
  XMM21,
  XMM22,
  XMM23,
  XMM24,
  XMM25,
  XMM26,
  XMM27,
  XMM28,
  XMM29,
  XMM30,
  XMM31;

  private static final Xmm[] ALL = values();

  /** The register of a number, 0 to 31. */
  public static Xmm of(int code) {
    return ALL[code];
  }

  @Override
  public int code() {
    return ordinal();
  }

  @Override
  public int bytes() {
    return 16;
  }
}
