package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.ffm.device.LaunchConfig;
import java.util.Arrays;
import java.util.Random;
import java.util.function.IntBinaryOperator;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

/** Instructions against what Java computes. */
class PtxInterpreterTest {
  private static final String TWO =
      ".reg .b32 %a, %b, %d; .reg .b64 %x; .reg .f32 %fa, %fb, %fd; .reg .pred %p, %q;"
          + ".reg .b16 %h, %g, %e; .reg .b64 %w, %y;";
  private static final String LOAD =
      "add.u64 %x, %in, %o8; ld.global.v2.b32 {%a, %b}, [%x];"
          + "mov.b32 %fa, %a; mov.b32 %fb, %b; add.u64 %x, %out, %o4;\n";
  private static final String STORE = "\nst.global.b32 [%x], %d;";
  private static final String STORE_FLOAT = "\nmov.b32 %d, %fd; st.global.b32 [%x], %d;";
  private static final int PAIRS = 41;

  private static int[] integers() {
    int[] v = new Random(1).ints(2 * PAIRS).toArray();
    int[] edges = {0, 1, -1, Integer.MIN_VALUE, Integer.MAX_VALUE, 31, 32, 33, 255, -128};
    for (int i = 0; i < edges.length; i++) {
      v[i] = edges[i];
      v[2 * PAIRS - 1 - 3 * i] = edges[i];
    }
    return v;
  }

  private static int[] floats() {
    Random random = new Random(2);
    int[] v =
        random
            .doubles(2 * PAIRS, -100, 100)
            .mapToInt(d -> Float.floatToRawIntBits((float) d))
            .toArray();
    float[] edges = {
      0f, -0f, 1f, Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY, 1e-40f, 3e38f, 0.5f
    };
    for (int i = 0; i < edges.length; i++) {
      v[i] = Float.floatToRawIntBits(edges[i]);
      v[2 * PAIRS - 1 - 3 * i] = Float.floatToRawIntBits(edges[i]);
    }
    return v;
  }

  private static void check(
      String instruction, int[] in, String store, IntBinaryOperator expected) {
    int[] out = Bench.run(Bench.kernel(TWO, LOAD + instruction + store), PAIRS, in, PAIRS);
    for (int i = 0; i < PAIRS; i++) {
      int a = in[2 * i];
      int b = in[2 * i + 1];
      assertEquals(
          expected.applyAsInt(a, b),
          out[i],
          instruction + " a=" + Integer.toHexString(a) + " b=" + Integer.toHexString(b));
    }
  }

  private static void integer(String instruction, IntBinaryOperator expected) {
    check(instruction, integers(), STORE, expected);
  }

  private interface FloatOperator {
    float apply(float a, float b);
  }

  private static void floating(String instruction, FloatOperator expected) {
    check(
        instruction,
        floats(),
        STORE_FLOAT,
        (a, b) ->
            Float.floatToRawIntBits(
                expected.apply(Float.intBitsToFloat(a), Float.intBitsToFloat(b))));
  }

  @Test
  void integerArithmetic() {
    integer("add.s32 %d, %a, %b;", Integer::sum);
    integer("sub.u32 %d, %a, %b;", (a, b) -> a - b);
    integer("mul.lo.s32 %d, %a, %b;", (a, b) -> a * b);
    integer("mul.hi.s32 %d, %a, %b;", (a, b) -> (int) ((long) a * b >> 32));
    integer(
        "mul.hi.u32 %d, %a, %b;", (a, b) -> (int) (((a & 0xffffffffL) * (b & 0xffffffffL)) >>> 32));
    integer("mad.lo.s32 %d, %a, %b, 7;", (a, b) -> a * b + 7);
    integer(
        "add.sat.s32 %d, %a, %b;",
        (a, b) -> Math.clamp((long) a + b, Integer.MIN_VALUE, Integer.MAX_VALUE));
    integer("div.s32 %d, %a, 7;", (a, b) -> a / 7);
    integer("div.u32 %d, %a, 7;", (a, b) -> Integer.divideUnsigned(a, 7));
    integer("rem.s32 %d, %a, 7;", (a, b) -> a % 7);
    integer("rem.u32 %d, %a, 7;", (a, b) -> Integer.remainderUnsigned(a, 7));
    integer("min.s32 %d, %a, %b;", Math::min);
    integer("max.u32 %d, %a, %b;", (a, b) -> Integer.compareUnsigned(a, b) > 0 ? a : b);
    integer("abs.s32 %d, %a;", (a, b) -> Math.abs(a));
    integer("neg.s32 %d, %a;", (a, b) -> -a);
    integer(
        "mul.wide.s32 %w, %a, %b; shr.u64 %w, %w, 16; cvt.u32.u64 %d, %w;",
        (a, b) -> (int) ((long) a * b >>> 16));
    integer(
        "mul.wide.u32 %w, %a, %b; shr.s64 %w, %w, 16; cvt.u32.u64 %d, %w;",
        (a, b) -> (int) ((a & 0xffffffffL) * (b & 0xffffffffL) >> 16));
    integer("dp4a.s32.s32 %d, %a, %b, 5;", (a, b) -> dp4a(a, b, true, true) + 5);
    integer("dp4a.u32.s32 %d, %a, %b, 5;", (a, b) -> dp4a(a, b, false, true) + 5);
  }

  private static int dp4a(int a, int b, boolean sa, boolean sb) {
    int sum = 0;
    for (int i = 0; i < 32; i += 8) {
      sum += (sa ? (byte) (a >> i) : a >> i & 255) * (sb ? (byte) (b >> i) : b >> i & 255);
    }
    return sum;
  }

  @Test
  void bits() {
    integer("and.b32 %d, %a, %b;", (a, b) -> a & b);
    integer("or.b32 %d, %a, %b;", (a, b) -> a | b);
    integer("xor.b32 %d, %a, %b;", (a, b) -> a ^ b);
    integer("not.b32 %d, %a;", (a, b) -> ~a);
    integer("lop3.b32 %d, %a, %b, 0x0f0f, 0x6a;", (a, b) -> a & b ^ 0x0f0f);
    integer("shl.b32 %d, %a, %b;", (a, b) -> Integer.compareUnsigned(b, 31) > 0 ? 0 : a << b);
    integer("shr.u32 %d, %a, %b;", (a, b) -> Integer.compareUnsigned(b, 31) > 0 ? 0 : a >>> b);
    integer("shr.s32 %d, %a, %b;", (a, b) -> Integer.compareUnsigned(b, 31) > 0 ? a >> 31 : a >> b);
    integer("shf.l.wrap.b32 %d, %a, %b, 9;", (a, b) -> b << 9 | a >>> 23);
    integer("shf.r.wrap.b32 %d, %a, %b, 9;", (a, b) -> a >>> 9 | b << 23);
    integer("popc.b32 %d, %a;", (a, b) -> Integer.bitCount(a));
    integer("clz.b32 %d, %a;", (a, b) -> Integer.numberOfLeadingZeros(a));
    integer("brev.b32 %d, %a;", (a, b) -> Integer.reverse(a));
    integer("bfind.u32 %d, %a;", (a, b) -> 31 - Integer.numberOfLeadingZeros(a));
    integer("bfe.u32 %d, %a, 5, 7;", (a, b) -> a >>> 5 & 127);
    integer("bfe.s32 %d, %a, 5, 7;", (a, b) -> a << 20 >> 25);
    integer("bfi.b32 %d, %a, %b, 5, 7;", (a, b) -> b & ~(127 << 5) | (a & 127) << 5);
    integer(
        "prmt.b32 %d, %a, %b, 0x7531;",
        (a, b) -> a >>> 8 & 0xff | (a >>> 24) << 8 | (b >>> 8 & 0xff) << 16 | (b >>> 24) << 24);
    integer("prmt.b32 %d, %a, %b, 0xbbbb;", (a, b) -> a >> 31);
    integer("mov.b32 {%h, %g}, %a; mov.b32 %d, {%g, %h};", (a, b) -> Integer.rotateLeft(a, 16));
    integer("mov.b64 %w, {%a, %b}; mov.b64 {%d, _}, %w;", (a, b) -> a);
    integer("mov.b64 %w, {%a, %b}; shr.u64 %w, %w, 32; cvt.u32.u64 %d, %w;", (a, b) -> b);
  }

  @Test
  void comparisons() {
    integer("setp.lt.s32 %p, %a, %b; selp.b32 %d, 1, 0, %p;", (a, b) -> a < b ? 1 : 0);
    integer(
        "setp.lt.u32 %p, %a, %b; selp.b32 %d, %a, %b, %p;",
        (a, b) -> Integer.compareUnsigned(a, b) < 0 ? a : b);
    integer("setp.ge.s32 %p|%q, %a, %b; selp.b32 %d, 1, 0, %q;", (a, b) -> a < b ? 1 : 0);
    integer(
        "setp.gt.s32 %q, %a, 0; setp.gt.and.s32 %p, %b, 0, %q; selp.b32 %d, 1, 0, %p;",
        (a, b) -> a > 0 && b > 0 ? 1 : 0);
    integer(
        "setp.gt.s32 %q, %a, 0; setp.gt.or.s32 %p, %b, 0, !%q; selp.b32 %d, 1, 0, %p;",
        (a, b) -> b > 0 || a <= 0 ? 1 : 0);
    integer(
        "setp.eq.s32 %p, %a, %b; not.pred %q, %p; selp.b32 %d, 1, 0, %q;",
        (a, b) -> a == b ? 0 : 1);
    integer("slct.b32.s32 %d, 3, 4, %a;", (a, b) -> a >= 0 ? 3 : 4);
    integer("set.lt.u32.s32 %d, %a, %b;", (a, b) -> a < b ? -1 : 0);
    integer(
        "mov.b32 %d, 1; setp.ne.s32 %p, %a, 0; @%p mov.b32 %d, 2; @!%p add.u32 %d, %d, 8;",
        (a, b) -> a != 0 ? 2 : 9);
    floating(
        "setp.lt.f32 %p, %fa, %fb; selp.f32 %fd, 0f3f800000, 0f00000000, %p;",
        (a, b) -> a < b ? 1 : 0);
    floating(
        "setp.ltu.f32 %p, %fa, %fb; selp.f32 %fd, 0f3f800000, 0f00000000, %p;",
        (a, b) -> !(a >= b) ? 1 : 0);
    floating(
        "setp.nan.f32 %p, %fa, %fb; selp.f32 %fd, 0f3f800000, 0f00000000, %p;",
        (a, b) -> Float.isNaN(a) || Float.isNaN(b) ? 1 : 0);
    floating(
        "setp.ne.f32 %p, %fa, %fb; selp.f32 %fd, 0f3f800000, 0f00000000, %p;",
        (a, b) -> a < b || a > b ? 1 : 0);
  }

  @Test
  void floats32() {
    floating("add.f32 %fd, %fa, %fb;", (a, b) -> a + b);
    floating("sub.f32 %fd, %fa, %fb;", (a, b) -> a - b);
    floating("mul.rn.f32 %fd, %fa, %fb;", (a, b) -> a * b);
    floating("fma.rn.f32 %fd, %fa, %fb, %fa;", (a, b) -> Math.fma(a, b, a));
    floating("div.rn.f32 %fd, %fa, %fb;", (a, b) -> a / b);
    floating(
        "min.f32 %fd, %fa, %fb;",
        (a, b) -> Float.isNaN(a) ? b : Float.isNaN(b) ? a : Math.min(a, b));
    floating("max.NaN.f32 %fd, %fa, %fb;", (a, b) -> Math.max(a, b));
    floating("neg.f32 %fd, %fa;", (a, b) -> -a);
    floating("abs.f32 %fd, %fa;", (a, b) -> Math.abs(a));
    floating("sqrt.rn.f32 %fd, %fa;", (a, b) -> (float) Math.sqrt(a));
    floating("rcp.approx.f32 %fd, %fa;", (a, b) -> 1 / a);
    floating("rsqrt.approx.f32 %fd, %fa;", (a, b) -> (float) (1 / Math.sqrt(a)));
    floating("ex2.approx.f32 %fd, %fa;", (a, b) -> (float) Math.pow(2, a));
    floating("lg2.approx.f32 %fd, %fa;", (a, b) -> (float) (Math.log(a) / Math.log(2)));
    floating("tanh.approx.f32 %fd, %fa;", (a, b) -> (float) Math.tanh(a));
    floating(
        "add.ftz.f32 %fd, %fa, 0f00000000;", (a, b) -> Math.abs(a) < Float.MIN_NORMAL ? 0f : a);
    floating(
        "add.sat.f32 %fd, %fa, 0f00000000;",
        (a, b) -> Float.isNaN(a) ? 0f : Math.clamp(a + 0f, 0f, 1f));
    floating(
        "copysign.f32 %fd, %fa, %fb;",
        (a, b) ->
            Float.isNaN(b)
                ? Float.intBitsToFloat(
                    Float.floatToRawIntBits(b) & 0x7fffffff
                        | Float.floatToRawIntBits(a) & 0x80000000)
                : Math.copySign(b, a));
  }

  @Test
  void conversions() {
    integer("cvt.rn.f32.s32 %fd, %a; mov.b32 %d, %fd;", (a, b) -> Float.floatToRawIntBits(a));
    integer(
        "cvt.rn.f32.u32 %fd, %a; mov.b32 %d, %fd;",
        (a, b) -> Float.floatToRawIntBits(a & 0xffffffffL));
    integer("cvt.s32.s8 %d, %a;", (a, b) -> (byte) a);
    integer("cvt.u32.u8 %d, %a;", (a, b) -> a & 255);
    integer("cvt.s32.s16 %d, %a;", (a, b) -> (short) a);
    integer("cvt.sat.s8.s32 %d, %a;", (a, b) -> Math.clamp(a, -128, 127));
    integer("cvt.s64.s32 %w, %a; shr.u64 %w, %w, 32; cvt.u32.u64 %d, %w;", (a, b) -> a >> 31);
    integer("cvt.u64.u32 %w, %a; shr.u64 %w, %w, 32; cvt.u32.u64 %d, %w;", (a, b) -> 0);
    integer(
        "cvt.pack.sat.s8.s32.b32 %d, %a, %b, 0x1234;",
        (a, b) ->
            0x12340000 | (Math.clamp(a, -128, 127) & 255) << 8 | Math.clamp(b, -128, 127) & 255);
    check(
        "cvt.rni.s32.f32 %d, %fa;",
        floats(), STORE, (a, b) -> (int) Math.rint(Float.intBitsToFloat(a)));
    check("cvt.rzi.s32.f32 %d, %fa;", floats(), STORE, (a, b) -> (int) Float.intBitsToFloat(a));
    check(
        "cvt.rmi.s32.f32 %d, %fa;",
        floats(), STORE, (a, b) -> (int) Math.floor(Float.intBitsToFloat(a)));
    check(
        "cvt.rzi.u32.f32 %d, %fa;",
        floats(),
        STORE,
        (a, b) -> (int) Math.clamp((long) Float.intBitsToFloat(a), 0, 0xffffffffL));
    floating("cvt.rni.f32.f32 %fd, %fa;", (a, b) -> (float) Math.rint(a));
    check("cvt.rn.f16.f32 %h, %fa; cvt.u32.u16 %d, %h;", floats(), STORE, (a, b) -> f16(a));
    check("cvt.rn.f16x2.f32 %d, %fa, %fb;", floats(), STORE, (a, b) -> f16(a) << 16 | f16(b));
    check("cvt.rn.bf16x2.f32 %d, %fa, %fb;", floats(), STORE, (a, b) -> bf16(a) << 16 | bf16(b));
    check(
        "cvt.rn.f16.f32 %h, %fa; cvt.f32.f16 %fd, %h; mov.b32 %d, %fd;",
        floats(), STORE, (a, b) -> nan(Float.float16ToFloat((short) f16(a))));
  }

  private static int nan(float v) {
    return Float.isNaN(v)
        ? Float.floatToRawIntBits(Float.float16ToFloat((short) 0x7fff))
        : Float.floatToRawIntBits(v);
  }

  private static int f16(int a) {
    float v = Float.intBitsToFloat(a);
    return Float.isNaN(v) ? 0x7fff : Float.floatToFloat16(v) & 0xffff;
  }

  private static int bf16(int a) {
    float v = Float.intBitsToFloat(a);
    return Float.isNaN(v) ? 0x7fff : (a + 0x7fff + (a >>> 16 & 1)) >>> 16;
  }

  @Test
  void packedHalves() {
    for (String t : new String[] {"f16", "bf16"}) {
      String to = "cvt.rn." + t + "x2.f32 %a, %fa, %fb; cvt.rn." + t + "x2.f32 %b, %fb, %fa;";
      check(
          to + "add." + t + "x2 %d, %a, %b;",
          floats(),
          STORE,
          (a, b) -> pair(t, a, b, (x, y) -> x + y));
      check(
          to + "mul." + t + "x2 %d, %a, %b;",
          floats(),
          STORE,
          (a, b) -> pair(t, a, b, (x, y) -> x * y));
      check(
          to + "fma.rn." + t + "x2 %d, %a, %b, %a;",
          floats(),
          STORE,
          (a, b) -> pair(t, a, b, (x, y) -> x * y + x));
    }
  }

  private interface Exact {
    double f(double a, double b);
  }

  private static int pair(String t, int a, int b, Exact e) {
    boolean f16 = t.equals("f16");
    int x = f16 ? f16(a) : bf16(a);
    int y = f16 ? f16(b) : bf16(b);
    float p = f16 ? Float.float16ToFloat((short) x) : Float.intBitsToFloat(x << 16);
    float q = f16 ? Float.float16ToFloat((short) y) : Float.intBitsToFloat(y << 16);
    int high = Float.floatToRawIntBits((float) e.f(p, q));
    int low = Float.floatToRawIntBits((float) e.f(q, p));
    return f16 ? f16(high) << 16 | f16(low) : bf16(high) << 16 | bf16(low);
  }

  @Test
  void loadsAndStoresOfAllWidths() {
    String body =
        """
        add.u64 %x, %in, %o4;
        ld.global.nc.s8 %a, [%x+1];
        ld.global.u16 %h, [%x+2];
        cvt.u32.u16 %b, %h;
        add.s32 %d, %a, %b;
        add.u64 %x, %out, %o4;
        st.global.cs.u16 [%x], %d;
        shr.u32 %d, %d, 16;
        st.global.u8 [%x+2], %d;
        st.global.u8 [%x+3], %d;
        """;
    int[] in = integers();
    int[] out = Bench.run(Bench.kernel(TWO, body), PAIRS, in, PAIRS);
    for (int i = 0; i < PAIRS; i++) {
      int v = (byte) (in[i] >> 8) + (in[i] >>> 16);
      assertEquals(v & 0xffffff | v << 8 & 0xff000000, out[i]);
    }
  }

  @Test
  void divergenceReconverges() {
    // Collatz steps: every lane loops differently often, then all vote.
    String body =
        """
        add.u32 %a, %t, 1;
        mov.u32 %d, 0;
        L:
        setp.eq.u32 %p, %a, 1;
        @%p bra DONE;
        and.b32 %b, %a, 1;
        setp.eq.u32 %q, %b, 0;
        @%q bra EVEN;
        mad.lo.u32 %a, %a, 3, 1;
        bra NEXT;
        EVEN:
        shr.u32 %a, %a, 1;
        NEXT:
        add.u32 %d, %d, 1;
        bra L;
        DONE:
        setp.gt.u32 %p, %d, 10;
        vote.sync.ballot.b32 %b, %p, 0xffffffff;
        popc.b32 %b, %b;
        mad.lo.u32 %d, %b, 1000, %d;
        add.u64 %x, %out, %o4;
        """;
    int[] steps =
        IntStream.range(1, 65)
            .map(n -> {
              int s = 0;
              for (int v = n; v != 1; v = v % 2 == 0 ? v / 2 : 3 * v + 1) {
                s++;
              }
              return s;
            })
            .toArray();
    int[] expected = new int[64];
    for (int i = 0; i < 64; i++) {
      int first = i / 32 * 32;
      expected[i] =
          steps[i]
              + 1000 * (int) Arrays.stream(steps, first, first + 32).filter(s -> s > 10).count();
    }
    assertArrayEquals(expected, Bench.run(Bench.kernel(TWO, body + STORE), 64, new int[1], 64));
  }

  @Test
  void shuffles() {
    for (String mode : new String[] {"bfly", "down", "up", "idx"}) {
      int by = mode.equals("idx") ? 5 : 4;
      String clamp = mode.equals("up") ? "0" : "0x1f";
      String body =
          "mul.lo.u32 %a, %t, 3; mov.b32 %d, -1; shfl.sync."
              + mode
              + ".b32 %d|%p, %a, "
              + by
              + ", "
              + clamp
              + ", 0xffffffff; @!%p add.u32 %d, %d, 1000; add.u64 %x, %out, %o4;";
      int[] expected =
          IntStream.range(0, 32)
              .map(l -> {
                int from =
                    switch (mode) {
                      case "bfly" -> l ^ by;
                      case "down" -> l + by;
                      case "up" -> l - by;
                      default -> by;
                    };
                return from < 0 || from > 31 ? 3 * l + 1000 : 3 * from;
              })
              .toArray();
      assertArrayEquals(
          expected, Bench.run(Bench.kernel(TWO, body + STORE), 32, new int[1], 32), mode);
    }
    String within =
        "mov.u32 %a, %t; shfl.sync.bfly.b32 %d, %a, 1, 0x1c1f, 0xffffffff; add.u64 %x, %out, %o4;";
    assertArrayEquals(
        IntStream.range(0, 32).map(l -> l ^ 1).toArray(),
        Bench.run(Bench.kernel(TWO, within + STORE), 32, new int[1], 32));
  }

  @Test
  void warpSums() {
    String body =
        "redux.sync.add.s32 %d, %t, 0xffffffff; activemask.b32 %a; popc.b32 %a, %a;"
            + "add.s32 %d, %d, %a; add.u64 %x, %out, %o4;";
    int[] expected = new int[32];
    Arrays.fill(expected, 31 * 16 + 32);
    assertArrayEquals(expected, Bench.run(Bench.kernel(TWO, body + STORE), 32, new int[1], 32));
  }

  @Test
  void sharedMemoryAndBarriers() {
    // Reverses 96 words through shared memory, static and dynamic.
    String ptx =
        Bench.kernel(
                TWO + ".shared .align 16 .b8 buffer[384]; .reg .b32 %s, %r;",
                """
                mov.u32 %s, buffer;
                mad.lo.u32 %r, %t, 4, %s;
                st.shared.u32 [%r], %t;
                mov.u32 %r, more;
                mad.lo.u32 %r, %t, 4, %r;
                st.shared.u32 [%r], %t;
                bar.sync 0;
                sub.u32 %a, 95, %t;
                mad.lo.u32 %r, %a, 4, %s;
                ld.shared.u32 %d, [%r];
                mov.u32 %r, more;
                mad.lo.u32 %r, %a, 4, %r;
                ld.shared.u32 %b, [%r];
                add.u32 %d, %d, %b;
                add.u64 %x, %out, %o4;
                """
                    + STORE)
            .replace(".visible", ".extern .shared .align 16 .b8 more[];\n.visible");
    int[] expected = IntStream.range(0, 96).map(i -> 2 * (95 - i)).toArray();
    assertArrayEquals(
        expected, Bench.run(ptx, LaunchConfig.of(1, 96).withShared(384), new int[1], 96));
  }

  @Test
  void atomics() {
    String body =
        """
        atom.global.add.u32 %d, [%out], 1;
        red.global.max.s32 [%out+4], %t;
        red.global.add.f32 [%out+8], 0f3f800000;
        atom.global.cas.b32 %d, [%out+12], 0, 77;
        atom.global.exch.b32 %d, [%out+16], %t;
        """;
    int[] out = Bench.run(Bench.kernel(TWO, body), LaunchConfig.of(5, 70), new int[1], 5);
    assertArrayEquals(new int[] {350, 69, Float.floatToRawIntBits(350f), 77, 69}, out);
  }

  @Test
  void asynchronousCopies() {
    String body =
        """
        mov.u32 %r, buffer;
        mad.lo.u32 %r, %t, 16, %r;
        mul.wide.u32 %x, %t, 16;
        add.u64 %x, %in, %x;
        cp.async.cg.shared.global [%r], [%x], 16;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r+1024], [%x], 8, 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.v4.u32 {%a, %b, %d, %s}, [%r];
        add.u32 %d, %d, %s;
        add.u32 %d, %d, %b;
        cp.async.wait_all;
        ld.shared.v2.u32 {%a, %b}, [%r+1024];
        add.u32 %d, %d, %a;
        add.u32 %d, %d, %b;
        add.u64 %x, %out, %o4;
        """;
    int[] in = IntStream.range(0, 256).map(i -> i * i).toArray();
    int[] out =
        Bench.run(
            Bench.kernel(
                TWO + ".shared .align 16 .b8 buffer[2048]; .reg .b32 %s, %r;", body + STORE),
            64,
            in,
            64);
    for (int i = 0; i < 64; i++) {
      assertEquals(in[4 * i] + in[4 * i + 1] + in[4 * i + 2] + in[4 * i + 3], out[i]);
    }
  }

  @Test
  void bulkCopiesWithTransactionBarriers() {
    String body =
        """
        mov.u32 %r, buffer;
        mov.u32 %s, full;
        setp.ne.u32 %p, %t, 0;
        @%p bra WAIT;
        mbarrier.init.shared.b64 [%s], 1;
        fence.proxy.async;
        mbarrier.arrive.expect_tx.shared.b64 %w, [%s], 256;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r], [%in], 256, [%s];
        WAIT:
        bar.sync 0;
        AGAIN:
        mbarrier.try_wait.parity.shared.b64 %p, [%s], 0;
        @!%p bra AGAIN;
        mad.lo.u32 %r, %t, 4, %r;
        ld.shared.u32 %d, [%r];
        add.u64 %x, %out, %o4;
        """;
    int[] in = IntStream.range(0, 64).map(i -> 7 * i).toArray();
    assertArrayEquals(
        in,
        Bench.run(
            Bench.kernel(
                TWO
                    + ".shared .align 128 .b8 buffer[256]; .shared .align 8 .b64 full;"
                    + ".reg .b32 %s, %r;",
                body + STORE),
            64,
            in,
            64));
  }

  @Test
  void gridBarrierOfACooperativeLaunch() {
    // Each block adds one, waits for all, then reads the sum.
    String body =
        """
        setp.ne.u32 %p, %t, 0;
        @%p bra JOIN;
        red.release.gpu.global.add.u32 [%out+256], 1;
        AGAIN:
        ld.acquire.gpu.global.u32 %a, [%out+256];
        mov.u32 %b, %nctaid.x;
        setp.lt.u32 %q, %a, %b;
        @%q bra AGAIN;
        JOIN:
        bar.sync 0;
        ld.global.u32 %d, [%out+256];
        mov.u32 %a, %ctaid.x;
        mul.wide.u32 %x, %a, 4;
        add.u64 %x, %out, %x;
        """;
    int[] out =
        Bench.run(
            Bench.kernel(TWO, body + STORE),
            LaunchConfig.of(6, 64).withCooperative(true),
            new int[1],
            65);
    assertArrayEquals(new int[] {6, 6, 6, 6, 6, 6}, Arrays.copyOf(out, 6));
  }

  @Test
  void bigGridsOnTwoThreads() {
    String body =
        """
        mov.u32 %a, %ctaid.x;
        mov.u32 %b, %ntid.x;
        mad.lo.u32 %a, %a, %b, %t;
        mul.wide.u32 %x, %a, 4;
        add.u64 %x, %out, %x;
        mul.lo.u32 %d, %a, %a;
        """;
    int[] out =
        Bench.run(Bench.kernel(TWO, body + STORE), LaunchConfig.of(33, 96), new int[1], 33 * 96);
    assertArrayEquals(IntStream.range(0, 33 * 96).map(i -> i * i).toArray(), out);
  }
}
