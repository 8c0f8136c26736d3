package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.BiPredicate;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Integer products of attention: what the codes are, and where numbers that are none get. */
class CodeProductsTest {
  private static final KvCache.Type TYPE = KvCache.Type.Q8_0;
  private static final int GROUP = 6;
  private static final int DIM = 64;
  private static final int ROWS = 3;

  /** Row r sees this many positions and r more. */
  private static final int SEEN = 70;

  private static final AttentionSpec SPEC = new AttentionSpec(0, GROUP, 1, DIM, DIM, 0.125f, 0f, 0);

  static List<Kernels> kernelSets() {
    return KernelSets.available();
  }

  /** Queries, keys and values as floats, and the results of all rows. */
  private static float[] run(Kernels kernels, float[] q, float[] keys, float[] values) {
    int positions = keys.length / DIM;
    try (Arena arena = Arena.ofConfined()) {
      long bytes = kernels.kvBytes(TYPE, DIM);
      MemorySegment kv = arena.allocate(2 * positions * bytes);
      for (int p = 0; p < positions; p++) {
        for (int i = 0; i < 2; i++) {
          float[] from = i == 0 ? keys : values;
          MemorySegment head =
              arena.allocateFrom(
                  ValueLayout.JAVA_FLOAT, Arrays.copyOfRange(from, p * DIM, (p + 1) * DIM));
          kernels.kvStore(TYPE, head, 0, DIM, kv, (i * positions + p) * bytes);
        }
      }
      MemorySegment scratch = arena.allocate(4L * AttentionRows.floats(kernels, SPEC), 4);
      MemorySegment out = arena.allocate(4L * ROWS * GROUP * DIM, 4);
      MemorySegment query = arena.allocateFrom(ValueLayout.JAVA_FLOAT, q);
      AttentionRows rows = new AttentionRows(scratch);
      rows.begin(kernels, SPEC, query, out);
      for (int r = 0; r < ROWS; r++) {
        long at = (long) r * GROUP * DIM;
        rows.add(at, 0, SEEN + r, at);
      }
      rows.run(new KvRun().set(TYPE, kv, 0, positions * bytes));
      return out.toArray(ValueLayout.JAVA_FLOAT);
    }
  }

  private static float[] gaussians(int n, long seed) {
    Random random = new Random(seed);
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextGaussian();
    }
    return x;
  }

  @ParameterizedTest
  @MethodSource("kernelSets")
  void numbersThatAreNoneStayWithTheirHeadsRowsAndBlocks(Kernels kernels) {
    float[] q = gaussians(ROWS * GROUP * DIM, 1);
    float[] keys = gaussians((SEEN + ROWS) * DIM, 2);
    float[] values = gaussians((SEEN + ROWS) * DIM, 3);
    float[] usual = run(kernels, q, keys, values);
    // A position that the last row sees alone, and one that none sees.
    int last = SEEN + ROWS - 2;
    for (float none : new float[] {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY}) {
      float[] spoilt = q.clone();
      spoilt[(GROUP + 4) * DIM + 17] = none;
      check(usual, run(kernels, spoilt, keys, values), (row, i) -> row == 1 && i / DIM == 4);
      spoilt = keys.clone();
      spoilt[last * DIM + 40] = none;
      spoilt[(last + 1) * DIM + 3] = none;
      check(usual, run(kernels, q, spoilt, values), (row, i) -> row == 2);
      spoilt = values.clone();
      spoilt[last * DIM + 40] = none;
      spoilt[(last + 1) * DIM + 3] = none;
      check(usual, run(kernels, q, keys, spoilt), (row, i) -> row == 2 && i % DIM >= 32);
    }
  }

  private static void check(float[] usual, float[] actual, BiPredicate<Integer, Integer> none) {
    int n = GROUP * DIM;
    for (int i = 0; i < usual.length; i++) {
      float expected = none.test(i / n, i % n) ? Float.NaN : usual[i];
      assertEquals(expected, actual[i], "row " + i / n + " element " + i % n);
    }
  }

  @ParameterizedTest
  @ValueSource(floats = {1f, 1e-20f, 0x1p-110f, 3e38f, 0x1p-111f, 0f, 1e-45f})
  void codesAreWithinHalfAStep(float size) {
    float[] x = gaussians(96, 7);
    float amax = 0f;
    for (int i = 0; i < x.length; i++) {
      x[i] = i == 50 ? size : Math.clamp(x[i] * size / 8, -size, size);
      amax = Math.max(amax, Math.abs(x[i]));
    }
    int[] codes = new int[98];
    float scale = CodeProducts.quantize(MemorySegment.ofArray(x), 0, x.length, codes, 2);
    for (int i = 0; i < x.length; i++) {
      double bound = amax < CodeProducts.MIN_AMAX ? amax : 0.5001 * amax / 32639;
      assertEquals(x[i], (double) codes[i + 2] * scale, bound, "element " + i);
    }
    assertEquals(amax < CodeProducts.MIN_AMAX ? 0 : 32639, codes[52]);
  }

  @Test
  void queriesThatAreNotFiniteHaveNoScale() {
    Stream.of(Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY)
        .forEach(none -> {
          int[] codes = {1, 1, 1};
          float[] x = {1, none, 2};
          float scale = CodeProducts.quantize(MemorySegment.ofArray(x), 0, 3, codes, 0);
          assertEquals(Float.NaN, scale);
          assertEquals(0, Arrays.stream(codes).map(Math::abs).sum());
        });
  }
}
