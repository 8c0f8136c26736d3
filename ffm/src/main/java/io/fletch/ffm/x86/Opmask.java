package io.fletch.ffm.x86;

/** AVX-512 mask registers. K0 as a write mask means "no mask", so it cannot be asked for as one. */
public enum Opmask {
  K0,
  K1,
  K2,
  K3,
  K4,
  K5,
  K6,
  K7;

  /** The number used in encodings. */
  public int code() {
    return ordinal();
  }
}
