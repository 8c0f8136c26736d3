package io.fletch.ffm.x86;

/** A place in the code of one {@link Assembler}: a jump target or a constant. */
public final class Label {
  /** Offset in the code, or -1 while unbound. */
  int position = -1;

  Label() {}
}
