package io.fletch.ffm.x86;

/** Conditions of jumps and conditional moves, in encoding order. */
public enum Condition {
  O,
  NO,
  /** Unsigned less. */
  B,
  /** Unsigned greater or equal. */
  AE,
  /** Equal. */
  E,
  /** Not equal. */
  NE,
  /** Unsigned less or equal. */
  BE,
  /** Unsigned greater. */
  A,
  /** Negative. */
  S,
  /** Not negative. */
  NS,
  P,
  NP,
  /** Signed less. */
  L,
  /** Signed greater or equal. */
  GE,
  /** Signed less or equal. */
  LE,
  /** Signed greater. */
  G
}
