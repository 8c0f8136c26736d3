package io.fletch.ffm.ptx;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.StringJoiner;

/**
 * Writes one kernel. Each method appends one instruction and returns its new result register;
 * {@code ...Into} methods and {@link #assign} change a register that exists. Operands are registers
 * or numbers. Conditions and loops nest as Java blocks. Used by one thread.
 *
 * <p>Instructions are those of PTX ISA 8.0 (drivers from 12.0 on) and sm_80, so one text serves
 * every device from there on; those of newer devices say so and need {@link #header(int)}.
 */
public final class PtxKernel {
  /** Mask of all lanes. */
  private static final String ALL = "0xffffffff";

  private final List<PtxType> parameters = new ArrayList<>();
  private final List<String> shared = new ArrayList<>();
  private final Map<PtxType, Integer> used = new EnumMap<>(PtxType.class);
  private final StringBuilder body = new StringBuilder();
  private final int threads;
  private int labels;
  private int resident;
  private boolean overlapping;
  private boolean waits;

  /**
   * Starts a kernel.
   *
   * @param threads threads of its blocks, in x direction
   */
  public PtxKernel(int threads) {
    if (threads < 32 || threads > 1024 || threads % 32 != 0) {
      throw new IllegalArgumentException(
          "threads: expected=a multiple of 32 up to 1024 actual=" + threads);
    }
    this.threads = threads;
  }

  /** Registers are given out so that as many blocks run at the same time on a multiprocessor. */
  public PtxKernel resident(int blocks) {
    resident = blocks;
    return this;
  }

  /**
   * The kernel may be launched before those before it end, and lets the next one be launched at
   * once; sm_90. Unless it waits itself, by {@link #awaitPrevious}, it does so first.
   */
  public PtxKernel overlapping() {
    overlapping = true;
    return this;
  }

  /** Threads of a block. */
  public int threads() {
    return threads;
  }

  /** Number of parameters so far. */
  public int parameters() {
    return parameters.size();
  }

  /** A new register without a value. */
  public PtxRegister register(PtxType type) {
    int n = used.merge(type, 1, Integer::sum) - 1;
    return new PtxRegister(type, "%" + type.text() + "_" + n);
  }

  /** The next parameter, a device address or number of 4 or 8 bytes. */
  public PtxRegister parameter(PtxType type) {
    PtxRegister r = register(type);
    line("ld.param." + type.text() + " " + r + ", [p" + parameters.size() + "]");
    parameters.add(type);
    return r;
  }

  /** Static shared memory, aligned to 16 bytes; the result is its address in that space. */
  public PtxRegister shared(int bytes) {
    String name = "s" + shared.size();
    shared.add(".shared .align 16 .b8 " + name + "[" + bytes + "];");
    PtxRegister r = register(PtxType.U32);
    line("mov.u32 " + r + ", " + name);
    return r;
  }

  /** A special register of 32 bits, for example {@code tid.x}. */
  public PtxRegister special(String name) {
    PtxRegister r = register(PtxType.U32);
    line("mov.u32 " + r + ", %" + name);
    return r;
  }

  /** A register with a constant. */
  public PtxRegister constant(PtxType type, Number value) {
    PtxRegister r = register(type);
    assign(r, value);
    return r;
  }

  /** Copies a value into a register. */
  public void assign(PtxRegister to, Object value) {
    line("mov." + to.type().text() + " " + to + ", " + operand(to.type(), value));
  }

  private static String operand(PtxType type, Object value) {
    if (value instanceof PtxRegister r) {
      if (!r.type().register().equals(type.register())) {
        throw new IllegalArgumentException("operand type: expected=" + type + " actual=" + r);
      }
      return r.name();
    }
    Number n = (Number) value;
    return switch (type) {
      case F32 -> String.format(Locale.ROOT, "0f%08X", Float.floatToRawIntBits(n.floatValue()));
      case F64 ->
          String.format(Locale.ROOT, "0d%016X", Double.doubleToRawLongBits(n.doubleValue()));
      default -> Long.toString(n.longValue());
    };
  }

  private PtxRegister binary(String op, PtxRegister a, Object b) {
    PtxRegister r = register(a.type());
    line(op + "." + a.type().text() + " " + r + ", " + a + ", " + operand(a.type(), b));
    return r;
  }

  /** Sum. */
  public PtxRegister add(PtxRegister a, Object b) {
    return binary(a.type().isFloat() ? "add.rn" : "add", a, b);
  }

  /** Adds to a register where a condition holds. */
  public void addInto(PtxRegister condition, PtxRegister to, Object value) {
    String op = to.type().isFloat() ? "add.rn." : "add.";
    String sum = to + ", " + to + ", " + operand(to.type(), value);
    line("@" + condition + " " + op + to.type().text() + " " + sum);
  }

  /** Difference. */
  public PtxRegister sub(PtxRegister a, Object b) {
    return binary(a.type().isFloat() ? "sub.rn" : "sub", a, b);
  }

  /** Product; of integers the low half. */
  public PtxRegister mul(PtxRegister a, Object b) {
    return binary(a.type().isFloat() ? "mul.rn" : "mul.lo", a, b);
  }

  /** Quotient, rounded to nearest. */
  public PtxRegister div(PtxRegister a, Object b) {
    return binary(a.type().isFloat() ? "div.rn" : "div", a, b);
  }

  /** Quotient of floats to 2 units of the last place, without a slow path. */
  public PtxRegister quotient(PtxRegister a, Object b) {
    return binary("div.full", a, b);
  }

  /** Remainder of integers. */
  public PtxRegister rem(PtxRegister a, Object b) {
    return binary("rem", a, b);
  }

  /** The larger one; a NaN loses. */
  public PtxRegister max(PtxRegister a, Object b) {
    return binary("max", a, b);
  }

  /** The smaller one; a NaN loses. */
  public PtxRegister min(PtxRegister a, Object b) {
    return binary("min", a, b);
  }

  /** Bits of both. */
  public PtxRegister and(PtxRegister a, Object b) {
    PtxRegister r = register(a.type());
    line("and.b32 " + r + ", " + a + ", " + operand(a.type(), b));
    return r;
  }

  /** How many bits of 32 are set. */
  public PtxRegister ones(PtxRegister a) {
    PtxRegister r = register(PtxType.U32);
    line("popc.b32 " + r + ", " + a);
    return r;
  }

  /** The lanes with the same 32 bits, its own included; all lanes take part. */
  public PtxRegister matchAny(PtxRegister a) {
    PtxRegister r = register(PtxType.U32);
    line("match.any.sync.b32 " + r + ", " + a + ", " + ALL);
    return r;
  }

  /**
   * Adds to a 32-bit word of a space ({@code shared} or {@code global}) as if nobody else did.
   *
   * @return what was there before
   */
  public PtxRegister atomicAdd(String space, PtxRegister address, long offset, Object value) {
    PtxRegister r = register(PtxType.U32);
    line(
        "atom."
            + space
            + ".add.u32 "
            + r
            + ", ["
            + address
            + "+"
            + offset
            + "], "
            + operand(PtxType.U32, value));
    return r;
  }

  /** Shift to the left by a constant or 32-bit register. */
  public PtxRegister shl(PtxRegister a, Object b) {
    PtxRegister r = register(a.type());
    line("shl.b" + 8 * a.type().bytes() + " " + r + ", " + a + ", " + operand(PtxType.U32, b));
    return r;
  }

  /** Shift to the right, of signed numbers with the sign. */
  public PtxRegister shr(PtxRegister a, Object b) {
    PtxRegister r = register(a.type());
    line("shr." + a.type().text() + " " + r + ", " + a + ", " + operand(PtxType.U32, b));
    return r;
  }

  /** {@code a * b + c}, for floats rounded once. */
  public PtxRegister fma(PtxRegister a, Object b, Object c) {
    PtxRegister r = register(a.type());
    fmaInto(r, a, b, c);
    return r;
  }

  /** {@code to = a * b + c}. */
  public void fmaInto(PtxRegister to, PtxRegister a, Object b, Object c) {
    PtxType t = a.type();
    String op = t.isFloat() ? "fma.rn." : "mad.lo.";
    line(op + t.text() + " " + to + ", " + a + ", " + operand(t, b) + ", " + operand(t, c));
  }

  /** {@code base + index * scale}: a 64-bit address from a 32-bit unsigned index. */
  public PtxRegister address(PtxRegister base, PtxRegister index, int scale) {
    PtxRegister r = register(PtxType.U64);
    line("mad.wide.u32 " + r + ", " + index + ", " + scale + ", " + base);
    return r;
  }

  /** One operand: {@code neg}, {@code abs}, {@code sqrt.rn}, {@code ex2.approx.ftz} and so on. */
  public PtxRegister unary(String op, PtxRegister a) {
    PtxRegister r = register(a.type());
    line(op + "." + a.type().text() + " " + r + ", " + a);
    return r;
  }

  /**
   * Conversion.
   *
   * @param modifiers rounding, such as {@code .rn}, or empty
   * @param to type of the result
   * @param toText type in the instruction, for example {@code f16} for a B16 register
   * @param fromText type of the source in the instruction
   */
  public PtxRegister convert(
      String modifiers, PtxType to, String toText, PtxRegister from, String fromText) {
    PtxRegister r = register(to);
    line("cvt" + modifiers + "." + toText + "." + fromText + " " + r + ", " + from);
    return r;
  }

  /** The same bits as another type of the same size. */
  public PtxRegister bits(PtxType to, PtxRegister from) {
    PtxRegister r = register(to);
    line("mov.b" + 8 * to.bytes() + " " + r + ", " + from);
    return r;
  }

  /** A float whose upper half is a bfloat16. */
  public PtxRegister bfloat(PtxRegister half) {
    PtxRegister wide = convert("", PtxType.U32, "u32", half, "u16");
    return bits(PtxType.F32, shl(wide, 16));
  }

  /**
   * Comparison: {@code eq ne lt le gt ge}, false with a NaN (but {@code ne} and others by name).
   */
  public PtxRegister compare(String comparison, PtxRegister a, Object b) {
    PtxRegister r = register(PtxType.PRED);
    PtxType t = a.type();
    line("setp." + comparison + "." + t.text() + " " + r + ", " + a + ", " + operand(t, b));
    return r;
  }

  /** {@code condition ? a : b}. */
  public PtxRegister select(PtxRegister condition, PtxRegister a, Object b) {
    PtxRegister r = register(a.type());
    PtxType t = a.type();
    line("selp." + t.text() + " " + r + ", " + a + ", " + operand(t, b) + ", " + condition);
    return r;
  }

  /** Both predicates. */
  public PtxRegister both(PtxRegister a, PtxRegister b) {
    PtxRegister r = register(PtxType.PRED);
    line("and.pred " + r + ", " + a + ", " + b);
    return r;
  }

  /** One of both predicates, or both. */
  public PtxRegister either(PtxRegister a, PtxRegister b) {
    PtxRegister r = register(PtxType.PRED);
    line("or.pred " + r + ", " + a + ", " + b);
    return r;
  }

  /** Loads from global memory. */
  public PtxRegister load(PtxType type, PtxRegister address, long offset) {
    return load("global", type, address, offset);
  }

  /** Loads from a space with modifiers, for example {@code global.nc}. */
  public PtxRegister load(String space, PtxType type, PtxRegister address, long offset) {
    PtxRegister r =
        register(type == PtxType.S8 ? PtxType.S32 : type == PtxType.U8 ? PtxType.U32 : type);
    line("ld." + space + "." + type.text() + " " + r + ", [" + address + "+" + offset + "]");
    return r;
  }

  /**
   * Loads into a register where a condition holds; elsewhere it keeps its value. A narrower type
   * has zeros above.
   */
  public void loadInto(
      PtxRegister condition,
      String space,
      PtxType type,
      PtxRegister to,
      PtxRegister address,
      long offset) {
    String load = "ld." + space + "." + type.text() + " " + to;
    line("@" + condition + " " + load + ", [" + address + "+" + offset + "]");
  }

  /** Stores to global memory; of a byte the low bits of a 32-bit register. */
  public void store(PtxType type, PtxRegister address, long offset, PtxRegister value) {
    store("global", type, address, offset, value);
  }

  /** Stores to a space. */
  public void store(
      String space, PtxType type, PtxRegister address, long offset, PtxRegister value) {
    line("st." + space + "." + type.text() + " [" + address + "+" + offset + "], " + value);
  }

  /**
   * The value of the lane whose number differs in the bits of {@code mask}; all lanes take part.
   */
  public PtxRegister shuffleXor(PtxRegister value, int mask) {
    if (value.type().bytes() == 8) {
      PtxRegister low = register(PtxType.U32);
      PtxRegister high = register(PtxType.U32);
      line("mov.b64 {" + low + ", " + high + "}, " + value);
      PtxRegister l = shuffleXor(low, mask);
      PtxRegister h = shuffleXor(high, mask);
      PtxRegister r = register(value.type());
      line("mov.b64 " + r + ", {" + l + ", " + h + "}");
      return r;
    }
    PtxRegister r = register(value.type());
    line("shfl.sync.bfly.b32 " + r + ", " + value + ", " + mask + ", 31, " + ALL);
    return r;
  }

  /** The value of a lane; all lanes take part. */
  public PtxRegister shuffleFrom(PtxRegister value, PtxRegister lane) {
    PtxRegister r = register(value.type());
    line("shfl.sync.idx.b32 " + r + ", " + value + ", " + lane + ", 31, " + ALL);
    return r;
  }

  /** The value of the lane so many below, of the first ones their own; all lanes take part. */
  public PtxRegister shuffleUp(PtxRegister value, int by) {
    PtxRegister r = register(value.type());
    line("shfl.sync.up.b32 " + r + ", " + value + ", " + by + ", 0, " + ALL);
    return r;
  }

  /** The sum over the lanes of a warp, in every lane; the order is fixed. */
  public PtxRegister warpSum(PtxRegister value) {
    PtxRegister r = value;
    for (int mask = 16; mask > 0; mask >>= 1) {
      r = add(r, shuffleXor(r, mask));
    }
    return r;
  }

  /** The largest unsigned word of the lanes of a warp, in every lane. */
  public PtxRegister warpMax(PtxRegister value) {
    PtxRegister r = register(PtxType.U32);
    line("redux.sync.max.u32 " + r + ", " + value + ", " + ALL);
    return r;
  }

  /** The smallest unsigned word of the lanes of a warp, in every lane. */
  public PtxRegister warpMin(PtxRegister value) {
    PtxRegister r = register(PtxType.U32);
    line("redux.sync.min.u32 " + r + ", " + value + ", " + ALL);
    return r;
  }

  /** The bits of the lanes of a warp together, in every lane. */
  public PtxRegister warpOr(PtxRegister value) {
    PtxRegister r = register(PtxType.U32);
    line("redux.sync.or.b32 " + r + ", " + value + ", " + ALL);
    return r;
  }

  /** Whether a condition holds in some lane of the warp. */
  public PtxRegister anyLane(PtxRegister condition) {
    PtxRegister r = register(PtxType.PRED);
    line("vote.sync.any.pred " + r + ", " + condition + ", " + ALL);
    return r;
  }

  /** Zeros above the highest set bit of 32. */
  public PtxRegister leadingZeros(PtxRegister a) {
    PtxRegister r = register(PtxType.U32);
    line("clz.b32 " + r + ", " + a);
    return r;
  }

  /** Any function of the bits of three words, by its truth table (PTX ISA, lop3). */
  public PtxRegister logic(PtxRegister a, Object b, Object c, int table) {
    PtxRegister r = register(a.type());
    line(
        "lop3.b32 "
            + String.join(
                ", ",
                r.name(),
                a.name(),
                operand(a.type(), b),
                operand(a.type(), c),
                Integer.toString(table)));
    return r;
  }

  /** {@code a & mask | bits} in one instruction. */
  public PtxRegister maskOr(PtxRegister a, int mask, int bits) {
    return logic(a, mask & 0xffffffffL, bits & 0xffffffffL, 0xea);
  }

  /** Bytes picked from two words by four selectors of 4 bits; 0 to 3 are those of the first. */
  public PtxRegister permute(PtxRegister a, PtxRegister b, int selectors) {
    PtxRegister r = register(a.type());
    line("prmt.b32 " + r + ", " + a + ", " + b + ", " + selectors);
    return r;
  }

  /** The same with selectors in the low half of a register. */
  public PtxRegister permute(PtxRegister a, PtxRegister b, PtxRegister selectors) {
    PtxRegister r = register(a.type());
    line("prmt.b32 " + r + ", " + a + ", " + b + ", " + selectors);
    return r;
  }

  /** The low word of two, shifted to the right by {@code bits} modulo 32. */
  public PtxRegister funnel(PtxRegister low, PtxRegister high, PtxRegister bits) {
    PtxRegister r = register(low.type());
    line("shf.r.wrap.b32 " + r + ", " + low + ", " + high + ", " + bits);
    return r;
  }

  /** The lower and the upper half of a word. */
  public PtxRegister[] halves(PtxRegister word) {
    PtxRegister[] r = {register(PtxType.B16), register(PtxType.B16)};
    line("mov.b32 {" + r[0] + ", " + r[1] + "}, " + word);
    return r;
  }

  /** A word of two halves. */
  public PtxRegister pack(PtxRegister low, PtxRegister high) {
    PtxRegister r = register(PtxType.U32);
    line("mov.b32 " + r + ", {" + low + ", " + high + "}");
    return r;
  }

  /**
   * Two floats rounded to a word of halves.
   *
   * @param type {@code f16x2} or {@code bf16x2}
   */
  public PtxRegister packHalves(String type, PtxRegister low, PtxRegister high) {
    PtxRegister r = register(PtxType.U32);
    line("cvt.rn." + type + ".f32 " + r + ", " + high + ", " + low);
    return r;
  }

  /**
   * {@code a * b + c} of two halves each, in words of two.
   *
   * @param type {@code f16x2} or {@code bf16x2}
   */
  public PtxRegister fmaHalves(String type, PtxRegister a, PtxRegister b, PtxRegister c) {
    PtxRegister r = register(PtxType.U32);
    line("fma.rn." + type + " " + r + ", " + a + ", " + b + ", " + c);
    return r;
  }

  /** Sums of two halves each, in words of two: {@code f16x2}. */
  public PtxRegister addHalves(PtxRegister a, PtxRegister b) {
    PtxRegister r = register(PtxType.U32);
    line("add.rn.f16x2 " + r + ", " + a + ", " + b);
    return r;
  }

  /** Sum of {@code c} and the four products of signed bytes, 32 bits. */
  public PtxRegister dp4a(PtxRegister a, PtxRegister b, Object c) {
    PtxRegister r = register(PtxType.S32);
    line("dp4a.s32.s32 " + r + ", " + a + ", " + b + ", " + operand(PtxType.S32, c));
    return r;
  }

  /**
   * Loads 2 or 4 consecutive registers with one instruction; the address is a multiple of their
   * bytes.
   */
  public PtxRegister[] loadVector(
      String space, PtxType type, int n, PtxRegister address, long offset) {
    PtxRegister[] r = registers(type, checkVector(type, n));
    String op = "ld." + space + ".v" + n + "." + type.text();
    line(op + " " + list(r) + ", [" + address + "+" + offset + "]");
    return r;
  }

  /** Stores 2 or 4 registers with one instruction. */
  public void storeVector(
      String space, PtxType type, PtxRegister address, long offset, PtxRegister... values) {
    String op = "st." + space + ".v" + checkVector(type, values.length) + "." + type.text();
    line(op + " [" + address + "+" + offset + "], " + list(values));
  }

  private static int checkVector(PtxType type, int n) {
    if (n != 2 && n != 4 || n * type.bytes() > 16) {
      throw new IllegalArgumentException(
          "vector: expected=2 or 4 registers, up to 16 bytes actual=" + n + " " + type);
    }
    return n;
  }

  /** Fresh registers. */
  public PtxRegister[] registers(PtxType type, int n) {
    PtxRegister[] r = new PtxRegister[n];
    for (int i = 0; i < n; i++) {
      r[i] = register(type);
    }
    return r;
  }

  private static String list(PtxRegister... r) {
    StringJoiner names = new StringJoiner(", ", "{", "}");
    for (PtxRegister x : r) {
      names.add(x.name());
    }
    return names.toString();
  }

  /**
   * A warp's product of 16 x k by k x 8 added to 16 x 8 (PTX ISA, "Matrix Fragments for
   * mma.m16n8k16"). With {@code g = lane / 4, t = lane % 4}: {@code a} are rows g, g + 8, g, g + 8
   * at columns 2t, 2t, 2t + 8, 2t + 8 of two each; {@code b} rows 2t, 2t + 8 (two each) of column
   * g; {@code c} columns 2t, 2t + 1 of rows g, g, g + 8, g + 8.
   *
   * @param type {@code f16} or {@code bf16}; sums are float
   * @param to four floats, may be {@code c}
   */
  public void mma(
      String type, PtxRegister[] to, PtxRegister[] a, PtxRegister[] b, PtxRegister[] c) {
    checkHalves(type);
    fragments(4, to, 4, a, 2, b, 4, c);
    line(
        "mma.sync.aligned.m16n8k16.row.col.f32."
            + String.join(".", type, type)
            + ".f32 "
            + String.join(", ", list(to), list(a), list(b), list(c)));
  }

  /**
   * The same with signed bytes and k = 32: four in a register, rows g, g + 8, g, g + 8 at columns
   * 4t, 4t, 4t + 16, 4t + 16; sums are 32-bit integers that wrap.
   */
  public void mmaBytes(PtxRegister[] to, PtxRegister[] a, PtxRegister[] b, PtxRegister[] c) {
    fragments(4, to, 4, a, 2, b, 4, c);
    line(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
            + String.join(", ", list(to), list(a), list(b), list(c)));
  }

  /**
   * The same of halves with k = 32, where {@code a} has two of every four columns (PTX ISA, "Sparse
   * mma.m16n8k32"); {@code b} is four registers, rows 2t + 8i.
   *
   * @param metadata two bits per stored element, of the lanes with {@code t / 2 = selector}: rows g
   *     (lower half) and g + 8 of columns {@code 16 (t % 2)} to {@code 16 (t % 2) + 15}
   * @param selector 0 or 1
   */
  public void mmaSparse(
      String type,
      PtxRegister[] to,
      PtxRegister[] a,
      PtxRegister[] b,
      PtxRegister[] c,
      PtxRegister metadata,
      int selector) {
    checkHalves(type);
    if (selector != 0 && selector != 1) {
      throw new IllegalArgumentException("selector: expected=0 or 1 actual=" + selector);
    }
    fragments(4, to, 4, a, 4, b, 4, c);
    line(
        "mma.sp.sync.aligned.m16n8k32.row.col.f32."
            + String.join(".", type, type)
            + ".f32 "
            + String.join(
                ", ", list(to), list(a), list(b), list(c), metadata.name(), "0x" + selector));
  }

  private static void checkHalves(String type) {
    if (!type.equals("f16") && !type.equals("bf16")) {
      throw new IllegalArgumentException("type: expected=f16 or bf16 actual=" + type);
    }
  }

  private static void fragments(
      int to,
      PtxRegister[] d,
      int na,
      PtxRegister[] a,
      int nb,
      PtxRegister[] b,
      int nc,
      PtxRegister[] c) {
    if (d.length != to || a.length != na || b.length != nb || c.length != nc) {
      throw new IllegalArgumentException(
          String.format(
              Locale.ROOT,
              "fragments: expected=%d,%d,%d,%d actual=%d,%d,%d,%d",
              to,
              na,
              nb,
              nc,
              d.length,
              a.length,
              b.length,
              c.length));
    }
  }

  /**
   * Loads 1, 2 or 4 matrices of 8 x 8 halves from shared memory as fragments: lane l has the
   * address of row l % 8 of matrix l / 8, and gets columns 2t, 2t + 1 of row g of each.
   *
   * @param transposed rows and columns change places
   */
  public PtxRegister[] loadMatrices(int n, boolean transposed, PtxRegister address, long offset) {
    if (n != 1 && n != 2 && n != 4) {
      throw new IllegalArgumentException("matrices: expected=1, 2 or 4 actual=" + n);
    }
    PtxRegister[] r = registers(PtxType.U32, n);
    String op = "ldmatrix.sync.aligned.m8n8.x" + n + (transposed ? ".trans" : "") + ".shared.b16 ";
    line(op + list(r) + ", [" + address + "+" + offset + "]");
    return r;
  }

  /**
   * Copies 16 bytes from global to shared memory in the background, past the first cache. Both
   * addresses are multiples of 16.
   */
  public void copyAsync(PtxRegister shared, long to, PtxRegister global, long from) {
    line(
        "cp.async.cg.shared.global [" + shared + "+" + to + "], [" + global + "+" + from + "], 16");
  }

  /** Makes the copies since the last call a group. */
  public void commitCopies() {
    line("cp.async.commit_group");
  }

  /** Waits until at most so many of the thread's newest groups of copies are under way. */
  public void waitCopies(int pending) {
    line("cp.async.wait_group " + pending);
  }

  /**
   * Prepares a barrier of 8 bytes in shared memory for so many arrivals per phase, and makes that
   * known to bulk copies; sm_90. The other threads of the block wait before they use it.
   */
  public void initBarrier(PtxRegister barrier, int arrivals) {
    line("mbarrier.init.shared::cta.b64 [" + barrier + "], " + arrivals);
    line("fence.proxy.async");
  }

  /** Arrives and announces bytes of bulk copies; sm_90. */
  public void arriveExpecting(PtxRegister barrier, Object bytes) {
    line(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, ["
            + barrier
            + "], "
            + operand(PtxType.U32, bytes));
  }

  /**
   * Copies bytes from global to shared memory in one go, counted by a barrier; sm_90. Addresses and
   * size are multiples of 16; one thread asks.
   */
  public void copyBulk(PtxRegister shared, PtxRegister global, Object bytes, PtxRegister barrier) {
    line(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes ["
            + shared
            + "], ["
            + global
            + "], "
            + operand(PtxType.U32, bytes)
            + ", ["
            + barrier
            + "]");
  }

  /** Waits for the end of the barrier's phase of that parity; sm_90. */
  public void awaitBarrier(PtxRegister barrier, Object parity) {
    String again = label();
    body.append(again).append(":\n");
    PtxRegister done = register(PtxType.PRED);
    line(
        "mbarrier.try_wait.parity.shared::cta.b64 "
            + done
            + ", ["
            + barrier
            + "], "
            + operand(PtxType.U32, parity));
    line("@!" + done + " bra " + again);
  }

  /** Lets kernels that wait for this one be launched; sm_90. */
  public void launchDependents() {
    line("griddepcontrol.launch_dependents");
  }

  /**
   * Waits until the kernels before have ended and their writes are seen; sm_90. All threads pass
   * here before they end, or the next kernel would not wait for those before this one; loads of
   * what is written while this kernel is there are not {@code nc} ones.
   */
  public void awaitPrevious() {
    waits = true;
    line("griddepcontrol.wait");
  }

  /**
   * Asks for bytes of global memory to be brought to the second cache in the background; sm_90.
   * Address and size are multiples of 16; one thread asks.
   */
  public void prefetchBulk(PtxRegister global, Object bytes) {
    line("cp.async.bulk.prefetch.L2.global [" + global + "], " + operand(PtxType.U32, bytes));
  }

  /** A policy for {@link #loadVector(int, PtxRegister, long, PtxRegister)}. */
  public PtxRegister cachePolicy(String priority) {
    PtxRegister r = register(PtxType.U64);
    line("createpolicy.fractional.L2::" + priority + ".b64 " + r + ", 1.0");
    return r;
  }

  /**
   * Loads 2 or 4 words that no kernel writes while this one runs, with a policy for the second
   * cache and without a place in the first.
   */
  public PtxRegister[] loadVector(int n, PtxRegister address, long offset, PtxRegister policy) {
    PtxRegister[] r = registers(PtxType.U32, checkVector(PtxType.U32, n));
    String op = "ld.global.nc.L1::no_allocate.L2::cache_hint.v" + n + ".u32 ";
    line(op + list(r) + ", [" + address + "+" + offset + "], " + policy);
    return r;
  }

  /** Waits for all threads of the block. */
  public void barrier() {
    line("bar.sync 0");
  }

  /** Waits for all lanes of the warp; their accesses do not move past it. */
  public void warpBarrier() {
    line("bar.warp.sync " + ALL);
  }

  /** Ends the thread. */
  public void exit() {
    line("ret");
  }

  /** Runs a block where the condition holds. */
  public void when(PtxRegister condition, Runnable then) {
    String end = label();
    line("@!" + condition + " bra " + end);
    then.run();
    body.append(end).append(":\n");
  }

  /** Runs a block where the condition does not hold. */
  public void unless(PtxRegister condition, Runnable then) {
    String end = label();
    line("@" + condition + " bra " + end);
    then.run();
    body.append(end).append(":\n");
  }

  /** Counts {@code index} up by {@code step} while it is less than {@code end}. */
  public void loop(PtxRegister index, Object end, Object step, Runnable each) {
    String start = label();
    String done = label();
    body.append(start).append(":\n");
    PtxRegister over = compare("ge", index, end);
    line("@" + over + " bra " + done);
    each.run();
    PtxType t = index.type();
    line("add." + t.text() + " " + index + ", " + index + ", " + operand(t, step));
    line("bra " + start);
    body.append(done).append(":\n");
  }

  private String label() {
    return "L" + labels++;
  }

  private void line(String text) {
    body.append("  ").append(text).append(";\n");
  }

  /** The text of the kernel under a name. */
  public String text(String name) {
    StringBuilder out = new StringBuilder(".visible .entry ").append(name).append("(\n");
    for (int i = 0; i < parameters.size(); i++) {
      out.append("  .param .").append(parameters.get(i).text()).append(" p").append(i);
      out.append(i + 1 < parameters.size() ? ",\n" : "\n");
    }
    out.append(")\n.maxntid ").append(threads).append(", 1, 1\n");
    if (resident > 0) {
      out.append(".minnctapersm ").append(resident).append('\n');
    }
    out.append("{\n");
    used.forEach((type, n) -> {
      String declared = "  .reg ." + type.register() + " %" + type.text() + "_<" + n + ">;\n";
      out.append(declared);
    });
    shared.forEach(s -> out.append("  ").append(s).append('\n'));
    if (overlapping) {
      out.append("  griddepcontrol.launch_dependents;\n");
      out.append(waits ? "" : "  griddepcontrol.wait;\n");
    }
    return out.append(body).append("  ret;\n}\n").toString();
  }

  /** What a module of kernels starts with: PTX 8.0 for compute capability 8.0 and up. */
  public static String header() {
    return header(80);
  }

  /**
   * The header for kernels that need a newer device.
   *
   * @param capability 80 or 90
   */
  public static String header(int capability) {
    if (capability != 80 && capability != 90) {
      throw new IllegalArgumentException("capability: expected=80 or 90 actual=" + capability);
    }
    return ".version 8.0\n.target sm_" + capability + "\n.address_size 64\n";
  }
}
