package io.fletch.tests.softgpu;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.S32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.ffm.ptx.PtxType;
import java.util.Locale;
import java.util.Random;
import java.util.function.BiConsumer;
import java.util.stream.IntStream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * What the builder prints, that the assembler takes it, and that it computes what its documentation
 * says: fragments are filled and read by the element formulas of the PTX ISA, and products compared
 * with plain ones.
 */
class PtxBuilderTest {
  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  /** A kernel of one warp; the body gets addresses of 32 bytes a lane of both buffers. */
  private record Body(PtxKernel k, PtxRegister in, PtxRegister out, PtxRegister lane) {
    /** Words of this lane from the lane-major part that starts at a word. */
    PtxRegister[] words(PtxType type, int n, int firstWord) {
      PtxRegister at = k.address(in, lane, 4 * n);
      return IntStream.range(0, n)
          .mapToObj(i -> k.load(type, at, 4L * (firstWord + i)))
          .toArray(PtxRegister[]::new);
    }

    void put(PtxRegister... values) {
      PtxRegister at = k.address(out, lane, 4 * values.length);
      for (int i = 0; i < values.length; i++) {
        k.store(values[i].type(), at, 4L * i, values[i]);
      }
    }
  }

  private static Body body() {
    PtxKernel k = new PtxKernel(32);
    PtxRegister in = k.parameter(U64);
    PtxRegister out = k.parameter(U64);
    return new Body(k, in, out, k.special("tid.x"));
  }

  private static int[] run(Body b, int capability, int[] in, int outputs, String... expected) {
    String text = PtxKernel.header(capability) + b.k.text("k");
    for (String e : expected) {
      assertTrue(text.contains(e), e + " in " + text);
    }
    Ptxas.find()
        .ifPresent(p ->
            Ptxas.ARCHITECTURES.stream()
                .filter(a -> a >= capability)
                .forEach(a -> {
                  Ptxas.Result r = p.assemble(text, a);
                  assertTrue(r.accepted(), r.log() + text);
                }));
    return Bench.run(text, 32, in, outputs);
  }

  private static int half(String type, float v) {
    return type.equals("f16")
        ? Float.floatToFloat16(v) & 0xffff
        : Float.floatToRawIntBits(v) >>> 16;
  }

  /** Element {@code i} of a lane's fragment of {@code a}, by the ISA's table for m16n8k16. */
  private static int row(int lane, int i) {
    return i % 4 < 2 ? lane / 4 : lane / 4 + 8;
  }

  private static int column(int lane, int i) {
    return lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8);
  }

  @ParameterizedTest
  @ValueSource(strings = {"f16", "bf16"})
  void productsOfHalves(String type) {
    Random random = new Random(1);
    float[][] a = new float[16][16];
    float[][] b = new float[16][8];
    int[] in = new int[32 * 10];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 8; i++) {
        float v = random.nextInt(17) - 8;
        a[row(lane, i)][column(lane, i)] = v;
        in[4 * lane + i / 2] |= half(type, v) << 16 * (i % 2);
      }
      for (int i = 0; i < 4; i++) {
        float v = random.nextInt(17) - 8;
        b[lane % 4 * 2 + i % 2 + 8 * (i / 2)][lane / 4] = v;
        in[128 + 2 * lane + i / 2] |= half(type, v) << 16 * (i % 2);
      }
      for (int i = 0; i < 4; i++) {
        in[192 + 4 * lane + i] = Float.floatToRawIntBits(lane + 0.25f * i);
      }
    }
    Body k = body();
    PtxRegister[] sums = k.words(F32, 4, 192);
    k.k.mma(type, sums, k.words(U32, 4, 0), k.words(U32, 2, 128), sums);
    k.put(sums);
    String expected = "mma.sync.aligned.m16n8k16.row.col.f32." + type + "." + type + ".f32 {";
    int[] out = run(k, 80, in, 128, expected);
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 4; i++) {
        float sum = lane + 0.25f * i;
        for (int x = 0; x < 16; x++) {
          sum += a[row(lane, i)][x] * b[x][column(lane, i)];
        }
        assertEquals(sum, Float.intBitsToFloat(out[4 * lane + i]));
      }
    }
  }

  @Test
  void productsOfBytes() {
    Random random = new Random(2);
    int[][] a = new int[16][32];
    int[][] b = new int[32][8];
    int[] in = new int[32 * 10];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 16; i++) {
        int v = random.nextInt(256) - 128;
        a[i % 8 < 4 ? lane / 4 : lane / 4 + 8][lane % 4 * 4 + i % 4 + (i < 8 ? 0 : 16)] = v;
        in[4 * lane + i / 4] |= (v & 255) << 8 * (i % 4);
      }
      for (int i = 0; i < 8; i++) {
        int v = random.nextInt(256) - 128;
        b[lane % 4 * 4 + i % 4 + (i < 4 ? 0 : 16)][lane / 4] = v;
        in[128 + 2 * lane + i / 4] |= (v & 255) << 8 * (i % 4);
      }
      for (int i = 0; i < 4; i++) {
        in[192 + 4 * lane + i] = 1000 * lane - i;
      }
    }
    Body k = body();
    PtxRegister[] sums = k.words(S32, 4, 192);
    k.k.mmaBytes(sums, k.words(U32, 4, 0), k.words(U32, 2, 128), sums);
    k.put(sums);
    int[] out = run(k, 80, in, 128, "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {");
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 4; i++) {
        int sum = 1000 * lane - i;
        for (int x = 0; x < 32; x++) {
          sum += a[row(lane, i)][x] * b[x][column(lane, i)];
        }
        assertEquals(sum, out[4 * lane + i]);
      }
    }
  }

  @ParameterizedTest
  @CsvSource({"f16,0", "f16,1", "bf16,0", "bf16,1"})
  void productsOfTwoOfFour(String type, int selector) {
    Random random = new Random(3);
    float[][] a = new float[16][32];
    float[][] b = new float[32][8];
    float[][] stored = new float[16][16];
    int[][] places = new int[16][16];
    for (int r = 0; r < 16; r++) {
      for (int g = 0; g < 8; g++) {
        int first = random.nextInt(3);
        int[] at = {first, first + 1 + random.nextInt(3 - first)};
        for (int i = 0; i < 2; i++) {
          places[r][2 * g + i] = at[i];
          stored[r][2 * g + i] = 1 + random.nextInt(9);
          a[r][4 * g + at[i]] = stored[r][2 * g + i];
        }
      }
    }
    int[] in = new int[32 * 9];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 8; i++) {
        in[4 * lane + i / 2] |= half(type, stored[row(lane, i)][column(lane, i)]) << 16 * (i % 2);
      }
      for (int i = 0; i < 8; i++) {
        float v = random.nextInt(17) - 8;
        b[lane % 4 * 2 + i % 2 + 8 * (i / 2)][lane / 4] = v;
        in[128 + 4 * lane + i / 2] |= half(type, v) << 16 * (i % 2);
      }
      for (int i = 0; i < 16 && lane % 4 / 2 == selector; i++) {
        int r = i < 8 ? lane / 4 : lane / 4 + 8;
        in[256 + lane] |= places[r][8 * (lane % 2) + i % 8] << 2 * i;
      }
    }
    Body k = body();
    PtxRegister[] sums =
        IntStream.range(0, 4).mapToObj(i -> k.k.constant(F32, i)).toArray(PtxRegister[]::new);
    PtxRegister[] to = k.k.registers(F32, 4);
    k.k.mmaSparse(
        type,
        to,
        k.words(U32, 4, 0),
        k.words(U32, 4, 128),
        sums,
        k.words(U32, 1, 256)[0],
        selector);
    k.put(to);
    int[] out = run(k, 80, in, 128, "mma.sp.sync.aligned.m16n8k32.row.col.f32." + type);
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 4; i++) {
        float sum = i;
        for (int x = 0; x < 32; x++) {
          sum += a[row(lane, i)][x] * b[x][column(lane, i)];
        }
        assertEquals(sum, Float.intBitsToFloat(out[4 * lane + i]));
      }
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2, 4})
  void matricesFromSharedMemory(int n) {
    for (boolean transposed : new boolean[] {false, true}) {
      Body k = body();
      PtxRegister shared = k.k.shared(512);
      // Row l of 8 halves comes from lane l's four words.
      PtxRegister mine = k.k.fma(k.lane, 16, shared);
      k.k.storeVector("shared", U32, mine, 0, k.words(U32, 4, 0));
      k.k.barrier();
      k.put(k.k.loadMatrices(n, transposed, mine, 0));
      int[] in = new int[128];
      for (int i = 0; i < 256; i++) {
        in[i / 2] |= i << 16 * (i % 2);
      }
      String expected = "ldmatrix.sync.aligned.m8n8.x" + n + (transposed ? ".trans" : "");
      int[] out = run(k, 80, in, 32 * n, expected + ".shared.b16 {", "st.shared.v4.u32 [");
      for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 2 * n; i++) {
          int r = lane / 4;
          int c = lane % 4 * 2 + i % 2;
          int element = 64 * (i / 2) + (transposed ? 8 * c + r : 8 * r + c);
          assertEquals(element, out[n * lane + i / 2] >>> 16 * (i % 2) & 0xffff);
        }
      }
    }
  }

  private static int[] counted(int n) {
    return IntStream.range(0, n).map(i -> 3 * i + 1).toArray();
  }

  @Test
  void copiesInGroups() {
    Body k = body();
    PtxRegister shared = k.k.shared(1024);
    PtxRegister mine = k.k.fma(k.lane, 16, shared);
    PtxRegister from = k.k.address(k.in, k.lane, 16);
    k.k.copyAsync(mine, 0, from, 0);
    k.k.commitCopies();
    k.k.copyAsync(mine, 512, from, 512);
    k.k.commitCopies();
    k.k.waitCopies(1);
    k.k.barrier();
    PtxRegister other = k.k.sub(k.k.constant(U32, 31), k.lane);
    PtxRegister first = k.k.load("shared", U32, k.k.fma(other, 16, shared), 4);
    k.k.waitCopies(0);
    k.k.barrier();
    PtxRegister second = k.k.load("shared", U32, k.k.fma(other, 16, shared), 520);
    k.put(first, second);
    int[] in = counted(256);
    int[] out =
        run(
            k,
            80,
            in,
            64,
            "cp.async.cg.shared.global [",
            "cp.async.commit_group;",
            "cp.async.wait_group 1;");
    for (int lane = 0; lane < 32; lane++) {
      assertEquals(in[4 * (31 - lane) + 1], out[2 * lane]);
      assertEquals(in[128 + 4 * (31 - lane) + 2], out[2 * lane + 1]);
    }
  }

  @Test
  void bulkCopiesAndDependentLaunches() {
    Body k = body();
    PtxRegister shared = k.k.shared(256);
    PtxRegister barrier = k.k.shared(8);
    k.k.awaitPrevious();
    PtxRegister leader = k.k.compare("eq", k.lane, 0);
    k.k.when(leader, () -> k.k.initBarrier(barrier, 1));
    k.k.barrier();
    PtxRegister word = k.k.fma(k.lane, 4, shared);
    PtxRegister[] got = new PtxRegister[2];
    for (int phase = 0; phase < 2; phase++) {
      PtxRegister from = k.k.address(k.in, k.k.constant(U32, phase), 256);
      k.k.when(
          leader,
          () -> {
            k.k.arriveExpecting(barrier, 256);
            k.k.copyBulk(shared, from, 256, barrier);
          });
      k.k.awaitBarrier(barrier, phase);
      got[phase] = k.k.load("shared", U32, word, 128);
      k.k.barrier();
    }
    k.k.launchDependents();
    k.put(got);
    int[] in = counted(128);
    int[] out =
        run(
            k,
            90,
            in,
            64,
            "mbarrier.init.shared::cta.b64 [",
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [",
            "mbarrier.try_wait.parity.shared::cta.b64 ",
            "griddepcontrol.wait;",
            "griddepcontrol.launch_dependents;");
    for (int lane = 0; lane < 32; lane++) {
      assertEquals(in[32 + lane], out[2 * lane]);
      assertEquals(in[96 + lane], out[2 * lane + 1]);
    }
  }

  @Test
  void lanesSelectorsAndConditions() {
    Body k = body();
    PtxRegister[] a = k.words(U32, 4, 0);
    PtxRegister odd = k.k.compare("ne", k.k.and(k.lane, 1), 0);
    PtxRegister loaded = k.k.constant(U32, 7);
    PtxRegister at = k.k.address(k.in, k.lane, 16);
    k.k.loadInto(odd, "global.nc", B16, loaded, at, 2);
    PtxRegister more = k.k.add(a[0], 0);
    k.k.addInto(odd, more, 5);
    PtxRegister[] result = {
      k.k.shuffleFrom(a[0], k.k.and(a[1], 31)),
      k.k.shuffleUp(a[0], 3),
      k.k.permute(a[0], a[1], k.k.and(a[2], 0x7777)),
      k.k.funnel(a[0], a[1], a[3]),
      loaded,
      more
    };
    k.put(result);
    int[] in = new Random(5).ints(256).toArray();
    int[] out =
        run(
            k,
            80,
            in,
            192,
            "shfl.sync.idx.b32 ",
            "shfl.sync.up.b32 ",
            "shf.r.wrap.b32 ",
            "@%pred_");
    for (int lane = 0; lane < 32; lane++) {
      int p = in[4 * lane];
      int q = in[4 * lane + 1];
      long both = (long) q << 32 | p & 0xffffffffL;
      int picked = 0;
      for (int i = 0; i < 4; i++) {
        int selector = in[4 * lane + 2] >> 4 * i & 7;
        picked |= (int) (both >>> 8 * selector & 0xff) << 8 * i;
      }
      int[] expected = {
        in[4 * (q & 31)],
        in[4 * (lane < 3 ? lane : lane - 3)],
        picked,
        (int) (both >>> (in[4 * lane + 3] & 31)),
        lane % 2 != 0 ? p >>> 16 : 7,
        lane % 2 != 0 ? p + 5 : p
      };
      int[] actual = IntStream.range(6 * lane, 6 * lane + 6).map(i -> out[i]).toArray();
      assertArrayEquals(expected, actual);
    }
  }

  @Test
  void vectorsHintsAndBytes() {
    Body k = body();
    PtxRegister at = k.k.address(k.in, k.lane, 32);
    PtxRegister policy = k.k.cachePolicy("evict_first");
    PtxRegister[] a = k.k.loadVector(4, at, 0, policy);
    PtxRegister[] b = k.k.loadVector("global.nc", S32, 4, at, 16);
    PtxRegister dot = k.k.constant(S32, 5);
    for (int i = 0; i < 4; i++) {
      dot = k.k.dp4a(k.k.bits(S32, a[i]), b[i], dot);
    }
    PtxRegister[] halves = k.k.halves(a[0]);
    PtxRegister swapped = k.k.pack(halves[1], halves[0]);
    PtxRegister[] result = {
      k.k.bits(U32, dot),
      swapped,
      k.k.permute(a[0], a[1], 0x7531),
      k.k.maskOr(a[2], 0x000f000f, 0x64006400)
    };
    k.k.storeVector("global", U32, k.k.address(k.out, k.lane, 16), 0, result);
    int[] in = new Random(4).ints(256).toArray();
    int[] out =
        run(
            k,
            80,
            in,
            128,
            "createpolicy.fractional.L2::evict_first.b64 ",
            "ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {",
            "ld.global.nc.v4.s32 {",
            "dp4a.s32.s32 ",
            "prmt.b32 ",
            "lop3.b32 ",
            "st.global.v4.u32 [");
    for (int lane = 0; lane < 32; lane++) {
      int sum = 5;
      for (int i = 0; i < 16; i++) {
        int x = (byte) (in[8 * lane + i / 4] >> 8 * (i % 4));
        sum += x * (byte) (in[8 * lane + 4 + i / 4] >> 8 * (i % 4));
      }
      int p = in[8 * lane];
      int q = in[8 * lane + 1];
      int[] expected = {
        sum,
        p << 16 | p >>> 16,
        p >>> 8 & 0xff | p >>> 24 << 8 | (q >>> 8 & 0xff) << 16 | q >>> 24 << 24,
        in[8 * lane + 2] & 0x000f000f | 0x64006400
      };
      int[] actual = IntStream.range(4 * lane, 4 * lane + 4).map(i -> out[i]).toArray();
      assertArrayEquals(expected, actual);
    }
  }

  @Test
  void pairsOfHalves() {
    for (String type : new String[] {"f16x2", "bf16x2"}) {
      Body k = body();
      PtxRegister[] x = k.words(F32, 2, 0);
      PtxRegister packed = k.k.packHalves(type, x[0], x[1]);
      k.put(packed, k.k.fmaHalves(type, packed, packed, packed));
      int[] in = new int[64];
      for (int i = 0; i < 64; i++) {
        in[i] = Float.floatToRawIntBits(i - 30 + 1 / 1024f);
      }
      int[] out = run(k, 80, in, 64, "cvt.rn." + type + ".f32 ", "fma.rn." + type + " ");
      for (int i = 0; i < 64; i++) {
        float rounded = rounded(type, i - 30 + 1 / 1024f);
        String one = type.replace("x2", "");
        int low = 16 * (i % 2);
        assertEquals(half(one, rounded), out[i / 2 * 2] >>> low & 0xffff, type + i);
        float sum = rounded(type, rounded * rounded + rounded);
        assertEquals(half(one, sum), out[i / 2 * 2 + 1] >>> low & 0xffff, type + i);
      }
    }
  }

  /** To the nearest, ties to even. */
  private static float rounded(String type, float x) {
    if (type.equals("f16x2")) {
      return Float.float16ToFloat(Float.floatToFloat16(x));
    }
    int bits = Float.floatToRawIntBits(x);
    return Float.intBitsToFloat(bits + 0x7fff + (bits >>> 16 & 1) & 0xffff0000);
  }

  private static void refused(BiConsumer<PtxKernel, PtxRegister[]> use, String message) {
    PtxKernel k = new PtxKernel(32);
    PtxRegister[] r = k.registers(U32, 4);
    String actual =
        assertThrows(IllegalArgumentException.class, () -> use.accept(k, r)).getMessage();
    assertTrue(actual.toLowerCase(Locale.ROOT).contains(message), actual);
  }

  @Test
  void refusesWhatThereIsNot() {
    refused((k, r) -> k.mma("f16", r, r, r, r), "expected=4,4,2,4 actual=4,4,4,4");
    refused((k, r) -> k.mma("tf32", r, r, new PtxRegister[] {r[0], r[1]}, r), "actual=tf32");
    refused((k, r) -> k.mmaBytes(r, r, r, r), "expected=4,4,2,4");
    refused((k, r) -> k.loadMatrices(3, false, r[0], 0), "actual=3");
    refused((k, r) -> k.loadVector("global", U64, 4, r[0], 0), "actual=4 u64");
    refused((k, r) -> k.storeVector("global", U32, r[0], 0, r[0]), "actual=1");
    assertThrows(IllegalArgumentException.class, () -> PtxKernel.header(70));
  }
}
