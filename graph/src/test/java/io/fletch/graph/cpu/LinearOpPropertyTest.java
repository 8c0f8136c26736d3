package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.Plan;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import org.junit.jupiter.api.Test;

/**
 * Models whose matrices are random expressions of every kind, nested: the CPU computes what the
 * definition says, with gates and biases, and a row's bits depend on nothing but the row (specs
 * weights 6, properties 19 and 23).
 */
class LinearOpPropertyTest {
  @Provide
  Arbitrary<Kernels> kernelSets() {
    return Arbitraries.of(KernelSets.available());
  }

  @Provide
  Arbitrary<TensorType> types() {
    return Arbitraries.of(TensorType.F32, TensorType.F16, TensorType.BF16);
  }

  @Property(tries = 25, shrinking = ShrinkingMode.OFF)
  void composedModelsMatchTheReference(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    try (TestGraphs graphs = new TestGraphs(seed).composed()) {
      Shape shape = Shape.random(new SplittableRandom(seed), type);
      // Sums of random terms may nearly cancel in front of a norm, which magnifies their rounding
      // (1.1e-3 was seen); a product that is wrong is off by its own size.
      CpuBackendTest.compareWithReference(graphs.llama(shape), kernels, KvCache.Type.F32, 1e-2);
    }
  }

  @Property(tries = 8, shrinking = ShrinkingMode.OFF)
  void quantizedValuesMatchTheReference(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll boolean eight) {
    TensorType type = eight ? TensorType.Q8_0 : TensorType.Q4_0;
    try (TestGraphs graphs = new TestGraphs(seed).composed()) {
      Shape shape = Shape.random(new SplittableRandom(seed), type);
      CpuBackendTest.compareWithReference(
          graphs.llama(shape), kernels, KvCache.Type.F32, 2 * CpuBackendTest.tolerance(type));
    }
  }

  @Property(tries = 8, shrinking = ShrinkingMode.OFF)
  void piecesAndThreadsDoNotMatter(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    Shape shape = Shape.random(random, type);
    try (TestGraphs graphs = new TestGraphs(seed).composed()) {
      Graph graph = graphs.llama(shape);
      int[] ids = graphs.tokens(17, graph.vocabulary());
      float[][] expected = null;
      for (int threads : new int[] {1, 3}) {
        try (Executable e = CpuBackendTest.compile(graph, 17, threads, kernels)) {
          for (int chunk : new int[] {17, 1, 2 + random.nextInt(7)}) {
            float[][] actual = chunked(e, ids, chunk);
            expected = expected == null ? actual : expected;
            for (int r = 0; r < ids.length; r++) {
              assertArrayEquals(expected[r], actual[r], "row " + r + " chunk " + chunk);
            }
          }
        }
      }
    }
  }

  private static float[][] chunked(Executable e, int[] ids, int chunk) {
    float[][] all = new float[ids.length][e.graph().vocabulary()];
    try (KvCache kv = e.newKvCache(ids.length, KvCache.Type.F32);
        Batch b = e.newBatch(chunk, chunk)) {
      for (int from = 0; from < ids.length; from += chunk) {
        int n = Math.min(chunk, ids.length - from);
        b.clear();
        b.append(kv, ids, from, n);
        for (int r = 0; r < n; r++) {
          b.wantLogits(r);
        }
        e.forward(b);
        for (int r = 0; r < n; r++) {
          b.logits(r, all[from + r]);
        }
        kv.length(kv.length() + n);
      }
    }
    return all;
  }

  @Test
  void plansShowKernelsAndBytesOfEveryPart() {
    try (TestGraphs graphs = new TestGraphs(12).composed()) {
      Graph graph = graphs.llama(Shape.small());
      long weights =
          graph.ops().stream()
              .mapToLong(op -> op instanceof Op.Linear l ? l.weight().bytes() : 0)
              .sum();
      long columns =
          graph.ops().stream()
              .flatMap(
                  op -> op instanceof Op.Linear l ? l.weight().tensors().stream() : Stream.empty())
              .filter(t -> t.name().endsWith(".cols"))
              .mapToLong(Tensor::bytes)
              .sum();
      try (Executable e = CpuBackendTest.compile(graph, 4, 1, KernelSets.scalar())) {
        Plan plan = e.plans().getFirst();
        assertEquals(weights - columns + 64 * Float.BYTES, plan.weightBytes());
        assertTrue(plan.toString().contains("bitmap f32"), plan.toString());
        assertTrue(plan.toString().contains("block"), plan.toString());
        assertEquals(graph, e.graph());
      }
    }
  }
}
