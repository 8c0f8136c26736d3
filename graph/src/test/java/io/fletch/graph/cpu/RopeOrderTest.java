package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.RopeSpec;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;

/** Specs weights 6, property 15: the two orders of rotation differ by the order of rows alone. */
class RopeOrderTest {
  @Test
  void rotatedPairsArePermutedHalvesBitForBit() {
    SplittableRandom random = new SplittableRandom(5);
    for (Kernels kernels : KernelSets.available()) {
      for (int dim : new int[] {8, 64, 96, 128}) {
        try (TensorStore store = TensorStore.create()) {
          int half = dim / 2;
          MemorySegment halves = random(store, random, dim);
          MemorySegment angles = random(store, random, dim);
          MemorySegment pairs = store.allocate("pairs", TensorType.F32, dim).segment();
          for (int i = 0; i < dim; i++) {
            int to = i < half ? 2 * i : 2 * (i - half) + 1;
            put(pairs, to, get(halves, i));
          }
          kernels.rope(RopeSpec.Style.NEOX, halves, 0, dim, angles, 0, half, halves, 0);
          kernels.rope(RopeSpec.Style.NORM, pairs, 0, dim, angles, 0, half, pairs, 0);
          for (int i = 0; i < dim; i++) {
            int from = i < half ? 2 * i : 2 * (i - half) + 1;
            assertEquals(get(halves, i), get(pairs, from), kernels.name() + " element " + i);
          }
        }
      }
    }
  }

  private static MemorySegment random(TensorStore store, SplittableRandom random, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextDouble(-1, 1);
    }
    Tensor t = store.floats("x", x, n);
    return t.segment();
  }

  private static float get(MemorySegment s, int i) {
    return s.getAtIndex(ValueLayout.JAVA_FLOAT, i);
  }

  private static void put(MemorySegment s, int i, float v) {
    s.setAtIndex(ValueLayout.JAVA_FLOAT, i, v);
  }
}
