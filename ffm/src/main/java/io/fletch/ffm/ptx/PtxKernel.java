package io.fletch.ffm.ptx;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * Writes one kernel. Each method appends one instruction and returns its new result register;
 * {@code ...Into} methods and {@link #assign} change a register that exists. Operands are registers
 * or numbers. Conditions and loops nest as Java blocks. Used by one thread.
 *
 * <p>Instructions are those of PTX ISA 7.0 and sm_80, so one text serves every device from there
 * on.
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

  /** The sum over the lanes of a warp, in every lane; the order is fixed. */
  public PtxRegister warpSum(PtxRegister value) {
    PtxRegister r = value;
    for (int mask = 16; mask > 0; mask >>= 1) {
      r = add(r, shuffleXor(r, mask));
    }
    return r;
  }

  /** Waits for all threads of the block. */
  public void barrier() {
    line("bar.sync 0");
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
    out.append(")\n.maxntid ").append(threads).append(", 1, 1\n{\n");
    used.forEach((type, n) -> {
      String declared = "  .reg ." + type.register() + " %" + type.text() + "_<" + n + ">;\n";
      out.append(declared);
    });
    shared.forEach(s -> out.append("  ").append(s).append('\n'));
    return out.append(body).append("  ret;\n}\n").toString();
  }

  /** What a module of kernels starts with: PTX 7.0 for compute capability 8.0 and up. */
  public static String header() {
    return ".version 7.0\n.target sm_80\n.address_size 64\n";
  }
}
