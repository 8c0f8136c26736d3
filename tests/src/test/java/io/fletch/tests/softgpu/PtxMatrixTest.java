package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Random;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

/**
 * Products of matrix fragments against plain products. The places of elements are written out here
 * from the tables of the PTX ISA (chapter "Warp Level Matrix Multiply-Accumulate Instructions"),
 * one formula per element index, not per register as in the interpreter.
 */
class PtxMatrixTest {
  private static String names(String prefix, int n) {
    return IntStream.range(0, n).mapToObj(i -> "%" + prefix + i).collect(Collectors.joining(", "));
  }

  /** Loads n words per lane, lane by lane, from a place of the input. */
  private static String load(String prefix, int n, int firstWord) {
    StringBuilder s = new StringBuilder();
    s.append("mul.wide.u32 %x, %t, ").append(4 * n).append("; add.u64 %x, %in, %x;\n");
    for (int i = 0; i < n; i++) {
      s.append("ld.global.b32 %")
          .append(prefix)
          .append(i)
          .append(", [%x+")
          .append(4 * (firstWord + i))
          .append("];\n");
    }
    return s.toString();
  }

  private static int[] multiply(
      String instruction, int na, int nb, int nc, int[] in, String extra) {
    String body =
        load("a", na, 0)
            + load("b", nb, 32 * na)
            + load("c", nc, 32 * (na + nb))
            + (extra.isEmpty() ? "" : load("e", 1, 32 * (na + nb + nc)))
            + instruction
            + " {"
            + names("c", nc)
            + "}, {"
            + names("a", na)
            + "}, {"
            + names("b", nb)
            + "}, {"
            + names("c", nc)
            + "}"
            + extra
            + ";\nmul.wide.u32 %x, %t, "
            + 4 * nc
            + "; add.u64 %x, %out, %x;\n"
            + IntStream.range(0, nc)
                .mapToObj(i -> "st.global.b32 [%x+" + 4 * i + "], %c" + i + ";")
                .collect(Collectors.joining("\n"));
    String declarations = ".reg .b32 %a<4>, %b<4>, %c<4>, %e<1>; .reg .b64 %x;";
    if (!instruction.contains(".f16.f16.f16.f16")) {
      declarations =
          declarations.replace(", %c<4>", "")
              + (instruction.contains("s32") ? ".reg .b32 %c<4>;" : ".reg .f32 %c<4>;");
    }
    return Bench.run(Bench.kernel(declarations, body), 32, in, 32 * nc);
  }

  private static int half(String type, float v) {
    return type.equals("f16")
        ? Float.floatToFloat16(v) & 0xffff
        : Float.floatToRawIntBits(v) >>> 16;
  }

  private static void put(int[] words, int element, int perWord, int bits) {
    words[element / perWord] |= bits << 32 / perWord * (element % perWord);
  }

  private static int number(Random random) {
    return random.nextInt(9) - 4;
  }

  private void halves(String type, int k) {
    Random random = new Random(k);
    int[][] a = new int[16][k];
    int[][] b = new int[k][8];
    int na = k / 4;
    int nb = k / 8;
    int[] in = new int[32 * (na + nb + 4)];
    int[] part = new int[32 * na];
    for (int lane = 0; lane < 32; lane++) {
      int group = lane / 4;
      int inGroup = lane % 4;
      for (int i = 0; i < 2 * na; i++) {
        int row = i < 2 || i >= 4 && i < 6 ? group : group + 8;
        int col = inGroup * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a[row][col] = number(random);
        put(part, lane * 2 * na + i, 2, half(type, a[row][col]));
      }
    }
    System.arraycopy(part, 0, in, 0, part.length);
    part = new int[32 * nb];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 2 * nb; i++) {
        int row = lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8);
        b[row][lane / 4] = number(random);
        put(part, lane * 2 * nb + i, 2, half(type, b[row][lane / 4]));
      }
    }
    System.arraycopy(part, 0, in, 32 * na, part.length);
    for (int i = 0; i < 128; i++) {
      in[32 * (na + nb) + i] = Float.floatToRawIntBits(i);
    }
    int[] out =
        multiply(
            "mma.sync.aligned.m16n8k" + k + ".row.col.f32." + type + "." + type + ".f32",
            na,
            nb,
            4,
            in,
            "");
    check(a, b, k, out, false);
  }

  private static void check(int[][] a, int[][] b, int k, int[] out, boolean integers) {
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 4; i++) {
        int row = lane / 4 + (i < 2 ? 0 : 8);
        int col = lane % 4 * 2 + (i & 1);
        int sum = lane * 4 + i;
        for (int x = 0; x < k; x++) {
          sum += a[row][x] * b[x][col];
        }
        int actual = out[lane * 4 + i];
        assertEquals(sum, integers ? actual : (int) Float.intBitsToFloat(actual), row + "," + col);
      }
    }
  }

  /**
   * Where a value of a lane is, as CuTe's layouts of the MMA atoms of SM80 say: column by column,
   * steps of the lane's number in its group of four, of the group, and of the value's digits.
   */
  private record Places(int inGroup, int group, int[] digits, int[] steps) {
    int of(int lane, int value) {
      int at = lane % 4 * inGroup + lane / 4 * group;
      for (int i = 0; i < digits.length; i++) {
        at += value % digits[i] * steps[i];
        value /= digits[i];
      }
      return at;
    }

    int values() {
      return IntStream.of(digits).reduce(1, (x, y) -> x * y);
    }
  }

  private static void placesOfAnotherSource(String op, String type, int k, Places a, Places b) {
    Places c = new Places(32, 1, new int[] {2, 2}, new int[] {16, 8});
    Random random = new Random(k);
    int each = type.equals("s8") ? 4 : type.equals("tf32") ? 1 : 2;
    int[] ma = IntStream.range(0, 16 * k).map(i -> number(random)).toArray();
    int[] mb = IntStream.range(0, 8 * k).map(i -> number(random)).toArray();
    int na = a.values() / each;
    int nb = b.values() / each;
    int[] in = new int[32 * (na + nb + 4)];
    for (int lane = 0; lane < 32; lane++) {
      for (int v = 0; v < a.values(); v++) {
        in[lane * na + v / each] |= bits(type, ma[a.of(lane, v)]) << 32 / each * (v % each);
      }
      for (int v = 0; v < b.values(); v++) {
        in[32 * na + lane * nb + v / each] |=
            bits(type, mb[b.of(lane, v)]) << 32 / each * (v % each);
      }
    }
    int[] out = multiply(op, na, nb, 4, in, "");
    for (int lane = 0; lane < 32; lane++) {
      for (int v = 0; v < 4; v++) {
        int at = c.of(lane, v);
        int sum = 0;
        for (int x = 0; x < k; x++) {
          sum += ma[at % 16 + 16 * x] * mb[at / 16 + 8 * x];
        }
        int actual = out[4 * lane + v];
        assertEquals(sum, each == 4 ? actual : (int) Float.intBitsToFloat(actual), op + " " + at);
      }
    }
  }

  private static int bits(String type, int v) {
    return switch (type) {
      case "s8" -> v & 0xff;
      case "tf32" -> Float.floatToRawIntBits(v);
      default -> half(type, v);
    };
  }

  /** Steps as in CUTLASS, include/cute/atom/mma_traits_sm80.hpp; docs/ptx-facts.md. */
  @Test
  void placesAreThoseOfCute() {
    placesOfAnotherSource(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "f16",
        16,
        new Places(32, 1, new int[] {2, 2, 2}, new int[] {16, 8, 128}),
        new Places(16, 1, new int[] {2, 2}, new int[] {8, 64}));
    placesOfAnotherSource(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        "s8",
        32,
        new Places(64, 1, new int[] {4, 2, 2}, new int[] {16, 8, 256}),
        new Places(32, 1, new int[] {4, 2}, new int[] {8, 128}));
    placesOfAnotherSource(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "tf32",
        8,
        new Places(16, 1, new int[] {2, 2}, new int[] {8, 64}),
        new Places(8, 1, new int[] {2}, new int[] {32}));
  }

  @Test
  void halfProducts() {
    halves("f16", 8);
    halves("f16", 16);
    halves("bf16", 8);
    halves("bf16", 16);
  }

  @Test
  void byteProducts() {
    int k = 32;
    Random random = new Random(5);
    int[][] a = new int[16][k];
    int[][] b = new int[k][8];
    int[] in = new int[32 * 10];
    int[] part = new int[32 * 4];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 16; i++) {
        int row = i < 4 || i >= 8 && i < 12 ? lane / 4 : lane / 4 + 8;
        int col = lane % 4 * 4 + (i & 3) + (i < 8 ? 0 : 16);
        a[row][col] = random.nextInt(256) - 128;
        put(part, lane * 16 + i, 4, a[row][col] & 255);
      }
    }
    System.arraycopy(part, 0, in, 0, part.length);
    part = new int[32 * 2];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 8; i++) {
        int row = lane % 4 * 4 + (i & 3) + (i < 4 ? 0 : 16);
        b[row][lane / 4] = random.nextInt(256) - 128;
        put(part, lane * 8 + i, 4, b[row][lane / 4] & 255);
      }
    }
    System.arraycopy(part, 0, in, 128, part.length);
    for (int i = 0; i < 128; i++) {
      in[192 + i] = i;
    }
    check(
        a,
        b,
        k,
        multiply("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 4, 2, 4, in, ""),
        true);
  }

  @Test
  void halfSums() {
    // Identity times B: C holds B's rows; columns as in the tables.
    int[] in = new int[32 * 8];
    int[] a = new int[32 * 4];
    int[] b = new int[32 * 2];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 8; i++) {
        int row = i < 2 || i >= 4 && i < 6 ? lane / 4 : lane / 4 + 8;
        int col = lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8);
        put(a, lane * 8 + i, 2, half("f16", row == col ? 1 : 0));
      }
      for (int i = 0; i < 4; i++) {
        int row = lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8);
        put(b, lane * 4 + i, 2, half("f16", 8 * row + lane / 4));
      }
    }
    System.arraycopy(a, 0, in, 0, a.length);
    System.arraycopy(b, 0, in, 128, b.length);
    for (int i = 0; i < 64; i++) {
      in[192 + i] = half("f16", 1) * 0x10001;
    }
    int[] out = multiply("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", 4, 2, 2, in, "");
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 4; i++) {
        int row = lane / 4 + (i < 2 ? 0 : 8);
        int col = lane % 4 * 2 + (i & 1);
        short v = (short) (out[lane * 2 + i / 2] >>> 16 * (i & 1));
        assertEquals(8 * row + col + 1, Float.float16ToFloat(v));
      }
    }
  }

  @Test
  void sparseProducts() {
    // 2 of 4 values of a row of A are kept; k = 32.
    Random random = new Random(9);
    int[][] a = new int[16][32];
    int[][] b = new int[32][8];
    int[][] kept = new int[16][16];
    int[][] places = new int[16][16];
    for (int row = 0; row < 16; row++) {
      for (int g = 0; g < 8; g++) {
        int first = random.nextInt(3);
        int second = first + 1 + random.nextInt(3 - first);
        int[] at = {first, second};
        for (int i = 0; i < 2; i++) {
          kept[row][2 * g + i] = 1 + random.nextInt(4);
          places[row][2 * g + i] = at[i];
          a[row][4 * g + at[i]] = kept[row][2 * g + i];
        }
      }
    }
    int[] in = new int[32 * 13];
    int[] part = new int[32 * 4];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 8; i++) {
        int row = i < 2 || i >= 4 && i < 6 ? lane / 4 : lane / 4 + 8;
        int col = lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8);
        put(part, lane * 8 + i, 2, half("f16", kept[row][col]));
      }
    }
    System.arraycopy(part, 0, in, 0, part.length);
    part = new int[32 * 4];
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 8; i++) {
        int row = lane % 4 * 2 + (i & 1) + 8 * (i / 2);
        b[row][lane / 4] = number(random);
        put(part, lane * 8 + i, 2, half("f16", b[row][lane / 4]));
      }
    }
    System.arraycopy(part, 0, in, 128, part.length);
    for (int i = 0; i < 128; i++) {
      in[256 + i] = Float.floatToRawIntBits(i);
    }
    for (int lane = 0; lane < 32; lane++) {
      if (lane % 4 < 2) {
        int bits = 0;
        for (int i = 0; i < 8; i++) {
          bits |= places[lane / 4][8 * (lane % 4) + i] << 2 * i;
          bits |= places[lane / 4 + 8][8 * (lane % 4) + i] << 16 + 2 * i;
        }
        in[384 + lane] = bits;
      }
    }
    int[] out =
        multiply(
            "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
            4,
            4,
            4,
            in,
            ", %e0, 0x0");
    check(a, b, 32, out, false);
  }

  @Test
  void matricesFromSharedMemory() {
    for (boolean transposed : new boolean[] {false, true}) {
      String body =
          """
          mov.u32 %s, tile;
          mad.lo.u32 %r, %t, 16, %s;
          mul.wide.u32 %x, %t, 16;
          add.u64 %x, %in, %x;
          ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%x];
          st.shared.v4.b32 [%r], {%a0, %a1, %a2, %a3};
          bar.warp.sync 0xffffffff;
          """
              + "ldmatrix.sync.aligned.m8n8.x4"
              + (transposed ? ".trans" : "")
              + ".shared.b16 {%a0, %a1, %a2, %a3}, [%r];\n"
              + "mul.wide.u32 %x, %t, 16; add.u64 %x, %out, %x;"
              + "st.global.v4.b32 [%x], {%a0, %a1, %a2, %a3};";
      int[] in = new int[128];
      for (int i = 0; i < 256; i++) {
        put(in, i, 2, i);
      }
      int[] out =
          Bench.run(
              Bench.kernel(
                  ".reg .b32 %a<4>, %s, %r; .reg .b64 %x; .shared .align 16 .b8 tile[512];", body),
              32,
              in,
              128);
      for (int lane = 0; lane < 32; lane++) {
        for (int m = 0; m < 4; m++) {
          for (int i = 0; i < 2; i++) {
            int row = lane / 4;
            int col = lane % 4 * 2 + i;
            int element = transposed ? 8 * col + row : 8 * row + col;
            assertEquals(64 * m + element, out[4 * lane + m] >>> 16 * i & 0xffff);
          }
        }
      }
    }
  }
}
