package io.fletch.tests.softgpu;

import static io.fletch.tests.softgpu.Lanes.map;

import io.fletch.tests.softgpu.PtxParser.Register;
import io.fletch.tests.softgpu.PtxParser.Statement;
import io.fletch.tests.softgpu.PtxParser.Variable;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;

/** Turns the statements of a kernel into instructions: what each of them does, lane by lane. */
final class PtxCompiler {
  /** Generic addresses of shared memory start here, where no address of a process is. */
  static final long SHARED_WINDOW = 0x6000_0000_0000_0000L;

  private static final ValueLayout.OfLong LONG =
      ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfInt INT =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private static final VarHandle LONGS =
      MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
  private static final VarHandle INTS =
      MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
  private static final VarHandle SHORTS =
      MethodHandles.byteArrayViewVarHandle(short[].class, ByteOrder.LITTLE_ENDIAN);

  /** All atomic operations of the process, one at a time. */
  static final Object ATOMIC = new Object();

  private static final Set<String> COMPARISONS =
      Set.of(
          "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
          "gtu", "geu", "num", "nan");

  private final PtxParser.Kernel source;
  private final Map<String, Long> globals;
  private final Map<String, Long> sharedAddresses = new HashMap<>();
  private final Map<Long, Integer> constants = new HashMap<>();
  private final Map<String, Integer> specials = new HashMap<>();
  private int slots;
  private int sharedBytes;

  // Of the statement being compiled.
  private Statement s;
  private Instruction in;
  private String[] mods;
  private final List<Integer> reads = new ArrayList<>();
  private final List<Integer> predicateReads = new ArrayList<>();
  private final List<Integer> writes = new ArrayList<>();
  private final List<Integer> predicateWrites = new ArrayList<>();

  private PtxCompiler(
      PtxParser.Kernel source, Map<String, Variable> variables, Map<String, Long> globals) {
    this.source = source;
    this.globals = globals;
    slots = source.registers;
    int at = 0;
    List<Variable> dynamic = new ArrayList<>();
    List<Variable> all = new ArrayList<>(source.shared.values());
    variables.values().stream().filter(v -> v.space().equals(".shared")).forEach(all::add);
    for (Variable v : all) {
      if (v.size() < 0) {
        dynamic.add(v);
      } else {
        at = (at + v.align() - 1) / v.align() * v.align();
        sharedAddresses.put(v.name(), (long) Block.SHARED_BASE + at);
        at += Math.toIntExact(v.size());
      }
    }
    sharedBytes = at;
    for (Variable v : dynamic) {
      sharedAddresses.put(v.name(), (long) Block.SHARED_BASE + (at + 15 & -16));
    }
  }

  /**
   * Compiles a kernel.
   *
   * @param globals addresses of the module's variables
   */
  static CompiledKernel compile(
      PtxParser.Kernel k, Map<String, Variable> variables, Map<String, Long> globals) {
    return new PtxCompiler(k, variables, globals).run();
  }

  private CompiledKernel run() {
    CompiledKernel k = new CompiledKernel();
    k.name = source.name;
    k.code = new Instruction[source.statements.size()];
    for (int i = 0; i < k.code.length; i++) {
      k.code[i] = statement(source.statements.get(i));
    }
    k.slots = slots;
    k.predicates = source.predicates;
    k.parameters = source.parameters;
    k.parameterBytes = source.parameterBytes;
    k.staticShared = sharedBytes;
    k.maxThreads = source.maxThreads;
    k.requiredThreads = source.requiredThreads;
    k.constantSlots = new int[constants.size()];
    k.constants = new long[constants.size()];
    int i = 0;
    for (Map.Entry<Long, Integer> e : constants.entrySet()) {
      k.constants[i] = e.getKey();
      k.constantSlots[i++] = e.getValue();
    }
    k.specials = Map.copyOf(specials);
    return k;
  }

  private PtxException error(String message) {
    return new PtxException(s.line(), message + " in kernel " + source.name + ": " + s.text());
  }

  private PtxException unknown() {
    return error("unknown instruction");
  }

  private Instruction statement(Statement statement) {
    s = statement;
    in = new Instruction();
    in.line = s.line();
    in.text = s.text();
    reads.clear();
    predicateReads.clear();
    writes.clear();
    predicateWrites.clear();
    if (s.guard() != null) {
      in.guard = predicate(s.guard());
      in.negated = s.negated();
    }
    String[] parts = s.opcode().split("\\.(?!:)");
    mods = Arrays.copyOfRange(parts, 1, parts.length);
    in.body = compile(parts[0]);
    in.sources = reads.stream().mapToInt(i -> i).toArray();
    in.predicateSources = predicateReads.stream().mapToInt(i -> i).toArray();
    in.targets = writes.stream().mapToInt(i -> i).toArray();
    in.predicateTargets = predicateWrites.stream().mapToInt(i -> i).toArray();
    return in;
  }

  // Operands.

  private boolean mod(String m) {
    return Arrays.asList(mods).contains(m);
  }

  private String lastMod() {
    if (mods.length == 0) {
      throw error("missing type");
    }
    return mods[mods.length - 1];
  }

  private String op(int i) {
    if (i >= s.operands().size()) {
      throw error("missing operand " + (i + 1));
    }
    return s.operands().get(i);
  }

  private void count(int n) {
    if (s.operands().size() != n) {
      throw error("operands: expected=" + n + " actual=" + s.operands().size());
    }
  }

  private Register register(String name) {
    Register r = s.scope().get(name);
    if (r == null) {
      throw error("undeclared name " + name);
    }
    return r;
  }

  private int predicate(String name) {
    Register r = register(name);
    if (!r.predicate()) {
      throw error("expected a predicate, actual=" + name);
    }
    return r.slot();
  }

  private int readPredicate(String name) {
    int p = predicate(name.startsWith("!") ? name.substring(1).strip() : name);
    predicateReads.add(p);
    return p;
  }

  private int writePredicate(String name) {
    if (name.equals("_")) {
      return source.predicates++;
    }
    int p = predicate(name);
    predicateWrites.add(p);
    return p;
  }

  private static boolean isFloat(String type) {
    return type.startsWith("f") || type.startsWith("bf") || type.equals("tf32");
  }

  private static int bits(String type) {
    return 8 * PtxParser.sizeOf(type);
  }

  private void checkType(Register r, String type, boolean wider) {
    if (r.predicate()) {
      throw error("a predicate as operand of ." + type);
    }
    int have = bits(r.type());
    int want = bits(type);
    if (want < 0) {
      throw error("unknown type ." + type);
    }
    if (have != want && !(wider && have > want)) {
      throw error(
          "type width: register " + r.name() + " is ." + r.type() + ", instruction is ." + type);
    }
    boolean bothTyped = !r.type().startsWith("b") || r.type().startsWith("bf");
    bothTyped &= !type.startsWith("b") || type.startsWith("bf");
    if (bothTyped && have == want && isFloat(r.type()) != isFloat(type)) {
      throw error(
          "type kind: register " + r.name() + " is ." + r.type() + ", instruction is ." + type);
    }
  }

  private int constant(long value) {
    return 32 * constants.computeIfAbsent(value, v -> slots++);
  }

  /** A source operand as the first register of its slot. */
  private int read(String operand, String type, boolean wider) {
    if (PtxParser.isImmediate(operand)) {
      return constant(literal(operand, type));
    }
    if (operand.equals("WARP_SZ")) {
      return constant(32);
    }
    if (operand.startsWith("-") && operand.length() > 1) {
      throw error("unsupported operand " + operand);
    }
    if (Warp.isSpecial(operand)) {
      return 32 * specials.computeIfAbsent(operand, v -> slots++);
    }
    Register r = s.scope().get(operand);
    if (r != null) {
      checkType(r, type, wider);
      reads.add(32 * r.slot());
      return 32 * r.slot();
    }
    Long address = sharedAddresses.get(operand);
    if (address == null) {
      address = globals.get(operand);
    }
    if (address == null) {
      throw error("undeclared name " + operand);
    }
    return constant(address);
  }

  private int read(int i, String type) {
    return read(op(i), type, false);
  }

  private long literal(String t, String type) {
    long v = PtxParser.immediate(t, s.line());
    boolean single = t.startsWith("0f") || t.startsWith("0F") || t.startsWith("-0f");
    boolean decimal = !t.startsWith("0x") && (t.contains(".") || t.contains("e"));
    if (decimal || t.startsWith("0d") || t.startsWith("0D")) {
      if (type.equals("f32")) {
        return Float.floatToRawIntBits((float) Double.longBitsToDouble(v)) & 0xffffffffL;
      }
      if (!type.equals("f64") && !type.equals("b64")) {
        throw error("a floating-point literal as ." + type);
      }
      return v;
    }
    if (isFloat(type) && !single) {
      throw error("an integer literal as ." + type);
    }
    if (single && type.equals("f64")) {
      return Double.doubleToRawLongBits(Float.intBitsToFloat((int) v));
    }
    return v;
  }

  private int write(String operand, String type, boolean wider) {
    if (operand.equals("_")) {
      return 32 * slots++;
    }
    Register r = register(operand);
    checkType(r, type, wider);
    writes.add(32 * r.slot());
    return 32 * r.slot();
  }

  private int write(int i, String type) {
    return write(op(i), type, false);
  }

  private static List<String> vector(String operand) {
    return operand.startsWith("{")
        ? PtxParser.split(operand.substring(1, operand.length() - 1))
        : List.of(operand);
  }

  private int[] readVector(String operand, String type, int n) {
    List<String> v = vector(operand);
    if (v.size() != n) {
      throw error("vector: expected=" + n + " actual=" + v.size());
    }
    return v.stream().mapToInt(o -> read(o, type, false)).toArray();
  }

  private int[] writeVector(String operand, String type, int n) {
    List<String> v = vector(operand);
    if (v.size() != n) {
      throw error("vector: expected=" + n + " actual=" + v.size());
    }
    return v.stream().mapToInt(o -> write(o, type, false)).toArray();
  }

  /** Register slot and offset of {@code [base+offset]}. */
  private record Address(int base, long offset) {}

  private Address address(String operand, boolean shared) {
    if (!operand.startsWith("[") || !operand.endsWith("]")) {
      throw error("expected an address, actual=" + operand);
    }
    String t = operand.substring(1, operand.length() - 1).strip();
    if (t.contains(",")) {
      throw error("unsupported address " + operand);
    }
    int sign = Math.max(t.indexOf('+'), t.indexOf('-', 1));
    long offset = 0;
    String base = t;
    if (sign > 0) {
      String o = t.substring(sign + 1).strip();
      offset = PtxParser.immediate(o, s.line()) * (t.charAt(sign) == '-' ? -1 : 1);
      base = t.substring(0, sign).strip();
    }
    Register r = s.scope().get(base);
    if (r != null) {
      if (bits(r.type()) != 64 && !(shared && bits(r.type()) == 32) || isFloat(r.type())) {
        throw error("an address in a register of ." + r.type());
      }
      reads.add(32 * r.slot());
      if (bits(r.type()) == 32) {
        // Registers keep sign-extended values at times; an address is unsigned.
        return new Address(32 * r.slot(), offset);
      }
      return new Address(32 * r.slot(), offset);
    }
    return new Address(read(base, "b64", false), offset);
  }

  // Lane by lane.

  private static float f(long a) {
    return Float.intBitsToFloat((int) a);
  }

  private static long f(float a) {
    return Float.floatToRawIntBits(a) & 0xffffffffL;
  }

  private static double d(long a) {
    return Double.longBitsToDouble(a);
  }

  private static long d(double a) {
    return Double.doubleToRawLongBits(a);
  }

  private static float flush(float v) {
    return Math.abs(v) < Float.MIN_NORMAL ? Math.copySign(0f, v) : v;
  }

  /**
   * Where integers of a type are in a register.
   *
   * @param unused bits above them
   */
  private record Width(int unused, boolean signed) {
    static Width of(String type) {
      int bits =
          switch (type) {
            case "s8", "u8", "b8" -> 8;
            case "s16", "u16", "b16" -> 16;
            case "s32", "u32", "b32" -> 32;
            default -> 64;
          };
      return new Width(64 - bits, PtxCompiler.signed(type));
    }

    /** The value of an integer. */
    long of(long v) {
      return signed ? v << unused >> unused : v << unused >>> unused;
    }

    int compare(long x, long y) {
      return signed ? Long.compare(of(x), of(y)) : Long.compareUnsigned(of(x), of(y));
    }
  }

  /** The value of an integer of a type. */
  private static long value(String type, long v) {
    return Width.of(type).of(v);
  }

  private static boolean signed(String type) {
    return type.startsWith("s");
  }

  private Instruction.Body compile(String base) {
    return switch (base) {
      case "mov" -> mov();
      case "ld", "ldu" -> load();
      case "st" -> store();
      case "cvt" -> convert();
      case "cvta" -> cvta();
      case "add", "sub", "mul", "div", "rem", "min", "max" -> binary(base);
      case "mad", "fma" -> ternary(base);
      case "and", "or", "xor" -> logic(base);
      case "not", "cnot" -> {
        count(2);
        String t = lastMod();
        if (t.equals("pred")) {
          int a = readPredicate(op(1));
          int d = writePredicate(op(0));
          yield (w, m) -> w.p[d] = w.p[d] & ~m | ~w.p[a] & m;
        }
        int a = read(1, t);
        int d = write(0, t);
        Width n = Width.of(unsigned(t));
        yield base.equals("not") ? map(d, a, v -> ~v) : map(d, a, v -> n.of(v) == 0 ? 1 : 0);
      }
      case "abs", "neg", "ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh" -> unary(base);
      case "shl", "shr" -> {
        count(3);
        String t = lastMod();
        int a = read(1, t);
        int b = read(2, "b32");
        int d = write(0, t);
        int n = bits(t);
        if (base.equals("shl")) {
          yield map(d, a, b, (x, y) -> (y & 0xffffffffL) >= n ? 0 : x << y);
        }
        if (t.equals("u32") || t.equals("b32")) {
          yield map(d, a, b, (x, y) -> (y & 0xffffffffL) >= 32 ? 0 : (x & 0xffffffffL) >>> y);
        }
        Width width = Width.of(t);
        yield signed(t)
            ? map(d, a, b, (x, y) -> width.of(x) >> Math.min(y & 0xffffffffL, 63))
            : map(d, a, b, (x, y) -> (y & 0xffffffffL) >= n ? 0 : width.of(x) >>> y);
      }
      case "shf" -> {
        count(4);
        int a = read(1, "b32");
        int b = read(2, "b32");
        int c = read(3, "b32");
        int d = write(0, "b32");
        boolean left = mod("l");
        boolean wrap = mod("wrap");
        yield map(
            d,
            a,
            b,
            c,
            (x, y, z) -> {
              long v = (y << 32) | (x & 0xffffffffL);
              long n = wrap ? z & 31 : Math.min(z & 0xffffffffL, 32);
              return left ? (n == 32 ? x : v << n >>> 32) : v >>> n;
            });
      }
      case "bfe" -> bitFieldExtract();
      case "bfi" -> {
        count(5);
        String t = lastMod();
        int a = read(1, t);
        int b = read(2, t);
        int c = read(3, "b32");
        int e = read(4, "b32");
        int d = write(0, t);
        int n = bits(t);
        yield (w, mask) -> {
          for (int m = mask; m != 0; m &= m - 1) {
            int l = Integer.numberOfTrailingZeros(m);
            int pos = (int) w.r[c + l] & 0xff;
            int len = (int) w.r[e + l] & 0xff;
            long v = w.r[b + l];
            for (int i = 0; i < len && pos + i < n; i++) {
              long bit = w.r[a + l] >>> i & 1;
              v = v & ~(1L << pos + i) | bit << pos + i;
            }
            w.r[d + l] = v;
          }
        };
      }
      case "prmt" -> permute();
      case "popc" -> {
        count(2);
        String t = lastMod();
        int a = read(1, t);
        int d = write(0, "b32");
        Width n = Width.of(unsigned(t));
        yield map(d, a, v -> Long.bitCount(n.of(v)));
      }
      case "clz" -> {
        count(2);
        String t = lastMod();
        int a = read(1, t);
        int d = write(0, "b32");
        int skip = 64 - bits(t);
        Width n = Width.of(unsigned(t));
        yield map(d, a, v -> Long.numberOfLeadingZeros(n.of(v)) - skip);
      }
      case "brev" -> {
        count(2);
        String t = lastMod();
        int a = read(1, t);
        int d = write(0, t);
        int skip = 64 - bits(t);
        yield map(d, a, v -> Long.reverse(v) >>> skip);
      }
      case "bfind" -> {
        count(2);
        String t = lastMod();
        int a = read(1, t);
        int d = write(0, "b32");
        boolean shift = mod("shiftamt");
        Width n = Width.of(t);
        yield map(
            d,
            a,
            v -> {
              long x = n.of(v);
              x = x < 0 && signed(t) ? ~x : x;
              int bit = 63 - Long.numberOfLeadingZeros(x);
              return bit < 0 ? -1 : shift ? bits(t) - 1 - bit : bit;
            });
      }
      case "lop3" -> {
        count(5);
        int a = read(1, "b32");
        int b = read(2, "b32");
        int c = read(3, "b32");
        int lut = (int) PtxParser.immediate(op(4), s.line());
        int d = write(0, "b32");
        yield map(
            d,
            a,
            b,
            c,
            (x, y, z) -> {
              long v = 0;
              v |= (lut & 1) != 0 ? ~x & ~y & ~z : 0;
              v |= (lut & 2) != 0 ? ~x & ~y & z : 0;
              v |= (lut & 4) != 0 ? ~x & y & ~z : 0;
              v |= (lut & 8) != 0 ? ~x & y & z : 0;
              v |= (lut & 16) != 0 ? x & ~y & ~z : 0;
              v |= (lut & 32) != 0 ? x & ~y & z : 0;
              v |= (lut & 64) != 0 ? x & y & ~z : 0;
              v |= (lut & 128) != 0 ? x & y & z : 0;
              return v;
            });
      }
      case "selp" -> {
        count(4);
        String t = lastMod();
        int a = read(1, t);
        int b = read(2, t);
        int p = readPredicate(op(3));
        boolean not = op(3).startsWith("!");
        int d = write(0, t);
        yield (w, mask) -> {
          int yes = not ? ~w.p[p] : w.p[p];
          for (int m = mask; m != 0; m &= m - 1) {
            int l = Integer.numberOfTrailingZeros(m);
            w.r[d + l] = (yes >>> l & 1) != 0 ? w.r[a + l] : w.r[b + l];
          }
        };
      }
      case "slct" -> {
        count(4);
        String t = mods[mods.length - 2];
        String by = lastMod();
        int a = read(1, t);
        int b = read(2, t);
        int c = read(3, by);
        int d = write(0, t);
        yield by.equals("f32")
            ? map(d, a, b, c, (x, y, z) -> f(z) >= 0 ? x : y)
            : map(d, a, b, c, (x, y, z) -> (int) z >= 0 ? x : y);
      }
      case "setp" -> setPredicate();
      case "set" -> set();
      case "testp" -> {
        count(2);
        String t = lastMod();
        int a = read(1, t);
        int d = writePredicate(op(0));
        String what = mods[0];
        yield test(
            d,
            a,
            v -> {
              double x = t.equals("f64") ? d(v) : f(v);
              double least = t.equals("f64") ? Double.MIN_NORMAL : Float.MIN_NORMAL;
              return switch (what) {
                case "finite" -> Math.abs(x) <= Double.MAX_VALUE;
                case "infinite" -> Double.isInfinite(x);
                case "number" -> !Double.isNaN(x);
                case "notanumber" -> Double.isNaN(x);
                case "normal" -> Math.abs(x) >= least && Math.abs(x) <= Double.MAX_VALUE;
                case "subnormal" -> Math.abs(x) < least && x != 0;
                default -> throw new IllegalArgumentException(what);
              };
            });
      }
      case "copysign" -> {
        count(3);
        String t = lastMod();
        int a = read(1, t);
        int b = read(2, t);
        int d = write(0, t);
        long sign = 1L << bits(t) - 1;
        yield map(d, a, b, (x, y) -> y & ~sign | x & sign);
      }
      case "dp4a" -> {
        count(4);
        String ta = mods[0];
        String tb = mods[1];
        int a = read(1, "b32");
        int b = read(2, "b32");
        int c = read(3, "b32");
        int d = write(0, "b32");
        boolean sa = ta.equals("s32");
        boolean sb = tb.equals("s32");
        yield map(
            d,
            a,
            b,
            c,
            (x, y, z) -> {
              long sum = z;
              for (int i = 0; i < 32; i += 8) {
                long p = sa ? (byte) (x >>> i) : x >>> i & 255;
                sum += p * (sb ? (byte) (y >>> i) : y >>> i & 255);
              }
              return sum;
            });
      }
      case "bra" -> {
        count(1);
        in.kind = Instruction.Kind.BRANCH;
        Integer to = source.labels.get(op(0));
        if (to == null) {
          throw error("unknown label " + op(0));
        }
        in.jump = to;
        yield null;
      }
      case "ret", "exit" -> {
        count(0);
        in.kind = Instruction.Kind.EXIT;
        yield null;
      }
      case "trap" ->
          (w, m) -> {
            throw w.fault(
                GpuFault.LAUNCH_FAILED, Integer.numberOfTrailingZeros(m), "the kernel traps");
          };
      case "bar", "barrier" -> barrier();
      case "shfl" -> shuffle();
      case "vote" -> vote();
      case "activemask" -> {
        int d = write(0, "b32");
        yield (w, m) -> fill(w, d, m, m & 0xffffffffL);
      }
      case "redux" -> redux();
      case "match" -> match();
      case "elect" -> {
        String[] pair = op(0).split("\\|");
        int d = write(pair[0].strip(), "b32", false);
        int p = writePredicate(pair[1].strip());
        warp(1);
        yield (w, m) -> {
          int first = m & -m;
          fill(w, d, m, Integer.numberOfTrailingZeros(m));
          w.p[p] = w.p[p] & ~m | first;
        };
      }
      case "atom" -> atomic(true);
      case "red" -> atomic(false);
      case "membar", "fence" -> (w, m) -> VarHandle.fullFence();
      case "prefetch", "prefetchu", "discard", "applypriority" -> {
        address(op(0), false);
        yield (w, m) -> {};
      }
      case "createpolicy" -> {
        int d = write(0, "b64");
        yield (w, m) -> fill(w, d, m, 0);
      }
      case "nanosleep" -> {
        read(0, "b32");
        yield (w, m) -> w.giveWay();
      }
      case "griddepcontrol" -> {
        count(0);
        if (!mod("wait") && !mod("launch_dependents") || mods.length != 1) {
          throw unknown();
        }
        boolean waits = mod("wait");
        yield (w, m) -> {
          if (waits) {
            w.waited |= m;
          }
        };
      }
      case "setmaxnreg" -> (w, m) -> {};
      case "isspacep" -> {
        int a = read(1, "b64");
        int d = writePredicate(op(0));
        boolean shared = mod("shared");
        yield test(d, a, v -> v >= SHARED_WINDOW == shared);
      }
      case "cp" -> copy();
      case "mbarrier" -> transactionBarrier();
      case "ldmatrix" -> loadMatrix();
      case "stmatrix" -> storeMatrix();
      case "movmatrix" -> moveMatrix();
      case "mma" -> multiply();
      default -> throw unknown();
    };
  }

  private static void fill(Warp w, int d, int mask, long v) {
    for (int m = mask; m != 0; m &= m - 1) {
      w.r[d + Integer.numberOfTrailingZeros(m)] = v;
    }
  }

  private static String unsigned(String t) {
    return "u" + bits(t);
  }

  private interface Test1 {
    boolean f(long v);
  }

  private static Instruction.Body test(int d, int a, Test1 t) {
    return (w, mask) -> {
      int yes = 0;
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        if (t.f(w.r[a + l])) {
          yes |= 1 << l;
        }
      }
      w.p[d] = w.p[d] & ~mask | yes;
    };
  }

  private Instruction.Body mov() {
    count(2);
    String t = lastMod();
    if (t.equals("pred")) {
      int a = readPredicate(op(1));
      int d = writePredicate(op(0));
      return (w, m) -> w.p[d] = w.p[d] & ~m | w.p[a] & m;
    }
    if (op(1).startsWith("{")) {
      List<String> v = vector(op(1));
      int n = v.size();
      int each = bits(t) / n;
      int[] a = readVector(op(1), "b" + each, n);
      int d = write(0, t);
      long mask1 = each == 64 ? -1 : (1L << each) - 1;
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          int l = Integer.numberOfTrailingZeros(m);
          long x = 0;
          for (int i = 0; i < n; i++) {
            x |= (w.r[a[i] + l] & mask1) << i * each;
          }
          w.r[d + l] = x;
        }
      };
    }
    if (op(0).startsWith("{")) {
      int n = vector(op(0)).size();
      int each = bits(t) / n;
      int a = read(1, t);
      int[] d = writeVector(op(0), "b" + each, n);
      long mask1 = (1L << each) - 1;
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          int l = Integer.numberOfTrailingZeros(m);
          long x = w.r[a + l];
          for (int i = 0; i < n; i++) {
            w.r[d[i] + l] = x >>> i * each & mask1;
          }
        }
      };
    }
    int a = read(1, t);
    int d = write(0, t);
    return (w, mask) -> {
      long[] r = w.r;
      if (mask == -1) {
        System.arraycopy(r, a, r, d, 32);
        return;
      }
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        r[d + l] = r[a + l];
      }
    };
  }

  // Memory.

  private enum Space {
    GLOBAL,
    SHARED,
    GENERIC,
    PARAMETER
  }

  private Space memorySpace() {
    for (String m : mods) {
      switch (m) {
        case "global", "const" -> {
          return Space.GLOBAL;
        }
        case "shared", "shared::cta" -> {
          return Space.SHARED;
        }
        case "param" -> {
          return Space.PARAMETER;
        }
        case "local", "shared::cluster", "param::func" -> throw error("unsupported space ." + m);
        default -> {}
      }
    }
    return Space.GENERIC;
  }

  private int vectorLength() {
    return mod("v2") ? 2 : mod("v4") ? 4 : mod("v8") ? 8 : 1;
  }

  private void checkVector(int n, int size) {
    if (n * size > (n == 8 ? 32 : 16)) {
      throw error("vector of more than 16 bytes");
    }
  }

  private void checkMemoryMods() {
    for (String m : mods) {
      boolean known =
          switch (m) {
            case "global", "const", "shared", "shared::cta", "param", "param::entry" -> true;
            case "v2", "v4", "v8", "nc", "volatile", "relaxed", "acquire", "release", "weak" ->
                true;
            case "cta", "cluster", "gpu", "sys", "ca", "cg", "cs", "lu", "cv", "wb", "wt" -> true;
            case "L1::no_allocate", "L1::evict_first", "L1::evict_last", "L1::evict_normal" -> true;
            case "L1::evict_unchanged", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B" -> true;
            case "L2::evict_first", "L2::evict_last", "L2::evict_normal" -> true;
            default -> PtxParser.sizeOf(m) > 0 && m.equals(lastMod());
          };
      if (!known) {
        throw error("unknown modifier ." + m);
      }
    }
  }

  private Instruction.Body load() {
    checkMemoryMods();
    String t = lastMod();
    int size = PtxParser.sizeOf(t);
    if (size <= 0 || t.equals("b128")) {
      throw unknown();
    }
    int n = vectorLength();
    checkVector(n, size);
    Space space = memorySpace();
    List<String> v = vector(op(0));
    if (v.size() != n) {
      throw error("vector: expected=" + n + " actual=" + v.size());
    }
    if (mod("L2::cache_hint")) {
      read(2, "b64");
    } else {
      count(2);
    }
    boolean extend = signed(t);
    boolean constant = mod("nc");
    boolean strong = strong();
    if (space == Space.PARAMETER) {
      return loadParameter(t, size, n, v, extend);
    }
    Address a = address(op(1), space == Space.SHARED);
    int[] d = v.stream().mapToInt(o -> write(o, t, true)).toArray();
    int base = a.base();
    long offset = a.offset();
    int bytes = size * n;
    boolean narrow = narrow(op(1));
    if (space == Space.GLOBAL && size == 4 && n == 1 && !extend) {
      int to = d[0];
      return (w, mask) -> {
        long[] r = w.r;
        for (int m = mask; m != 0; m &= m - 1) {
          int l = Integer.numberOfTrailingZeros(m);
          long at = r[base + l] + offset;
          global(w, l, at, 4);
          read(w, l, at, 4, constant, strong);
          r[to + l] = MemoryMap.ALL.get(INT, at) & 0xffffffffL;
        }
      };
    }
    if (space == Space.SHARED) {
      return (w, mask) -> {
        long[] r = w.r;
        Block block = w.block;
        for (int m = mask; m != 0; m &= m - 1) {
          int l = Integer.numberOfTrailingZeros(m);
          long at = (narrow ? r[base + l] & 0xffffffffL : r[base + l]) + offset;
          int i = shared(w, l, at, bytes);
          checkWritten(w, l, i, bytes);
          if (!strong) {
            block.races.read(w, l, i, bytes);
          }
          for (int e = 0; e < n; e++) {
            r[d[e] + l] = get(block.shared, i + e * size, size, extend);
          }
        }
      };
    }
    return (w, mask) -> {
      long[] r = w.r;
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        long at = (narrow ? r[base + l] & 0xffffffffL : r[base + l]) + offset;
        if (space == Space.SHARED || space == Space.GENERIC && at >= SHARED_WINDOW) {
          int i = shared(w, l, space == Space.SHARED ? at : at - SHARED_WINDOW, bytes);
          checkWritten(w, l, i, bytes);
          if (!strong) {
            w.block.races.read(w, l, i, bytes);
          }
          for (int e = 0; e < n; e++) {
            r[d[e] + l] = get(w.block.shared, i + e * size, size, extend);
          }
        } else {
          global(w, l, at, bytes);
          read(w, l, at, bytes, constant, strong);
          for (int e = 0; e < n; e++) {
            r[d[e] + l] = get(at + e * size, size, extend);
          }
        }
      }
    };
  }

  /** Whether an address is in a 32-bit register, whose upper half means nothing. */
  private boolean narrow(String operand) {
    String t = operand.substring(1, operand.length() - 1).strip();
    int end = 0;
    while (end < t.length()
        && t.charAt(end) != '+'
        && t.charAt(end) != '-'
        && t.charAt(end) != ' ') {
      end++;
    }
    Register r = s.scope().get(t.substring(0, end));
    return r != null && bits(r.type()) == 32;
  }

  private Instruction.Body loadParameter(
      String t, int size, int n, List<String> targets, boolean extend) {
    String text = op(1).substring(1, op(1).length() - 1).strip();
    int plus = text.indexOf('+');
    String name = plus < 0 ? text : text.substring(0, plus).strip();
    int more = plus < 0 ? 0 : (int) PtxParser.immediate(text.substring(plus + 1).strip(), s.line());
    PtxParser.Parameter p =
        source.parameters.stream()
            .filter(q -> q.name().equals(name))
            .findFirst()
            .orElseThrow(() -> error("undeclared parameter " + name));
    if (more < 0 || more + n * size > p.size()) {
      throw error(
          "parameter "
              + name
              + " has "
              + p.size()
              + " bytes: offset="
              + more
              + " size="
              + n * size);
    }
    int at = p.offset() + more;
    if (at % (n * size) != 0) {
      throw error("misaligned parameter");
    }
    int[] d = targets.stream().mapToInt(o -> write(o, t, true)).toArray();
    return (w, mask) -> {
      for (int e = 0; e < n; e++) {
        fill(w, d[e], mask, get(w.block.launch.parameters, at + e * size, size, extend));
      }
    };
  }

  private Instruction.Body store() {
    checkMemoryMods();
    String t = lastMod();
    int size = PtxParser.sizeOf(t);
    if (size <= 0 || t.equals("b128")) {
      throw unknown();
    }
    int n = vectorLength();
    checkVector(n, size);
    Space space = memorySpace();
    if (space == Space.PARAMETER || mod("const")) {
      throw error("a store to read-only memory");
    }
    Address a = address(op(0), space == Space.SHARED);
    List<String> v = vector(op(1));
    if (v.size() != n) {
      throw error("vector: expected=" + n + " actual=" + v.size());
    }
    int[] x = v.stream().mapToInt(o -> read(o, t, true)).toArray();
    boolean strong = strong();
    int base = a.base();
    long offset = a.offset();
    int bytes = size * n;
    boolean narrow = narrow(op(0));
    return (w, mask) -> {
      long[] r = w.r;
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        long at = (narrow ? r[base + l] & 0xffffffffL : r[base + l]) + offset;
        if (space == Space.SHARED || space == Space.GENERIC && at >= SHARED_WINDOW) {
          int i = shared(w, l, space == Space.SHARED ? at : at - SHARED_WINDOW, bytes);
          GpuFault race = strong ? null : w.block.races.write(w, l, i, bytes, false);
          for (int e = 0; e < n; e++) {
            if (race != null
                && get(w.block.shared, i + e * size, size, false)
                    != value(unsigned(t), r[x[e] + l])) {
              throw race;
            }
            put(w.block.shared, i + e * size, size, r[x[e] + l]);
          }
          markWritten(w, i, bytes);
        } else {
          global(w, l, at, bytes);
          Races races = w.block.launch.races;
          synchronized (races.lock(at)) {
            GpuFault race = strong ? null : races.write(w, l, at, bytes, false);
            for (int e = 0; e < n; e++) {
              if (race != null
                  && get(at + e * size, size, false) != value(unsigned(t), r[x[e] + l])) {
                throw race;
              }
              put(at + e * size, size, r[x[e] + l]);
            }
          }
        }
      }
    };
  }

  /** Whether an access is of those by which threads order each other. */
  private boolean strong() {
    return mod("volatile") || mod("relaxed") || mod("acquire") || mod("release");
  }

  private static void unless(GpuFault race) {
    if (race != null) {
      throw race;
    }
  }

  private static void read(Warp w, int lane, long at, int bytes, boolean constant, boolean strong) {
    if (constant) {
      w.block.launch.races.readConstant(w, lane, at, bytes);
    } else if (!strong) {
      w.block.launch.races.read(w, lane, at, bytes);
    }
  }

  /** Checks an access to global memory. */
  private static void global(Warp w, int lane, long at, int bytes) {
    if ((at & bytes - 1) != 0) {
      throw w.fault(
          GpuFault.MISALIGNED,
          lane,
          "misaligned: address=0x" + Long.toHexString(at) + " bytes=" + bytes);
    }
    if (at < w.low || at + bytes > w.high) {
      long[] range = w.block.launch.memory.find(at);
      if (range == null || at + bytes > range[1]) {
        throw w.fault(
            GpuFault.ILLEGAL_ADDRESS,
            lane,
            "out of bounds: address=0x"
                + Long.toHexString(at)
                + " bytes="
                + bytes
                + w.block.launch.memory.near(at));
      }
      w.low = range[0];
      w.high = range[1];
    }
  }

  /** Checks an access to shared memory; its index. */
  private static int shared(Warp w, int lane, long at, int bytes) {
    if ((at & bytes - 1) != 0) {
      throw w.fault(
          GpuFault.MISALIGNED,
          lane,
          "misaligned: shared address=0x" + Long.toHexString(at) + " bytes=" + bytes);
    }
    long i = at - Block.SHARED_BASE;
    if (i < 0 || i + bytes > w.block.shared.length) {
      throw w.fault(
          GpuFault.ILLEGAL_ADDRESS,
          lane,
          "out of bounds: shared offset=" + i + " bytes=" + bytes + " of " + w.block.shared.length);
    }
    return (int) i;
  }

  private static void checkWritten(Warp w, int lane, int i, int bytes) {
    byte[] written = w.block.sharedWritten;
    boolean all =
        switch (bytes) {
          case 1 -> written[i] != 0;
          case 2 -> (short) SHORTS.get(written, i) == 0x0101;
          case 4 -> (int) INTS.get(written, i) == 0x01010101;
          default -> {
            boolean yes = true;
            for (int b = i; b < i + bytes; b += 8) {
              yes &= (long) LONGS.get(written, b) == 0x0101010101010101L;
            }
            yield yes;
          }
        };
    if (!all) {
      throw w.fault(
          GpuFault.LAUNCH_FAILED,
          lane,
          "reads shared memory that was not written, or whose copy was not waited for: offset="
              + i);
    }
  }

  private static void markWritten(Warp w, int i, int bytes) {
    Arrays.fill(w.block.sharedWritten, i, i + bytes, (byte) 1);
  }

  private static long get(byte[] a, int i, int size, boolean extend) {
    return switch (size) {
      case 1 -> extend ? a[i] : a[i] & 0xff;
      case 2 -> extend ? (short) SHORTS.get(a, i) : (short) SHORTS.get(a, i) & 0xffff;
      case 4 -> extend ? (int) INTS.get(a, i) : (int) INTS.get(a, i) & 0xffffffffL;
      default -> (long) LONGS.get(a, i);
    };
  }

  private static long get(long at, int size, boolean extend) {
    MemorySegment m = MemoryMap.ALL;
    return switch (size) {
      case 1 -> extend ? m.get(ValueLayout.JAVA_BYTE, at) : m.get(ValueLayout.JAVA_BYTE, at) & 0xff;
      case 2 -> extend ? m.get(SHORT, at) : m.get(SHORT, at) & 0xffff;
      case 4 -> extend ? m.get(INT, at) : m.get(INT, at) & 0xffffffffL;
      default -> m.get(LONG, at);
    };
  }

  private static void put(byte[] a, int i, int size, long v) {
    switch (size) {
      case 1 -> a[i] = (byte) v;
      case 2 -> SHORTS.set(a, i, (short) v);
      case 4 -> INTS.set(a, i, (int) v);
      default -> LONGS.set(a, i, v);
    }
  }

  private static void put(long at, int size, long v) {
    MemorySegment m = MemoryMap.ALL;
    switch (size) {
      case 1 -> m.set(ValueLayout.JAVA_BYTE, at, (byte) v);
      case 2 -> m.set(SHORT, at, (short) v);
      case 4 -> m.set(INT, at, (int) v);
      default -> m.set(LONG, at, v);
    }
  }

  private Instruction.Body cvta() {
    count(2);
    boolean to = mod("to");
    boolean shared = mod("shared");
    String t = lastMod();
    if (!t.equals("u64")) {
      throw unknown();
    }
    int a = read(1, t);
    int d = write(0, t);
    long move = shared ? SHARED_WINDOW : 0;
    return to ? map(d, a, v -> v - move) : map(d, a, v -> v + move);
  }

  // Arithmetic.

  private void onlyMods(String... known) {
    for (int i = 0; i < mods.length - 1; i++) {
      if (!Arrays.asList(known).contains(mods[i])) {
        throw error("unknown modifier ." + mods[i]);
      }
    }
  }

  private Instruction.Body binary(String base) {
    count(3);
    String t = lastMod();
    boolean ftz = mod("ftz");
    boolean sat = mod("sat");
    if (isFloat(t)) {
      onlyMods("rn", "ftz", "sat", "approx", "full", "NaN");
      int a = read(1, t);
      int b = read(2, t);
      int d = write(0, t);
      boolean nan = mod("NaN");
      if (t.equals("f32") && !ftz && !sat) {
        Instruction.Body plain =
            switch (base) {
              case "add" -> map(d, a, b, (x, y) -> f(f(x) + f(y)));
              case "sub" -> map(d, a, b, (x, y) -> f(f(x) - f(y)));
              case "mul" -> map(d, a, b, (x, y) -> f(f(x) * f(y)));
              case "div" -> map(d, a, b, (x, y) -> f(f(x) / f(y)));
              case "min" -> map(d, a, b, (x, y) -> f((float) least(f(x), f(y), nan)));
              case "max" -> map(d, a, b, (x, y) -> f((float) greatest(f(x), f(y), nan)));
              default -> null;
            };
        if (plain != null) {
          return plain;
        }
      }
      Lanes.Two op =
          switch (t) {
            case "f32" ->
                (x, y) -> {
                  float p = ftz ? flush(f(x)) : f(x);
                  float q = ftz ? flush(f(y)) : f(y);
                  float v =
                      switch (base) {
                        case "add" -> p + q;
                        case "sub" -> p - q;
                        case "mul" -> p * q;
                        case "div" -> p / q;
                        case "min" -> (float) least(p, q, nan);
                        case "max" -> (float) greatest(p, q, nan);
                        default -> throw new IllegalArgumentException(base);
                      };
                  v = ftz ? flush(v) : v;
                  return f(sat ? saturate(v) : v);
                };
            case "f64" ->
                (x, y) ->
                    d(
                        switch (base) {
                          case "add" -> d(x) + d(y);
                          case "sub" -> d(x) - d(y);
                          case "mul" -> d(x) * d(y);
                          case "div" -> d(x) / d(y);
                          case "min" -> least(d(x), d(y), nan);
                          case "max" -> greatest(d(x), d(y), nan);
                          default -> throw new IllegalArgumentException(base);
                        });
            default -> small(t, (x, y, z) -> half(base, x, y, nan, sat))::two;
          };
      if (base.equals("rem") || t.startsWith("f16") && base.equals("div")) {
        throw unknown();
      }
      return map(d, a, b, op);
    }
    onlyMods("lo", "hi", "wide", "sat");
    if (PtxParser.sizeOf(t) < 2 || t.startsWith("b")) {
      throw unknown();
    }
    if (base.equals("mul")) {
      return multiplyIntegers(t);
    }
    int a = read(1, t);
    int b = read(2, t);
    int d = write(0, t);
    if (sat) {
      if (!t.equals("s32")) {
        throw unknown();
      }
      return base.equals("add")
          ? map(d, a, b, (x, y) -> clamp((long) (int) x + (int) y, "s32"))
          : map(d, a, b, (x, y) -> clamp((long) (int) x - (int) y, "s32"));
    }
    boolean sg = signed(t);
    Width n = Width.of(t);
    return switch (base) {
      case "add" -> map(d, a, b, (x, y) -> x + y);
      case "sub" -> map(d, a, b, (x, y) -> x - y);
      case "div" ->
          map(
              d,
              a,
              b,
              (x, y) -> {
                long p = n.of(x);
                long q = n.of(y);
                // Hardware gives all ones.
                return q == 0 ? -1 : sg ? p / q : Long.divideUnsigned(p, q);
              });
      case "rem" ->
          map(
              d,
              a,
              b,
              (x, y) -> {
                long p = n.of(x);
                long q = n.of(y);
                return q == 0 ? p : sg ? p % q : Long.remainderUnsigned(p, q);
              });
      case "min" -> map(d, a, b, (x, y) -> n.compare(x, y) <= 0 ? x : y);
      case "max" -> map(d, a, b, (x, y) -> n.compare(x, y) >= 0 ? x : y);
      default -> throw unknown();
    };
  }

  private static long clamp(long v, String t) {
    return switch (t) {
      case "s8" -> Math.clamp(v, Byte.MIN_VALUE, Byte.MAX_VALUE);
      case "u8" -> Math.clamp(v, 0, 255);
      case "s16" -> Math.clamp(v, Short.MIN_VALUE, Short.MAX_VALUE);
      case "u16" -> Math.clamp(v, 0, 65535);
      case "s32" -> Math.clamp(v, Integer.MIN_VALUE, Integer.MAX_VALUE);
      case "u32" -> Math.clamp(v, 0, 0xffffffffL);
      default -> v;
    };
  }

  private static double least(double a, double b, boolean nan) {
    if (Double.isNaN(a) || Double.isNaN(b)) {
      return nan ? Double.NaN : Double.isNaN(a) ? b : a;
    }
    return Math.min(a, b);
  }

  private static double greatest(double a, double b, boolean nan) {
    if (Double.isNaN(a) || Double.isNaN(b)) {
      return nan ? Double.NaN : Double.isNaN(a) ? b : a;
    }
    return Math.max(a, b);
  }

  private static float saturate(float v) {
    return Float.isNaN(v) ? 0 : Math.clamp(v, 0f, 1f);
  }

  private interface Small {
    double f(double a, double b, double c);
  }

  private record SmallOp(boolean brain, boolean packed, Small f) {
    private double get(long v) {
      return brain ? Half.bf16(v) : Half.f16(v);
    }

    private long put(double v) {
      return brain ? Half.toBf16(v) : Half.toF16(v);
    }

    long three(long x, long y, long z) {
      long low = put(f.f(get(x & 0xffff), get(y & 0xffff), get(z & 0xffff)));
      if (!packed) {
        return low;
      }
      long high = put(f.f(get(x >>> 16 & 0xffff), get(y >>> 16 & 0xffff), get(z >>> 16 & 0xffff)));
      return high << 16 | low;
    }

    long two(long x, long y) {
      return three(x, y, 0);
    }

    long one(long x) {
      return three(x, 0, 0);
    }
  }

  private SmallOp small(String t, Small f) {
    return switch (t) {
      case "f16", "f16x2" -> new SmallOp(false, t.endsWith("x2"), f);
      case "bf16", "bf16x2" -> new SmallOp(true, t.endsWith("x2"), f);
      default -> throw unknown();
    };
  }

  private static double half(String base, double x, double y, boolean nan, boolean sat) {
    double v =
        switch (base) {
          case "add" -> x + y;
          case "sub" -> x - y;
          case "mul" -> x * y;
          case "min" -> least(x, y, nan);
          case "max" -> greatest(x, y, nan);
          default -> throw new IllegalArgumentException(base);
        };
    return sat ? saturate((float) v) : v;
  }

  private Instruction.Body multiplyIntegers(String t) {
    int a = read(1, t);
    int b = read(2, t);
    Width n = Width.of(t);
    if (mod("wide")) {
      int d = write(0, t.charAt(0) + Integer.toString(2 * bits(t)));
      return map(d, a, b, (x, y) -> n.of(x) * n.of(y));
    }
    int d = write(0, t);
    if (mod("lo")) {
      return map(d, a, b, (x, y) -> x * y);
    }
    if (mod("hi")) {
      return map(d, a, b, (x, y) -> high(n, x, y));
    }
    throw error("mul needs .lo, .hi or .wide");
  }

  private static long high(Width n, long x, long y) {
    if (n.unused() == 0) {
      return n.signed() ? Math.multiplyHigh(x, y) : Math.unsignedMultiplyHigh(x, y);
    }
    return n.of(x) * n.of(y) >> 64 - n.unused();
  }

  private Instruction.Body ternary(String base) {
    count(4);
    String t = lastMod();
    if (isFloat(t)) {
      onlyMods("rn", "ftz", "sat", "relu");
      int a = read(1, t);
      int b = read(2, t);
      int c = read(3, t);
      int d = write(0, t);
      boolean ftz = mod("ftz");
      boolean sat = mod("sat");
      boolean relu = mod("relu");
      if (t.equals("f32")) {
        if (relu) {
          throw unknown();
        }
        if (!ftz && !sat) {
          return map(d, a, b, c, (x, y, z) -> f(Math.fma(f(x), f(y), f(z))));
        }
        return map(
            d,
            a,
            b,
            c,
            (x, y, z) -> {
              float v =
                  ftz
                      ? flush(Math.fma(flush(f(x)), flush(f(y)), flush(f(z))))
                      : Math.fma(f(x), f(y), f(z));
              return f(sat ? saturate(v) : v);
            });
      }
      if (t.equals("f64")) {
        return map(d, a, b, c, (x, y, z) -> d(Math.fma(d(x), d(y), d(z))));
      }
      SmallOp op =
          small(
              t,
              (x, y, z) -> {
                double v = x * y + z;
                return relu ? (v > 0 ? v : Double.isNaN(v) ? v : 0) : sat ? saturate((float) v) : v;
              });
      return map(d, a, b, c, op::three);
    }
    onlyMods("lo", "hi", "wide");
    if (base.equals("fma") || PtxParser.sizeOf(t) < 2 || t.startsWith("b")) {
      throw unknown();
    }
    int a = read(1, t);
    int b = read(2, t);
    String wide = mod("wide") ? t.charAt(0) + Integer.toString(2 * bits(t)) : t;
    int c = read(3, wide);
    int d = write(0, wide);
    Width n = Width.of(t);
    if (mod("wide")) {
      return map(d, a, b, c, (x, y, z) -> n.of(x) * n.of(y) + z);
    }
    if (mod("lo")) {
      return map(d, a, b, c, (x, y, z) -> x * y + z);
    }
    if (mod("hi")) {
      return map(d, a, b, c, (x, y, z) -> high(n, x, y) + z);
    }
    throw error("mad needs .lo, .hi or .wide");
  }

  private Instruction.Body logic(String base) {
    count(3);
    String t = lastMod();
    if (t.equals("pred")) {
      int a = readPredicate(op(1));
      int b = readPredicate(op(2));
      int d = writePredicate(op(0));
      return (w, m) -> {
        int v =
            switch (base) {
              case "and" -> w.p[a] & w.p[b];
              case "or" -> w.p[a] | w.p[b];
              default -> w.p[a] ^ w.p[b];
            };
        w.p[d] = w.p[d] & ~m | v & m;
      };
    }
    if (!t.startsWith("b") || t.startsWith("bf")) {
      throw unknown();
    }
    int a = read(1, t);
    int b = read(2, t);
    int d = write(0, t);
    return switch (base) {
      case "and" -> map(d, a, b, (x, y) -> x & y);
      case "or" -> map(d, a, b, (x, y) -> x | y);
      default -> map(d, a, b, (x, y) -> x ^ y);
    };
  }

  private Instruction.Body unary(String base) {
    count(2);
    String t = lastMod();
    int a = read(1, t);
    int d = write(0, t);
    boolean ftz = mod("ftz");
    if (!isFloat(t)) {
      if (!signed(t)) {
        throw unknown();
      }
      return switch (base) {
        case "abs" -> {
          Width n = Width.of(t);
          yield map(d, a, v -> Math.abs(n.of(v)));
        }
        case "neg" -> map(d, a, v -> -v);
        default -> throw unknown();
      };
    }
    onlyMods("approx", "ftz", "rn", "full");
    boolean approximate =
        switch (base) {
          case "ex2", "lg2", "sin", "cos", "tanh", "rsqrt" -> true;
          default -> false;
        };
    if (approximate && !mod("approx")) {
      throw error(base + " needs .approx");
    }
    if (t.equals("f32") && !ftz) {
      Instruction.Body plain =
          switch (base) {
            case "abs" -> map(d, a, v -> f(Math.abs(f(v))));
            case "neg" -> map(d, a, v -> f(-f(v)));
            case "rcp" -> map(d, a, v -> f(1 / f(v)));
            case "ex2" -> map(d, a, v -> f((float) Math.pow(2, f(v))));
            default -> null;
          };
      if (plain != null) {
        return plain;
      }
    }
    if (t.equals("f32")) {
      return map(
          d,
          a,
          v -> {
            float x = ftz ? flush(f(v)) : f(v);
            float y =
                switch (base) {
                  case "abs" -> Math.abs(x);
                  case "neg" -> -x;
                  case "rcp" -> 1 / x;
                  case "sqrt" -> (float) Math.sqrt(x);
                  default -> (float) function(base, x);
                };
            return f(ftz ? flush(y) : y);
          });
    }
    if (t.equals("f64")) {
      if (approximate && !base.equals("rsqrt")) {
        throw unknown();
      }
      return map(d, a, v -> d(function(base, d(v))));
    }
    if (base.equals("abs") || base.equals("neg")) {
      long sign = t.endsWith("x2") ? 0x80008000L : 0x8000L;
      return base.equals("abs") ? map(d, a, v -> v & ~sign) : map(d, a, v -> v ^ sign);
    }
    if (!base.equals("ex2") && !base.equals("tanh")) {
      throw unknown();
    }
    return map(d, a, small(t, (x, y, z) -> function(base, x))::one);
  }

  private static double function(String base, double x) {
    return switch (base) {
      case "abs" -> Math.abs(x);
      case "neg" -> -x;
      case "rcp" -> 1 / x;
      case "sqrt" -> Math.sqrt(x);
      case "rsqrt" -> 1 / Math.sqrt(x);
      case "ex2" -> Math.pow(2, x);
      case "lg2" -> Math.log(x) / Math.log(2);
      case "sin" -> Math.sin(x);
      case "cos" -> Math.cos(x);
      case "tanh" -> Math.tanh(x);
      default -> throw new IllegalArgumentException(base);
    };
  }

  private Instruction.Body bitFieldExtract() {
    count(4);
    String t = lastMod();
    int a = read(1, t);
    int b = read(2, "b32");
    int c = read(3, "b32");
    int d = write(0, t);
    int n = bits(t);
    boolean sg = signed(t);
    Width width = Width.of(t);
    return map(
        d,
        a,
        b,
        c,
        (x, y, z) -> {
          int pos = (int) y & 0xff;
          int len = (int) z & 0xff;
          long v = width.of(x);
          int top = Math.min(pos + len - 1, n - 1);
          long sign = sg && len > 0 ? v >>> top & 1 : 0;
          long out = 0;
          for (int i = 0; i < n; i++) {
            long bit = i < len && pos + i < n ? v >>> pos + i & 1 : sign;
            out |= bit << i;
          }
          return out;
        });
  }

  private Instruction.Body permute() {
    count(4);
    if (mods.length != 1) {
      throw error("unsupported mode");
    }
    int a = read(1, "b32");
    int b = read(2, "b32");
    int c = read(3, "b32");
    int d = write(0, "b32");
    return map(
        d,
        a,
        b,
        c,
        (x, y, z) -> {
          long v = y << 32 | x & 0xffffffffL;
          long out = 0;
          for (int i = 0; i < 4; i++) {
            int sel = (int) (z >>> 4 * i) & 15;
            long bits = v >>> 8 * (sel & 7) & 0xff;
            if (sel > 7) {
              bits = (bits & 0x80) != 0 ? 0xff : 0;
            }
            out |= bits << 8 * i;
          }
          return out;
        });
  }

  // Comparisons.

  private static boolean holds(String op, String t, long x, long y) {
    if (isFloat(t)) {
      double a = number(t, x);
      double b = number(t, y);
      boolean nan = Double.isNaN(a) || Double.isNaN(b);
      return switch (op) {
        case "eq" -> a == b;
        case "ne" -> a != b && !nan;
        case "lt" -> a < b;
        case "le" -> a <= b;
        case "gt" -> a > b;
        case "ge" -> a >= b;
        case "equ" -> a == b || nan;
        case "neu" -> a != b;
        case "ltu" -> !(a >= b);
        case "leu" -> !(a > b);
        case "gtu" -> !(a <= b);
        case "geu" -> !(a < b);
        case "num" -> !nan;
        case "nan" -> nan;
        default -> throw new IllegalArgumentException(op);
      };
    }
    int c = Width.of(t).compare(x, y);
    return switch (op) {
      case "eq" -> c == 0;
      case "ne" -> c != 0;
      case "lt", "lo" -> c < 0;
      case "le", "ls" -> c <= 0;
      case "gt", "hi" -> c > 0;
      case "ge", "hs" -> c >= 0;
      default -> throw new IllegalArgumentException(op);
    };
  }

  /** What {@link #holds} says, chosen beforehand. */
  private static Lanes.Test comparison(String op, String t) {
    if (t.equals("f32")) {
      return switch (op) {
        case "eq" -> (x, y) -> f(x) == f(y);
        case "lt" -> (x, y) -> f(x) < f(y);
        case "le" -> (x, y) -> f(x) <= f(y);
        case "gt" -> (x, y) -> f(x) > f(y);
        case "ge" -> (x, y) -> f(x) >= f(y);
        default -> (x, y) -> holds(op, t, x, y);
      };
    }
    if (isFloat(t)) {
      return (x, y) -> holds(op, t, x, y);
    }
    Width n = Width.of(t);
    return switch (op) {
      case "eq" -> (x, y) -> n.of(x) == n.of(y);
      case "ne" -> (x, y) -> n.of(x) != n.of(y);
      case "lt", "lo" -> (x, y) -> n.compare(x, y) < 0;
      case "le", "ls" -> (x, y) -> n.compare(x, y) <= 0;
      case "gt", "hi" -> (x, y) -> n.compare(x, y) > 0;
      default -> (x, y) -> n.compare(x, y) >= 0;
    };
  }

  private static double number(String t, long v) {
    return switch (t) {
      case "f32" -> f(v);
      case "f64" -> d(v);
      case "f16" -> Half.f16(v);
      case "bf16" -> Half.bf16(v);
      default -> throw new IllegalArgumentException(t);
    };
  }

  private String comparison(String t) {
    String op = mods[0];
    boolean onlyFloat =
        switch (op) {
          case "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan" -> true;
          default -> false;
        };
    boolean onlyInteger =
        switch (op) {
          case "lo", "ls", "hi", "hs" -> true;
          default -> false;
        };
    if (!COMPARISONS.contains(op) || (isFloat(t) ? onlyInteger : onlyFloat) || t.endsWith("x2")) {
      throw unknown();
    }
    if (t.startsWith("b") && !t.startsWith("bf") && !op.equals("eq") && !op.equals("ne")) {
      throw error("bits are only equal or not");
    }
    return op;
  }

  private Instruction.Body setPredicate() {
    String t = lastMod();
    String op = comparison(t);
    boolean ftz = mod("ftz");
    String join = mod("and") ? "and" : mod("or") ? "or" : mod("xor") ? "xor" : "";
    onlyMods(op, "and", "or", "xor", "ftz");
    count(join.isEmpty() ? 3 : 4);
    int a = read(1, t);
    int b = read(2, t);
    int c = join.isEmpty() ? -1 : readPredicate(op(3));
    boolean not = !join.isEmpty() && op(3).startsWith("!");
    String[] pair = op(0).split("\\|");
    int d = writePredicate(pair[0].strip());
    int e = pair.length > 1 ? writePredicate(pair[1].strip()) : -1;
    Lanes.Test exact = comparison(op, t);
    Lanes.Tests test =
        Lanes.test(
            a,
            b,
            ftz && t.equals("f32") ? (x, y) -> exact.f(f(flush(f(x))), f(flush(f(y)))) : exact);
    if (c < 0 && e < 0) {
      return (w, mask) -> w.p[d] = w.p[d] & ~mask | test.of(w, mask);
    }
    return (w, mask) -> {
      int yes = test.of(w, mask);
      int no = ~yes;
      if (c >= 0) {
        int z = not ? ~w.p[c] : w.p[c];
        yes = join(join, yes, z);
        no = join(join, no, z);
      }
      w.p[d] = w.p[d] & ~mask | yes & mask;
      if (e >= 0) {
        w.p[e] = w.p[e] & ~mask | no & mask;
      }
    };
  }

  private static int join(String join, int a, int b) {
    return switch (join) {
      case "and" -> a & b;
      case "or" -> a | b;
      default -> a ^ b;
    };
  }

  private Instruction.Body set() {
    count(3);
    String t = lastMod();
    String to = mods[mods.length - 2];
    String op = comparison(t);
    int a = read(1, t);
    int b = read(2, t);
    int d = write(0, to);
    long yes = to.equals("f32") ? f(1f) : -1;
    Lanes.Test test = comparison(op, t);
    return map(d, a, b, (x, y) -> test.f(x, y) ? yes : 0);
  }

  // Conversions.

  private Instruction.Body convert() {
    if (mods.length < 2) {
      throw error("missing type");
    }
    String from = lastMod();
    String to = mods[mods.length - 2];
    if (mod("pack")) {
      return pack();
    }
    String round = "";
    boolean ftz = mod("ftz");
    boolean sat = mod("sat");
    boolean relu = mod("relu");
    for (int i = 0; i < mods.length - 2; i++) {
      switch (mods[i]) {
        case "rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi" -> round = mods[i];
        case "ftz", "sat", "relu", "satfinite" -> {}
        default -> throw error("unknown modifier ." + mods[i]);
      }
    }
    String rounding = round;
    if (to.endsWith("x2")) {
      if (!from.equals("f32") || !rounding.equals("rn") && !rounding.equals("rz")) {
        throw unknown();
      }
      count(3);
      int a = read(1, "f32");
      int b = read(2, "f32");
      int d = write(0, to);
      String one = to.substring(0, to.length() - 2);
      return map(
          d,
          a,
          b,
          (x, y) ->
              narrow(one, relu(f(x), relu), rounding) << 16
                  | narrow(one, relu(f(y), relu), rounding));
    }
    count(2);
    int a = read(op(1), from, true);
    int d = write(op(0), to, true);
    Width source = Width.of(from);
    Width target = Width.of(to);
    if (!isFloat(from) && !isFloat(to)) {
      if (!rounding.isEmpty()) {
        throw error("a rounding between integers");
      }
      if (sat) {
        return map(
            d,
            a,
            v -> {
              long x = source.of(v);
              if (bits(from) == 64 && !signed(from) && x < 0) {
                x = Long.MAX_VALUE;
              }
              return to.equals("u64") ? Math.max(x, 0) : clamp(x, to);
            });
      }
      return map(d, a, v -> target.of(source.of(v)));
    }
    if (isFloat(from) && isFloat(to)) {
      boolean integral = rounding.endsWith("i");
      boolean narrower =
          bits(to) < bits(from)
              || to.equals("tf32")
              || to.equals("bf16") && from.equals("f16")
              || to.equals("f16") && from.equals("bf16");
      if (narrower && rounding.isEmpty()) {
        throw error("a narrowing conversion needs a rounding");
      }
      if (!ftz && !integral && !relu && !sat) {
        Instruction.Body plain =
            switch (from + " " + to + " " + rounding) {
              case "f16 f32 " -> map(d, a, v -> f(Half.f16(v)));
              case "bf16 f32 " -> map(d, a, v -> f(Half.bf16(v)));
              case "f32 f16 rn" -> map(d, a, v -> Half.toF16(f(v)));
              case "f32 bf16 rn" -> map(d, a, v -> Half.toBf16(f(v)));
              default -> null;
            };
        if (plain != null) {
          return plain;
        }
      }
      return map(
          d,
          a,
          v -> {
            double x = number(from, v);
            if (ftz && from.equals("f32")) {
              x = flush((float) x);
            }
            if (integral) {
              x = integral(x, rounding);
            }
            x = relu(x, relu);
            x = sat ? saturate((float) x) : x;
            if (to.equals("f32")) {
              return f(ftz ? flush((float) x) : (float) x);
            }
            return narrow(to, x, rounding);
          });
    }
    if (isFloat(from)) {
      if (!rounding.endsWith("i")) {
        throw error("a conversion to an integer needs .rni, .rzi, .rmi or .rpi");
      }
      return map(
          d,
          a,
          v -> {
            double x = number(from, v);
            if (ftz && from.equals("f32")) {
              x = flush((float) x);
            }
            return integer(to, integral(x, rounding));
          });
    }
    if (rounding.isEmpty()) {
      throw error("a conversion from an integer needs a rounding");
    }
    if (!rounding.equals("rn")) {
      throw error("unsupported rounding ." + rounding);
    }
    boolean unsigned64 = from.equals("u64");
    boolean single = to.equals("f32");
    return map(
        d,
        a,
        v -> {
          long x = source.of(v);
          boolean big = unsigned64 && x < 0;
          if (single) {
            return f(big ? new java.math.BigInteger(Long.toUnsignedString(x)).floatValue() : x);
          }
          double y = big ? new java.math.BigInteger(Long.toUnsignedString(x)).doubleValue() : x;
          return narrow(to, y, rounding);
        });
  }

  private static double relu(double v, boolean on) {
    return on && !Double.isNaN(v) ? Math.max(v, 0) : v;
  }

  private static double integral(double x, String rounding) {
    return switch (rounding) {
      case "rni" -> Math.rint(x);
      case "rzi" -> x < 0 ? Math.ceil(x) : Math.floor(x);
      case "rmi" -> Math.floor(x);
      case "rpi" -> Math.ceil(x);
      default -> throw new IllegalArgumentException(rounding);
    };
  }

  /** Out of range becomes the nearest; not a number becomes 0 as on hardware of these targets. */
  private static long integer(String to, double x) {
    if (Double.isNaN(x)) {
      return to.endsWith("64") ? Long.MIN_VALUE : 0;
    }
    if (to.equals("u64")) {
      return x <= 0
          ? 0
          : x >= 0x1p64 ? -1 : x < 0x1p63 ? (long) x : (long) (x - 0x1p63) ^ Long.MIN_VALUE;
    }
    return clamp((long) x, to);
  }

  private static long narrow(String to, double x, String rounding) {
    boolean zero = rounding.equals("rz");
    return switch (to) {
      case "f16" -> zero ? Half.towardsZeroF16(x) : Half.toF16(x);
      case "bf16" -> zero ? Half.towardsZeroBf16(x) : Half.toBf16(x);
      case "f64" -> d(x);
      case "f32" -> f((float) x);
      case "tf32" -> {
        int b = Float.floatToRawIntBits((float) x);
        yield Float.isFinite((float) x) ? (b + 0x1000 & ~0x1fff) & 0xffffffffL : b & 0xffffffffL;
      }
      default -> throw new IllegalArgumentException(to);
    };
  }

  /** {@code cvt.pack.sat.s8.s32.b32 d, a, b, c}: two values in front of the lower half of c. */
  private Instruction.Body pack() {
    boolean third = mods.length == 5;
    String to = mods[2];
    int width = bits(to);
    if (!mod("sat") || !mods[3].equals("s32") || third != (width == 8)) {
      throw unknown();
    }
    count(third ? 4 : 3);
    int a = read(1, "s32");
    int b = read(2, "s32");
    int c = third ? read(3, "b32") : constant(0);
    int d = write(0, third ? "b32" : "b32");
    long one = (1L << width) - 1;
    return map(
        d,
        a,
        b,
        c,
        (x, y, z) ->
            (z << 2 * width | (clamp((int) x, to) & one) << width | clamp((int) y, to) & one)
                & 0xffffffffL);
  }

  // Lanes together.

  private void warp(int operand) {
    in.kind = Instruction.Kind.WARP;
    in.members = read(operand, "b32");
  }

  private Instruction.Body barrier() {
    int first = 0;
    if (mods.length > 0 && mods[0].equals("warp")) {
      in.kind = Instruction.Kind.WARP;
      in.members = read(0, "b32");
      return (w, m) -> {
        if (m == w.live) {
          w.clock++;
        }
      };
    }
    if (mod("cluster")) {
      throw error("unsupported: clusters");
    }
    in.kind = Instruction.Kind.BARRIER;
    if (mod("red")) {
      in.reduction = mod("popc") ? 'p' : mod("and") ? 'a' : 'o';
      in.reduceTarget = in.reduction == 'p' ? write(0, "b32") : writePredicate(op(0));
      String p = s.operands().getLast();
      in.reducePredicate = readPredicate(p);
      in.reduceNegated = p.startsWith("!");
      in.barrier = read(1, "b32");
      in.barrierThreads = s.operands().size() > 3 ? read(2, "b32") : -1;
      return null;
    }
    in.waits = !mod("arrive");
    if (!mod("sync") && !mod("arrive")) {
      throw unknown();
    }
    in.barrier = read(first, "b32");
    in.barrierThreads = s.operands().size() > 1 ? read(1, "b32") : -1;
    if (!in.waits && in.barrierThreads < 0) {
      throw error("bar.arrive needs a thread count");
    }
    return null;
  }

  private Instruction.Body shuffle() {
    count(5);
    if (!mods[0].equals("sync") || !lastMod().equals("b32")) {
      throw unknown();
    }
    String mode = mods[1];
    String[] pair = op(0).split("\\|");
    int a = read(1, "b32");
    int b = read(2, "b32");
    int c = read(3, "b32");
    warp(4);
    int d = write(pair[0].strip(), "b32", false);
    int p = pair.length > 1 ? writePredicate(pair[1].strip()) : -1;
    int kind =
        switch (mode) {
          case "up" -> 0;
          case "down" -> 1;
          case "bfly" -> 2;
          case "idx" -> 3;
          default -> throw unknown();
        };
    return (w, mask) -> {
      long[] r = w.r;
      long[] out = w.out;
      int inside = 0;
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        int by = (int) r[b + l] & 31;
        int clampBits = (int) r[c + l];
        int cval = clampBits & 31;
        int seg = clampBits >> 8 & 31;
        int min = l & seg;
        int max = min | cval & ~seg;
        int from =
            switch (kind) {
              case 0 -> l - by;
              case 1 -> l + by;
              case 2 -> l ^ by;
              default -> min | by & ~seg;
            };
        boolean ok = kind == 0 ? from >= max : from <= max;
        from = ok ? from : l;
        if ((mask >>> from & 1) == 0) {
          throw w.fault(
              GpuFault.LAUNCH_FAILED, l, "reads lane " + from + " that does not take part");
        }
        inside |= ok ? 1 << l : 0;
        out[l] = r[a + from];
      }
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        r[d + l] = out[l];
      }
      if (p >= 0) {
        w.p[p] = w.p[p] & ~mask | inside;
      }
    };
  }

  private Instruction.Body vote() {
    count(3);
    if (!mods[0].equals("sync")) {
      throw unknown();
    }
    int a = readPredicate(op(1));
    boolean not = op(1).startsWith("!");
    warp(2);
    if (mod("ballot")) {
      int d = write(0, "b32");
      return (w, m) -> fill(w, d, m, ((not ? ~w.p[a] : w.p[a]) & m) & 0xffffffffL);
    }
    int d = writePredicate(op(0));
    String mode = mods[1];
    return (w, m) -> {
      int yes = (not ? ~w.p[a] : w.p[a]) & m;
      boolean v =
          switch (mode) {
            case "all" -> yes == m;
            case "any" -> yes != 0;
            case "uni" -> yes == m || yes == 0;
            default -> throw new IllegalArgumentException(mode);
          };
      w.p[d] = w.p[d] & ~m | (v ? m : 0);
    };
  }

  private Instruction.Body redux() {
    count(3);
    String t = lastMod();
    String mode = mods[1];
    if (bits(t) != 32 || isFloat(t)) {
      throw unknown();
    }
    int a = read(1, t);
    warp(2);
    int d = write(0, t);
    Width n = Width.of(t);
    return (w, mask) -> {
      long v = w.r[a + Integer.numberOfTrailingZeros(mask)];
      for (int m = mask & mask - 1; m != 0; m &= m - 1) {
        long x = w.r[a + Integer.numberOfTrailingZeros(m)];
        v =
            switch (mode) {
              case "add" -> v + x;
              case "min" -> n.compare(v, x) <= 0 ? v : x;
              case "max" -> n.compare(v, x) >= 0 ? v : x;
              case "and" -> v & x;
              case "or" -> v | x;
              case "xor" -> v ^ x;
              default -> throw new IllegalArgumentException(mode);
            };
      }
      fill(w, d, mask, v);
    };
  }

  private Instruction.Body match() {
    count(3);
    String t = lastMod();
    if (!mods[0].equals("any")) {
      throw unknown();
    }
    int a = read(1, t);
    warp(2);
    int d = write(0, "b32");
    Width n = Width.of(unsigned(t));
    return (w, mask) -> {
      long[] out = new long[32];
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        long own = n.of(w.r[a + l]);
        for (int k = mask; k != 0; k &= k - 1) {
          int o = Integer.numberOfTrailingZeros(k);
          out[l] |= n.of(w.r[a + o]) == own ? 1L << o : 0;
        }
      }
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        w.r[d + l] = out[l];
      }
    };
  }

  private Instruction.Body atomic(boolean returns) {
    String t = lastMod();
    int size = PtxParser.sizeOf(t);
    Space space = memorySpace();
    int first = returns ? 1 : 0;
    String op = "";
    for (String m : mods) {
      switch (m) {
        case "add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec" -> op = m;
        default -> {}
      }
    }
    if (op.isEmpty() || size < 4 && !t.equals("b16") || vectorLength() > 1) {
      throw unknown();
    }
    Address a = address(op(first), space == Space.SHARED);
    boolean narrow = narrow(op(first));
    int b = read(first + 1, t);
    int c = op.equals("cas") ? read(first + 2, t) : b;
    int d = returns ? write(0, t) : -1;
    String operation = op;
    return (w, mask) -> {
      synchronized (ATOMIC) {
        for (int m = mask; m != 0; m &= m - 1) {
          int l = Integer.numberOfTrailingZeros(m);
          long base = narrow ? w.r[a.base() + l] & 0xffffffffL : w.r[a.base() + l];
          long at = base + a.offset();
          boolean inShared = space == Space.SHARED || space == Space.GENERIC && at >= SHARED_WINDOW;
          long old;
          int i = 0;
          if (inShared) {
            i = shared(w, l, space == Space.SHARED ? at : at - SHARED_WINDOW, size);
            checkWritten(w, l, i, size);
            unless(w.block.races.write(w, l, i, size, true));
            old = get(w.block.shared, i, size, false);
          } else {
            global(w, l, at, size);
            unless(w.block.launch.races.write(w, l, at, size, true));
            old = get(at, size, false);
          }
          long x = w.r[b + l];
          long y = w.r[c + l];
          long v = combine(operation, t, old, x, y);
          if (inShared) {
            put(w.block.shared, i, size, v);
          } else {
            put(at, size, v);
          }
          if (d >= 0) {
            w.r[d + l] = old;
          }
        }
      }
    };
  }

  private long combine(String op, String t, long old, long x, long y) {
    if (isFloat(t) && !op.equals("exch") && !op.equals("cas")) {
      boolean add = op.equals("add");
      return switch (t) {
        case "f32" -> f(add ? f(old) + f(x) : (float) half(op, f(old), f(x), false, false));
        case "f64" -> d(half(op, d(old), d(x), false, false));
        default -> small(t, (p, q, z) -> half(op, p, q, false, false)).two(old, x);
      };
    }
    Width n = Width.of(t);
    return switch (op) {
      case "add" -> old + x;
      case "min" -> n.compare(old, x) <= 0 ? old : x;
      case "max" -> n.compare(old, x) >= 0 ? old : x;
      case "and" -> old & x;
      case "or" -> old | x;
      case "xor" -> old ^ x;
      case "exch" -> x;
      case "cas" -> value(unsigned(t), old) == value(unsigned(t), x) ? y : old;
      case "inc" -> n.compare(old, x) >= 0 ? 0 : old + 1;
      case "dec" -> n.of(old) == 0 || n.compare(old, x) > 0 ? x : old - 1;
      default -> throw new IllegalArgumentException(op);
    };
  }

  // Asynchronous copies.

  private long at(Warp w, int lane, Address a, boolean narrow) {
    long base = w.r[a.base() + lane];
    return (narrow ? base & 0xffffffffL : base) + a.offset();
  }

  private Instruction.Body copy() {
    if (mods.length > 1 && mods[0].equals("async") && mods[1].equals("bulk")) {
      return copyBulk();
    }
    if (!mods[0].equals("async")) {
      throw unknown();
    }
    if (mod("commit_group")) {
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          w.commitCopies(Integer.numberOfTrailingZeros(m));
        }
      };
    }
    if (mod("wait_group") || mod("wait_all")) {
      int keep = mod("wait_all") ? -1 : (int) PtxParser.immediate(op(0), s.line());
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          w.waitCopies(Integer.numberOfTrailingZeros(m), keep);
        }
      };
    }
    if (mod("mbarrier")) {
      Address a = address(op(0), true);
      boolean narrow = narrow(op(0));
      boolean noinc = mod("noinc");
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          int l = Integer.numberOfTrailingZeros(m);
          Block.TransactionBarrier b = transaction(w, l, at(w, l, a, narrow));
          w.waitCopies(l, -1);
          if (noinc) {
            if (--b.pending < 0) {
              throw w.fault(GpuFault.LAUNCH_FAILED, l, "more arrivals than the mbarrier expects");
            }
            b.complete();
          }
        }
      };
    }
    boolean all = mod("ca");
    if (!all && !mod("cg") || !mod("global") || !mod("shared") && !mod("shared::cta")) {
      throw unknown();
    }
    int operands = s.operands().size() - (mod("L2::cache_hint") ? 1 : 0);
    int bytes = (int) PtxParser.immediate(op(2), s.line());
    if (bytes != 16 && (!all || bytes != 4 && bytes != 8)) {
      throw error("copy size: actual=" + bytes);
    }
    Address to = address(op(0), true);
    Address from = address(op(1), false);
    boolean narrow = narrow(op(0));
    int size = operands > 3 ? read(op(3), "b32", false) : constant(bytes);
    return (w, mask) -> {
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        int i = shared(w, l, at(w, l, to, narrow), bytes);
        long source0 = at(w, l, from, false);
        int n = (int) w.r[size + l];
        if (n < 0 || n > bytes) {
          throw w.fault(GpuFault.LAUNCH_FAILED, l, "source size out of range: " + n);
        }
        if ((source0 & bytes - 1) != 0) {
          throw w.fault(
              GpuFault.MISALIGNED, l, "misaligned: address=0x" + Long.toHexString(source0));
        }
        if (n > 0) {
          range(w, l, source0, n);
          w.block.launch.races.read(w, l, source0, n);
        }
        unless(w.block.races.write(w, l, i, bytes, false));
        Arrays.fill(w.block.sharedWritten, i, i + bytes, (byte) 0);
        Block block = w.block;
        w.startCopy(
            l,
            () -> {
              for (int k = 0; k < bytes; k++) {
                block.shared[i + k] = k < n ? (byte) get(source0 + k, 1, false) : 0;
              }
              Arrays.fill(block.sharedWritten, i, i + bytes, (byte) 1);
              block.races.arrive(w, l, i, bytes);
            });
      }
    };
  }

  /** Checks a range of global memory of any length. */
  private static void range(Warp w, int lane, long at, long bytes) {
    long[] r = w.block.launch.memory.find(at);
    if (r == null || at + bytes > r[1]) {
      throw w.fault(
          GpuFault.ILLEGAL_ADDRESS,
          lane,
          "out of bounds: address=0x"
              + Long.toHexString(at)
              + " bytes="
              + bytes
              + w.block.launch.memory.near(at));
    }
  }

  private Instruction.Body copyBulk() {
    if (mod("prefetch")) {
      if (!mod("L2") || !mod("global")) {
        throw unknown();
      }
      Address from = address(op(0), false);
      int size = read(1, "b32");
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          int l = Integer.numberOfTrailingZeros(m);
          long src = at(w, l, from, false);
          int n = (int) w.r[size + l];
          if (((src | n) & 15) != 0 || n < 0) {
            throw w.fault(
                GpuFault.MISALIGNED,
                l,
                "bulk prefetch not in 16-byte units: from=" + src + " bytes=" + n);
          }
          if (n > 0) {
            range(w, l, src, n);
          }
        }
      };
    }
    if (mod("commit_group")) {
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          w.commitCopies(Integer.numberOfTrailingZeros(m));
        }
      };
    }
    if (mod("wait_group")) {
      int keep = (int) PtxParser.immediate(op(0), s.line());
      return (w, mask) -> {
        for (int m = mask; m != 0; m &= m - 1) {
          w.waitCopies(Integer.numberOfTrailingZeros(m), keep);
        }
      };
    }
    boolean toShared = mods[2].startsWith("shared::") && mods[3].equals("global");
    if (mod("tensor") || !toShared || !mod("mbarrier::complete_tx::bytes")) {
      throw error("unsupported bulk copy");
    }
    Address to = address(op(0), true);
    Address from = address(op(1), false);
    int size = read(2, "b32");
    Address mbar = address(op(3), true);
    boolean narrow = narrow(op(0));
    boolean narrowBar = narrow(op(3));
    return (w, mask) -> {
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        int n = (int) w.r[size + l];
        long dst = at(w, l, to, narrow);
        long src = at(w, l, from, false);
        if (((dst | src | n) & 15) != 0 || n < 0) {
          throw w.fault(
              GpuFault.MISALIGNED,
              l,
              "bulk copy not in 16-byte units: to=" + dst + " from=" + src + " bytes=" + n);
        }
        Block.TransactionBarrier b = transaction(w, l, at(w, l, mbar, narrowBar));
        if (n == 0) {
          continue;
        }
        range(w, l, src, n);
        long i = dst - Block.SHARED_BASE;
        if (i < 0 || i + n > w.block.shared.length) {
          throw w.fault(
              GpuFault.ILLEGAL_ADDRESS,
              l,
              "out of bounds: shared offset=" + i + " bytes=" + n + " of " + w.block.shared.length);
        }
        int first = (int) i;
        for (int at = 0; at < n; at += 16) {
          w.block.launch.races.read(w, l, src + at, 16);
        }
        unless(w.block.races.write(w, l, first, n, false));
        Arrays.fill(w.block.sharedWritten, first, first + n, (byte) 0);
        Block block = w.block;
        b.copies.add(() -> {
          MemorySegment.copy(MemoryMap.ALL, ValueLayout.JAVA_BYTE, src, block.shared, first, n);
          Arrays.fill(block.sharedWritten, first, first + n, (byte) 1);
          block.races.forget(first, n);
          b.bytes -= n;
          b.complete();
        });
      }
    };
  }

  private Block.TransactionBarrier transaction(Warp w, int lane, long at) {
    int i = shared(w, lane, at, 8);
    Block.TransactionBarrier b = w.block.transactions.get(i);
    if (b == null) {
      throw w.fault(
          GpuFault.LAUNCH_FAILED, lane, "no mbarrier was initialised here: shared offset=" + i);
    }
    return b;
  }

  private Instruction.Body transactionBarrier() {
    String what = mods[0];
    switch (what) {
      case "init" -> {
        Address a = address(op(0), true);
        boolean narrow = narrow(op(0));
        int n = read(1, "b32");
        return (w, mask) -> {
          for (int m = mask; m != 0; m &= m - 1) {
            int l = Integer.numberOfTrailingZeros(m);
            int i = shared(w, l, at(w, l, a, narrow), 8);
            Block.TransactionBarrier b = new Block.TransactionBarrier(w.block);
            b.expected = (int) w.r[n + l];
            b.pending = b.expected;
            if (b.expected < 1) {
              throw w.fault(GpuFault.LAUNCH_FAILED, l, "mbarrier count: " + b.expected);
            }
            w.block.transactions.put(i, b);
          }
        };
      }
      case "inval" -> {
        Address a = address(op(0), true);
        boolean narrow = narrow(op(0));
        return (w, mask) -> {
          for (int m = mask; m != 0; m &= m - 1) {
            int l = Integer.numberOfTrailingZeros(m);
            long at = at(w, l, a, narrow);
            transaction(w, l, at);
            w.block.transactions.remove((int) (at - Block.SHARED_BASE));
          }
        };
      }
      case "arrive", "expect_tx", "arrive_drop" -> {
        if (what.equals("arrive_drop")) {
          throw unknown();
        }
        boolean state = what.equals("arrive");
        int first = state && !op(0).startsWith("[") ? 1 : 0;
        Address a = address(op(first), true);
        boolean narrow = narrow(op(first));
        boolean expects = mod("expect_tx") || what.equals("expect_tx");
        int n = s.operands().size() > first + 1 ? read(first + 1, "b32") : constant(1);
        int d = first == 1 ? write(op(0), "b64", false) : -1;
        return (w, mask) -> {
          for (int m = mask; m != 0; m &= m - 1) {
            int l = Integer.numberOfTrailingZeros(m);
            Block.TransactionBarrier b = transaction(w, l, at(w, l, a, narrow));
            int phase = b.phase;
            w.release(b.clocks);
            if (expects) {
              b.bytes += (int) w.r[n + l];
            }
            if (state) {
              b.pending -= expects ? 1 : (int) w.r[n + l];
              if (b.pending < 0) {
                throw w.fault(GpuFault.LAUNCH_FAILED, l, "more arrivals than the mbarrier expects");
              }
              b.complete();
            }
            if (d >= 0) {
              w.r[d + l] = phase;
            }
          }
        };
      }
      case "try_wait", "test_wait" -> {
        Address a = address(op(1), true);
        boolean narrow = narrow(op(1));
        int v = mod("parity") ? read(2, "b32") : read(2, "b64");
        int d = writePredicate(op(0));
        return (w, mask) -> {
          int yes = 0;
          for (int m = mask; m != 0; m &= m - 1) {
            int l = Integer.numberOfTrailingZeros(m);
            Block.TransactionBarrier b = transaction(w, l, at(w, l, a, narrow));
            long phase = w.r[v + l] & 1;
            if (b.phase == phase) {
              b.finishCopies();
            }
            if (b.phase != phase) {
              w.acquire(b.clocks);
              yes |= 1 << l;
            }
          }
          w.p[d] = w.p[d] & ~mask | yes;
          if (yes != mask) {
            w.giveWay();
          }
        };
      }
      default -> throw unknown();
    }
  }

  // Matrices.

  private int matrices() {
    return mod("x4") ? 4 : mod("x2") ? 2 : 1;
  }

  private void allLanes() {
    in.kind = Instruction.Kind.WARP;
    in.members = -1;
  }

  private Instruction.Body loadMatrix() {
    if (!mod("m8n8") || !lastMod().equals("b16")) {
      throw unknown();
    }
    int n = matrices();
    boolean transposed = mod("trans");
    Address a = address(op(1), true);
    boolean narrow = narrow(op(1));
    int[] d = writeVector(op(0), "b32", n);
    allLanes();
    return (w, mask) -> {
      int[] rows = new int[8 * n];
      for (int i = 0; i < rows.length; i++) {
        rows[i] = shared(w, i, at(w, i, a, narrow), 16);
        checkWritten(w, i, rows[i], 16);
        w.block.races.read(w, i, rows[i], 16);
      }
      for (int k = 0; k < n; k++) {
        for (int row = 0; row < 8; row++) {
          int i = rows[8 * k + row];
          for (int column = 0; column < 8; column++) {
            long v = get(w.block.shared, i + 2 * column, 2, false);
            int r = transposed ? column : row;
            int c = transposed ? row : column;
            int at = d[k] + 4 * r + c / 2;
            w.r[at] = (c & 1) == 0 ? w.r[at] & ~0xffffL | v : w.r[at] & 0xffffL | v << 16;
          }
        }
      }
    };
  }

  private Instruction.Body storeMatrix() {
    if (!mod("m8n8") || !lastMod().equals("b16")) {
      throw unknown();
    }
    int n = matrices();
    boolean transposed = mod("trans");
    Address a = address(op(0), true);
    boolean narrow = narrow(op(0));
    int[] x = readVector(op(1), "b32", n);
    allLanes();
    return (w, mask) -> {
      for (int k = 0; k < n; k++) {
        for (int row = 0; row < 8; row++) {
          int to = 8 * k + row;
          int i = shared(w, to, at(w, to, a, narrow), 16);
          unless(w.block.races.write(w, to, i, 16, false));
          for (int column = 0; column < 8; column++) {
            int r = transposed ? column : row;
            int c = transposed ? row : column;
            put(w.block.shared, i + 2 * column, 2, w.r[x[k] + 4 * r + c / 2] >>> 16 * (c & 1));
          }
          markWritten(w, i, 16);
        }
      }
    };
  }

  private Instruction.Body moveMatrix() {
    count(2);
    int a = read(1, "b32");
    int d = write(0, "b32");
    allLanes();
    return (w, mask) -> {
      long[] out = new long[32];
      for (int r = 0; r < 8; r++) {
        for (int c = 0; c < 8; c++) {
          long v = w.r[a + 4 * r + c / 2] >>> 16 * (c & 1) & 0xffff;
          out[4 * c + r / 2] |= v << 16 * (r & 1);
        }
      }
      System.arraycopy(out, 0, w.r, d, 32);
    };
  }

  /** Products of 16 x k and k x 8 matrices that the lanes of a warp hold together. */
  private Instruction.Body multiply() {
    boolean sparse = mods[0].startsWith("sp");
    String shape = null;
    List<String> types = new ArrayList<>();
    boolean rowColumn = mod("row") && mod("col");
    for (String m : mods) {
      if (m.matches("m\\d+n\\d+k\\d+")) {
        shape = m;
      } else if (PtxParser.sizeOf(m) > 0) {
        types.add(m);
      }
    }
    if (shape == null || types.size() != 4 || !rowColumn || !shape.startsWith("m16n8k")) {
      throw unknown();
    }
    int k = Integer.parseInt(shape.substring(6));
    String td = types.get(0);
    String ta = types.get(1);
    String tb = types.get(2);
    String tc = types.get(3);
    int each = 32 / bits(ta);
    int kb = k;
    int ka = sparse ? k / 2 : k;
    int aRegisters = 16 * ka / 32 / each;
    int bRegisters = 8 * kb / 32 / each;
    boolean integers = !isFloat(ta);
    boolean halfSum = td.equals("f16");
    boolean legal =
        switch (ta) {
          case "f16" ->
              tb.equals("f16")
                  && td.equals(tc)
                  && (halfSum || td.equals("f32"))
                  && (sparse ? k == 16 || k == 32 : k == 8 || k == 16);
          case "bf16" ->
              tb.equals("bf16")
                  && td.equals("f32")
                  && tc.equals("f32")
                  && (sparse ? k == 16 || k == 32 : k == 8 || k == 16);
          case "tf32" ->
              tb.equals("tf32")
                  && td.equals("f32")
                  && tc.equals("f32")
                  && !sparse
                  && (k == 4 || k == 8);
          case "s8", "u8" ->
              (tb.equals("s8") || tb.equals("u8"))
                  && td.equals("s32")
                  && tc.equals("s32")
                  && !sparse
                  && (k == 16 || k == 32);
          default -> false;
        };
    if (!legal) {
      throw unknown();
    }
    int cRegisters = halfSum ? 2 : 4;
    int[] a = readVector(op(1), "b32", aRegisters);
    int[] b = readVector(op(2), "b32", bRegisters);
    int[] c = readVector(op(3), halfSum ? "b32" : tc, cRegisters);
    int meta = sparse ? read(4, "b32") : -1;
    int selector = sparse ? (int) PtxParser.immediate(op(5), s.line()) : 0;
    if (sparse && (selector < 0 || selector >= (k == 16 ? 4 : 2))) {
      throw error("sparsity selector out of range: " + selector);
    }
    int[] d = writeVector(op(0), halfSum ? "b32" : td, cRegisters);
    boolean satfinite = mod("satfinite");
    allLanes();
    Elements ea = Elements.of(ta);
    Elements eb = Elements.of(tb);
    return (w, mask) -> {
      long[] registers = w.r;
      double[] ma = w.matrixA;
      double[] mb = w.matrixB;
      double[] sums = w.matrixC;
      if (sparse) {
        Arrays.fill(ma, 0, 16 * kb, 0);
      }
      double[] few = new double[4];
      for (int l = 0; l < 32; l++) {
        int group = l >> 2;
        int tig = l & 3;
        for (int r = 0; r < aRegisters; r++) {
          int row = group + 8 * (r & 1);
          int first = tig * each + 4 * each * (r >> 1);
          if (!sparse) {
            ea.read(registers[a[r] + l], ma, row * kb + first, 1);
            continue;
          }
          ea.read(registers[a[r] + l], few, 0, 1);
          for (int e = 0; e < each; e++) {
            int col = first + e;
            int full = 4 * (col / 2) + index(w, l, meta, selector, kb, row, col);
            if ((col & 1) != 0
                && index(w, l, meta, selector, kb, row, col)
                    == index(w, l, meta, selector, kb, row, col - 1)) {
              throw w.fault(GpuFault.LAUNCH_FAILED, l, "sparse metadata names one place twice");
            }
            ma[row * kb + full] += few[e];
          }
        }
        for (int r = 0; r < bRegisters; r++) {
          eb.read(registers[b[r] + l], mb, (tig * each + 4 * each * r) * 8 + group, 8);
        }
        for (int i = 0; i < 4; i++) {
          int reg = halfSum ? i >> 1 : i;
          long old = registers[c[reg] + l] >>> (halfSum ? 16 * (i & 1) : 0);
          sums[((l >> 2) + 8 * (i >> 1)) * 8 + (l & 3) * 2 + (i & 1)] =
              integers ? (int) old : halfSum ? Half.f16(old & 0xffff) : f(old);
        }
      }
      for (int row = 0; row < 16; row++) {
        addProducts(ma, row * kb, mb, kb, sums, row * 8);
      }
      long[] out = new long[32 * cRegisters];
      for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) {
          int reg = halfSum ? i >> 1 : i;
          int shift = halfSum ? 16 * (i & 1) : 0;
          double sum = sums[((l >> 2) + 8 * (i >> 1)) * 8 + (l & 3) * 2 + (i & 1)];
          long v;
          if (integers) {
            v = satfinite ? clamp((long) sum, "s32") : (int) (long) sum;
          } else {
            v = halfSum ? Half.toF16(sum) : f((float) sum);
          }
          out[32 * reg + l] |= v << shift;
        }
      }
      // The targets may be sources of other lanes or registers.
      for (int reg = 0; reg < cRegisters; reg++) {
        System.arraycopy(out, 32 * reg, w.r, d[reg], 32);
      }
    };
  }

  /** Where the two kept values of four are; as the metadata of a quad's lanes say. */
  private static int index(Warp w, int lane, int meta, int selector, int k, int row, int col) {
    int group = col / 2;
    int quad = lane & ~3;
    int holder;
    int within;
    if (k == 16) {
      holder = quad + selector;
      within = group;
    } else {
      holder = quad + 2 * selector + group / 4;
      within = group % 4;
    }
    int shift = 16 * (row >> 3) + 4 * within + 2 * (col & 1);
    return (int) (w.r[meta + holder] >>> shift) & 3;
  }

  /** Adds a row times a matrix of 8 columns to a row of sums, each from the first product on. */
  private static void addProducts(
      double[] row, int first, double[] matrix, int k, double[] sums, int to) {
    double s0 = sums[to];
    double s1 = sums[to + 1];
    double s2 = sums[to + 2];
    double s3 = sums[to + 3];
    double s4 = sums[to + 4];
    double s5 = sums[to + 5];
    double s6 = sums[to + 6];
    double s7 = sums[to + 7];
    for (int x = 0; x < k; x++) {
      double v = row[first + x];
      s0 += v * matrix[8 * x];
      s1 += v * matrix[8 * x + 1];
      s2 += v * matrix[8 * x + 2];
      s3 += v * matrix[8 * x + 3];
      s4 += v * matrix[8 * x + 4];
      s5 += v * matrix[8 * x + 5];
      s6 += v * matrix[8 * x + 6];
      s7 += v * matrix[8 * x + 7];
    }
    sums[to] = s0;
    sums[to + 1] = s1;
    sums[to + 2] = s2;
    sums[to + 3] = s3;
    sums[to + 4] = s4;
    sums[to + 5] = s5;
    sums[to + 6] = s6;
    sums[to + 7] = s7;
  }

  /** Elements of matrices, as many of them as 32 bits hold. */
  private enum Elements {
    F16,
    BF16,
    TF32,
    S8,
    U8;

    static Elements of(String type) {
      return valueOf(type.toUpperCase(Locale.ROOT));
    }

    /** Puts the elements of a register at places that are a step apart. */
    void read(long v, double[] to, int at, int step) {
      switch (this) {
        case F16 -> {
          to[at] = Half.f16(v);
          to[at + step] = Half.f16(v >>> 16);
        }
        case BF16 -> {
          to[at] = Half.bf16(v);
          to[at + step] = Half.bf16(v >>> 16);
        }
        case TF32 -> to[at] = f(v & 0xffffe000L);
        case S8 -> {
          for (int e = 0; e < 4; e++) {
            to[at + e * step] = (byte) (v >>> 8 * e);
          }
        }
        case U8 -> {
          for (int e = 0; e < 4; e++) {
            to[at + e * step] = v >>> 8 * e & 0xff;
          }
        }
      }
    }
  }
}
