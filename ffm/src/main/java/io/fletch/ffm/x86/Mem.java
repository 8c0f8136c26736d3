package io.fletch.ffm.x86;

/**
 * A memory operand: {@code [base + index * scale + displacement]}, or a label relative to the
 * instruction pointer.
 *
 * @param base base register; null only with a label
 * @param index index register or null; never RSP
 * @param scale 1, 2, 4 or 8
 * @param displacement constant offset in bytes
 * @param label a constant of the same assembler, or null
 * @param broadcast one element repeated to the width of the instruction (AVX-512 only)
 */
public record Mem(Gpr base, Gpr index, int scale, int displacement, Label label, boolean broadcast)
    implements Operand {
  /** Validates the parts. */
  public Mem {
    if ((base == null) == (label == null)) {
      throw new IllegalArgumentException("expected a base or a label: base=" + base);
    }
    if (index == Gpr.RSP || (label != null && index != null)) {
      throw new IllegalArgumentException("not an index here: index=" + index);
    }
    if (scale != 1 && scale != 2 && scale != 4 && scale != 8) {
      throw new IllegalArgumentException("scale: expected=1|2|4|8 actual=" + scale);
    }
  }

  /** {@code [base]}. */
  public static Mem of(Gpr base) {
    return new Mem(base, null, 1, 0, null, false);
  }

  /** {@code [base + displacement]}. */
  public static Mem of(Gpr base, int displacement) {
    return new Mem(base, null, 1, displacement, null, false);
  }

  /** {@code [base + index * scale + displacement]}. */
  public static Mem of(Gpr base, Gpr index, int scale, int displacement) {
    return new Mem(base, index, scale, displacement, null, false);
  }

  /** The bytes at a label. */
  public static Mem of(Label label) {
    return new Mem(null, null, 1, 0, label, false);
  }

  /** This operand some bytes further. */
  public Mem plus(int bytes) {
    return new Mem(base, index, scale, Math.addExact(displacement, bytes), label, broadcast);
  }

  /** One element from here, repeated: {@code {1toN}}. */
  public Mem each() {
    return new Mem(base, index, scale, displacement, label, true);
  }
}
