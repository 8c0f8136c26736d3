package io.fletch.ffm.x86;

/** AMX tile registers. */
public enum Tmm {
  TMM0,
  TMM1,
  TMM2,
  TMM3,
  TMM4,
  TMM5,
  TMM6,
  TMM7;

  /** The number used in encodings. */
  public int code() {
    return ordinal();
  }
}
