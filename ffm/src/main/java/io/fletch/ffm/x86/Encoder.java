package io.fletch.ffm.x86;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The encoding half of the assembler: bytes, prefixes, addressing, labels and the constant pool.
 * Instructions are in {@link Assembler}.
 *
 * <p>Legacy instructions get a REX prefix when needed; vector instructions the shortest VEX prefix
 * or, for registers above 15, 512 bits, masks, broadcasts and AVX-512 instructions, an EVEX prefix
 * with the displacement compressed to a multiple of the operand size where possible.
 */
abstract sealed class Encoder permits Assembler {
  /** Mandatory prefixes as VEX and EVEX number them. */
  static final int NP = 0;

  static final int P66 = 1;
  static final int PF3 = 2;
  static final int PF2 = 3;

  /** Opcode maps as VEX and EVEX number them. */
  static final int M0F = 1;

  static final int M38 = 2;
  static final int M3A = 3;

  /** W = 0 in both prefixes. */
  static final int W0 = 0;

  /** W = 1 in both prefixes. */
  static final int W1 = 1;

  /** W = 1 in EVEX; ignored, so 0, in VEX. */
  static final int EVEX_W1 = 2;

  /** Bit of the W argument: there is no EVEX form. */
  static final int VEX_ONLY = 16;

  /** Bit of the W argument: there is no VEX form. */
  static final int EVEX_ONLY = 32;

  /** Bit of the W argument: the EVEX form takes no write mask. */
  static final int NO_MASK = 64;

  /** Bit of the W argument: memory or a mask register is written, where nothing can be zeroed. */
  static final int NO_ZEROING = 128;

  /** What an EVEX memory operand holds: it scales displacements and decides about broadcasts. */
  enum Tuple {
    FULL32(4, 1),
    FULL64(8, 1),
    FULL(0, 1),
    HALF32(4, 2),
    HALF(0, 2),
    QUARTER(0, 4),
    EIGHTH(0, 8),
    ONE8(-1, 0),
    ONE16(-2, 0),
    ONE32(-4, 0),
    ONE64(-8, 0),
    QUAD32(-16, 0),
    QUAD64(-32, 0);

    private final int element;
    private final int fraction;

    Tuple(int element, int fraction) {
      this.element = element;
      this.fraction = fraction;
    }

    int bytes(int vectorBytes, boolean broadcast) {
      if (broadcast) {
        if (element <= 0) {
          throw new IllegalArgumentException("this instruction cannot broadcast");
        }
        return element;
      }
      return fraction == 0 ? -element : vectorBytes / fraction;
    }
  }

  private record Fixup(int at, int end, Label label, int addend, boolean shortForm) {}

  private byte[] code = new byte[1024];
  private int size;
  private final List<Fixup> fixups = new ArrayList<>();
  private final Map<ByteBuffer, Label> constants = new LinkedHashMap<>();
  private final Map<Long, Mem> repeated = new HashMap<>();
  private Opmask mask = Opmask.K0;
  private boolean zeroing;
  private boolean forceEvex;

  /** Bytes emitted so far. */
  public int size() {
    return size;
  }

  // ---- labels, constants, result

  /** A new label, to be bound once. */
  public Label label() {
    return new Label();
  }

  /** Binds a label to the next instruction. */
  public void bind(Label label) {
    if (label.position >= 0) {
      throw new IllegalStateException("label already bound: position=" + label.position);
    }
    label.position = size;
  }

  /** A new label bound to the next instruction. */
  public Label here() {
    Label label = label();
    bind(label);
    return label;
  }

  /**
   * Fills with multi-byte no-ops up to a multiple of {@code alignment}, a power of two up to 64.
   */
  public void align(int alignment) {
    int pad = -size & (alignment - 1);
    while (pad > 0) {
      int n = Math.min(pad, 9);
      emit(NOPS[n - 1]);
      pad -= n;
    }
  }

  /**
   * Bytes placed behind the code, aligned to their size rounded up to a power of two (at most 64);
   * equal constants are placed once.
   */
  public Mem constant(byte[] bytes) {
    if (bytes.length == 0 || bytes.length > 64) {
      throw new IllegalArgumentException("constant: expected=[1,64] bytes actual=" + bytes.length);
    }
    return Mem.of(constants.computeIfAbsent(ByteBuffer.wrap(bytes.clone()), b -> label()));
  }

  /** A constant of 32-bit values. */
  public Mem ints(int... values) {
    ByteBuffer buffer = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    for (int value : values) {
      buffer.putInt(value);
    }
    return constant(buffer.array());
  }

  /** A constant of one 32-bit float. */
  public Mem floating(float value) {
    return ints(Float.floatToRawIntBits(value));
  }

  /** One 32-bit value repeated over a width in bytes. */
  public Mem repeated(int value, int bytes) {
    // Kernels name the same few values in every other instruction.
    return repeated.computeIfAbsent(
        (long) bytes << 32 | value & 0xffffffffL,
        key -> {
          int[] values = new int[bytes / 4];
          Arrays.fill(values, value);
          return ints(values);
        });
  }

  /**
   * Places the constants and resolves all labels.
   *
   * @return position-independent code; constants need it to be placed at a multiple of 64
   * @throws IllegalStateException if a label that is used was never bound
   */
  public byte[] assemble() {
    checkNoPrefix();
    int entry = size;
    for (Map.Entry<ByteBuffer, Label> constant : constants.entrySet()) {
      byte[] bytes = constant.getKey().array();
      int alignment = Integer.highestOneBit(2 * bytes.length - 1);
      while ((size & (alignment - 1)) != 0) {
        emit(0xcc);
      }
      constant.getValue().position = size;
      emit(bytes);
    }
    for (Fixup fixup : fixups) {
      if (fixup.label.position < 0) {
        throw new IllegalStateException("label never bound: used at " + fixup.at);
      }
      patch(fixup, fixup.label.position + fixup.addend - fixup.end);
    }
    byte[] result = Arrays.copyOf(code, size);
    // The assembler stays usable: what was placed behind the code is taken back.
    size = entry;
    return result;
  }

  private void patch(Fixup fixup, int distance) {
    if (fixup.shortForm) {
      if (distance != (byte) distance) {
        throw new IllegalStateException("short jump out of reach: distance=" + distance);
      }
      code[fixup.at] = (byte) distance;
    } else {
      for (int i = 0; i < 4; i++) {
        code[fixup.at + i] = (byte) (distance >>> 8 * i);
      }
    }
  }

  // ---- decorators of the next instruction

  /** Writes only the elements selected by a mask; the others keep their value. */
  public void masked(Opmask k) {
    if (k == Opmask.K0) {
      throw new IllegalArgumentException("K0 is not a write mask");
    }
    mask = k;
  }

  /** Writes the elements selected by a mask and zeroes the others. */
  public void zeroed(Opmask k) {
    masked(k);
    zeroing = true;
  }

  /** Chooses the EVEX encoding where VEX would do (AVX512_VNNI without AVX_VNNI). */
  public void evex() {
    forceEvex = true;
  }

  private void checkNoPrefix() {
    if (mask != Opmask.K0 || forceEvex) {
      throw new IllegalStateException("a mask or evex() precedes an instruction without EVEX form");
    }
  }

  // ---- bytes

  void emit(int b) {
    if (size == code.length) {
      code = Arrays.copyOf(code, 2 * size);
    }
    code[size++] = (byte) b;
  }

  void emit(byte[] bytes) {
    for (byte b : bytes) {
      emit(b);
    }
  }

  void emit32(int value) {
    for (int i = 0; i < 4; i++) {
      emit(value >>> 8 * i);
    }
  }

  void emit64(long value) {
    emit32((int) value);
    emit32((int) (value >>> 32));
  }

  static boolean isByte(long value) {
    return value == (byte) value;
  }

  /** ModRM for a register operand. */
  private void modRegister(int reg, int rm) {
    emit(0xc0 | (reg & 7) << 3 | rm & 7);
  }

  /**
   * ModRM, SIB and displacement.
   *
   * @param compress size that an 8-bit displacement counts in (1 but for EVEX)
   * @param trailing bytes of immediate that follow
   */
  private void modMemory(int reg, Mem m, int compress, int trailing) {
    int r = (reg & 7) << 3;
    if (m.label() != null) {
      emit(r | 5);
      fixups.add(new Fixup(size, size + 4 + trailing, m.label(), m.displacement(), false));
      emit32(0);
      return;
    }
    int base = m.base().code() & 7;
    int displacement = m.displacement();
    boolean sib = m.index() != null || base == 4;
    int mod;
    if (displacement == 0 && base != 5) {
      mod = 0;
    } else if (displacement % compress == 0 && isByte(displacement / compress)) {
      mod = 1;
    } else {
      mod = 2;
    }
    emit(mod << 6 | r | (sib ? 4 : base));
    if (sib) {
      int index = m.index() == null ? 4 : m.index().code() & 7;
      emit(Integer.numberOfTrailingZeros(m.scale()) << 6 | index << 3 | base);
    }
    if (mod == 1) {
      emit(displacement / compress);
    } else if (mod == 2) {
      emit32(displacement);
    }
  }

  private static int high(Gpr g) {
    return g == null ? 0 : g.code() >> 3;
  }

  // ---- legacy instructions

  /** {@code [66] [REX] [0F] opcode ModRM} with a register operand. */
  void legacy(
      int prefix, boolean wide, boolean map0F, int opcode, int reg, Gpr rm, boolean byteReg) {
    checkNoPrefix();
    if (prefix != 0) {
      emit(prefix);
    }
    int rex = (wide ? 8 : 0) | (reg >> 3) << 2 | high(rm);
    // SPL, BPL, SIL and DIL exist only with a REX prefix.
    if (rex != 0 || (byteReg && (rm.code() >= 4))) {
      emit(0x40 | rex);
    }
    if (map0F) {
      emit(0x0f);
    }
    emit(opcode);
    modRegister(reg, rm.code());
  }

  /** The same with memory. */
  void legacy(
      int prefix,
      boolean wide,
      boolean map0F,
      int opcode,
      int reg,
      Mem m,
      int trailing,
      boolean byteReg) {
    checkNoPrefix();
    checkNoBroadcast(m);
    if (prefix != 0) {
      emit(prefix);
    }
    int rex = (wide ? 8 : 0) | (reg >> 3) << 2 | high(m.index()) << 1 | high(m.base());
    if (rex != 0 || (byteReg && reg >= 4)) {
      emit(0x40 | rex);
    }
    if (map0F) {
      emit(0x0f);
    }
    emit(opcode);
    modMemory(reg, m, 1, trailing);
  }

  /** {@code [REX.B] opcode+r}. */
  void legacyShort(boolean wide, int opcode, Gpr r) {
    checkNoPrefix();
    int rex = (wide ? 8 : 0) | high(r);
    if (rex != 0) {
      emit(0x40 | rex);
    }
    emit(opcode + (r.code() & 7));
  }

  void plain(int... bytes) {
    checkNoPrefix();
    for (int b : bytes) {
      emit(b);
    }
  }

  private static void checkNoBroadcast(Mem m) {
    if (m.broadcast()) {
      throw new IllegalArgumentException("this instruction cannot broadcast");
    }
  }

  /** A jump: backward ones take the short form where it reaches, forward ones the near form. */
  void jump(int shortOpcode, int[] nearOpcode, Label label, boolean forceShort) {
    checkNoPrefix();
    boolean near = !forceShort && (label.position < 0 || !isByte(label.position - (size + 2)));
    if (near) {
      for (int b : nearOpcode) {
        emit(b);
      }
      fixups.add(new Fixup(size, size + 4, label, 0, false));
      emit32(0);
    } else {
      emit(shortOpcode);
      fixups.add(new Fixup(size, size + 1, label, 0, true));
      emit(0);
    }
  }

  // ---- vector instructions

  /**
   * A VEX or EVEX instruction up to its ModRM; an immediate byte may follow.
   *
   * @param vectorBytes 16, 32 or 64
   * @param vexW W0, W1 or EVEX_W1, with VEX_ONLY or EVEX_ONLY, NO_MASK or NO_ZEROING
   * @param reg number in ModRM.reg
   * @param vvvv second operand or 0
   */
  void vector(
      int pp,
      int map,
      int opcode,
      int vexW,
      Tuple tuple,
      int vectorBytes,
      int reg,
      int vvvv,
      Operand rm,
      int trailing) {
    int w = vexW & 3;
    int rmCode = rm instanceof Vec v ? v.code() : 0;
    boolean broadcast = rm instanceof Mem m && m.broadcast();
    boolean evex =
        vectorBytes == 64
            || (vexW & EVEX_ONLY) != 0
            || forceEvex
            || broadcast
            || mask != Opmask.K0
            || reg > 15
            || vvvv > 15
            || rmCode > 15;
    if (evex && (vexW & VEX_ONLY) != 0) {
      throw new IllegalArgumentException(
          "no EVEX form: width=" + vectorBytes + " reg=" + reg + " vvvv=" + vvvv + " rm=" + rm);
    }
    if (mask != Opmask.K0 && (vexW & NO_MASK) != 0 || zeroing && (vexW & NO_ZEROING) != 0) {
      throw new IllegalArgumentException(
          zeroing ? "this instruction cannot zero" : "this instruction takes no mask");
    }
    int length = vectorBytes == 64 ? 2 : vectorBytes == 32 ? 1 : 0;
    int x;
    int b;
    if (rm instanceof Mem m) {
      x = high(m.index());
      b = high(m.base());
    } else {
      x = rmCode >> 4;
      b = rmCode >> 3 & 1;
    }
    if (evex) {
      emit(0x62);
      emit((~reg >> 3 & 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | (~reg >> 4 & 1) << 4 | map);
      emit((w != 0 ? 0x80 : 0) | (~vvvv & 15) << 3 | 4 | pp);
      emit(
          (zeroing ? 0x80 : 0)
              | length << 5
              | (broadcast ? 0x10 : 0)
              | (~vvvv >> 4 & 1) << 3
              | mask.code());
      mask = Opmask.K0;
      zeroing = false;
      forceEvex = false;
    } else {
      vexPrefix(pp, map, w == W1, length, reg, vvvv, x, b);
    }
    emit(opcode);
    if (rm instanceof Mem m) {
      modMemory(reg, m, evex ? tuple.bytes(vectorBytes, broadcast) : 1, trailing);
    } else {
      modRegister(reg, rmCode);
    }
  }

  private void vexPrefix(int pp, int map, boolean w, int length, int reg, int vvvv, int x, int b) {
    int tail = (~vvvv & 15) << 3 | length << 2 | pp;
    if (map == M0F && !w && x == 0 && b == 0) {
      emit(0xc5);
      emit((~reg >> 3 & 1) << 7 | tail);
    } else {
      emit(0xc4);
      emit((~reg >> 3 & 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | map);
      emit((w ? 0x80 : 0) | tail);
    }
  }

  /** A VEX instruction whose operands are not vectors: masks, general registers, tiles. */
  void vexRegister(int pp, int map, int opcode, boolean w, int length, int reg, int vvvv, int rm) {
    checkNoPrefix();
    vexPrefix(pp, map, w, length, reg, vvvv, 0, rm >> 3 & 1);
    emit(opcode);
    modRegister(reg, rm);
  }

  /** The same with memory. */
  void vexMemory(
      int pp, int map, int opcode, boolean w, int length, int reg, int vvvv, Mem m, boolean sib) {
    checkNoPrefix();
    checkNoBroadcast(m);
    if (sib && m.index() == null) {
      throw new IllegalArgumentException("tile loads and stores need an index (the row stride)");
    }
    vexPrefix(pp, map, w, length, reg, vvvv, high(m.index()), high(m.base()));
    emit(opcode);
    modMemory(reg, m, 1, 0);
  }

  private static final byte[][] NOPS = {
    {(byte) 0x90},
    {0x66, (byte) 0x90},
    {0x0f, 0x1f, 0x00},
    {0x0f, 0x1f, 0x40, 0x00},
    {0x0f, 0x1f, 0x44, 0x00, 0x00},
    {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
    {0x0f, 0x1f, (byte) 0x80, 0x00, 0x00, 0x00, 0x00},
    {0x0f, 0x1f, (byte) 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
    {0x66, 0x0f, 0x1f, (byte) 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
  };
}
