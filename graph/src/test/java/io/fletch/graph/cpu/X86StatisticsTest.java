package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Batch.RowStatistics;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Statistics in machine code against double precision in Java, on pages with guards behind them.
 */
class X86StatisticsTest {
  private static RowStatistics of(float[] logits) {
    Kernels kernels = X86TestSets.orSkip(Isa.AVX2);
    RowStatistics s = new RowStatistics();
    try (GuardedMemory memory = new GuardedMemory(true)) {
      MemorySegment x = memory.allocate(4L * logits.length);
      MemorySegment.copy(logits, 0, x, ValueLayout.JAVA_FLOAT_UNALIGNED, 0, logits.length);
      assertTrue(kernels.statistics(x, 0, logits.length, s));
    }
    return s;
  }

  private static void check(float[] logits) {
    RowStatistics s = of(logits);
    float[] sorted = logits.clone();
    Arrays.sort(sorted);
    float top = sorted[sorted.length - 1];
    double sum = 0;
    double weighted = 0;
    int argmax = -1;
    for (int i = 0; i < logits.length; i++) {
      double d = (double) logits[i] - top;
      double e = Math.exp(d);
      sum += e;
      weighted += e == 0 ? 0 : d * e;
      argmax = argmax < 0 && logits[i] == top ? i : argmax;
    }
    assertEquals(argmax, s.argmax);
    assertEquals(top, s.top1);
    float second = logits.length > 1 ? sorted[sorted.length - 2] : Float.NEGATIVE_INFINITY;
    assertEquals(second, s.top2);
    assertEquals(top + Math.log(sum), s.logSumExp, 1e-9 * Math.max(1, Math.abs(top)));
    assertEquals(Math.log(sum) - weighted / sum, s.entropy, 1e-9);
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2, 7, 8, 9, 16, 17, 1000, 50257, 128256})
  void agreesWithDoublePrecision(int n) {
    Random random = new Random(n);
    for (double scale : new double[] {0, 1e-3, 1, 10, 500, 1e30}) {
      float[] x = new float[n];
      for (int i = 0; i < n; i++) {
        x[i] = (float) (scale * random.nextGaussian());
      }
      check(x);
    }
  }

  @Test
  void tiesAndForbiddenTokens() {
    float[] x = new float[100];
    Arrays.fill(x, Float.NEGATIVE_INFINITY);
    x[41] = 3;
    check(x);
    x[57] = 3;
    x[99] = 3;
    check(x);
    x[99] = 2.5f;
    check(x);
  }

  @Test
  void notANumberIsSeen() {
    float[] x = new float[40];
    for (int at : new int[] {0, 13, 39}) {
      Arrays.fill(x, 1);
      x[3] = 2;
      x[at] = Float.NaN;
      RowStatistics s = of(x);
      assertEquals(3, s.argmax);
      assertTrue(Double.isNaN(s.logSumExp), "at " + at);
      assertTrue(Double.isNaN(s.entropy), "at " + at);
    }
  }

  @Test
  void otherSetsHaveNoCode() {
    try (GuardedMemory memory = new GuardedMemory(true)) {
      assertFalse(KernelSets.scalar().statistics(memory.allocate(4), 0, 1, new RowStatistics()));
    }
  }
}
