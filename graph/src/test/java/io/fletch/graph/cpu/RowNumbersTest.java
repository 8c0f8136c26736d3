package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.graph.Activation;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.TensorType;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Numbers that come with rows, and hidden states that go with logits. */
class RowNumbersTest {
  private static final int WIDTH = 64;
  private static final int NUMBERS = 7;
  private static final int ROWS = 5;

  private static Graph graph(TestGraphs t) {
    Graph.Builder g = Graph.builder("numbers");
    Value e = g.embedding("e", t.matrix("e", TensorType.F16, 19, WIDTH), 1);
    Value x =
        g.linear(
            "x",
            g.input("numbers", 2, 5),
            LinearOp.dense(t.matrix("w", TensorType.F32, WIDTH, 5)),
            Optional.of(t.vector("b", WIDTH)),
            Optional.empty());
    Value act = g.activate("act", Activation.GELU_ERF, Optional.empty(), x, Optional.empty());
    Value sum = g.add("sum", e, act, 1, Optional.empty());
    Value hidden = g.rmsNorm("hidden", g.selectRows("s", sum), t.norm("n", WIDTH), 1e-5f, 1, 1);
    Value logits =
        g.linear(
            "logits",
            hidden,
            LinearOp.dense(t.matrix("o", TensorType.F32, 3, WIDTH)),
            Optional.empty(),
            Optional.empty());
    return g.build(logits, hidden);
  }

  /** Hidden states, then logits, of all rows but the first, the last one first. */
  private static float[][] run(Executable e) {
    float[][] out = new float[ROWS - 1][WIDTH + 3];
    try (KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(ROWS, ROWS)) {
      for (int pass = 0; pass < 2; pass++) {
        b.clear();
        b.append(kv, new int[] {3, 3, 3, 18, 0}, 0, ROWS);
        for (int r = 1; r < ROWS; r++) {
          if (r != 3) {
            b.input(r, numbers(r));
          }
        }
        for (int r = ROWS - 1; r > 0; r--) {
          b.wantLogits(r);
        }
        e.forward(b);
      }
      float[] hidden = new float[WIDTH];
      float[] logits = new float[3];
      for (int r = 0; r < out.length; r++) {
        b.hidden(r, hidden);
        b.logits(r, logits);
        System.arraycopy(hidden, 0, out[r], 0, WIDTH);
        System.arraycopy(logits, 0, out[r], WIDTH, 3);
      }
    }
    return out;
  }

  private static float[] numbers(int row) {
    float[] x = new float[NUMBERS];
    for (int i = 0; i < NUMBERS; i++) {
      x[i] = (float) Math.sin(row * 7 + i) * row;
    }
    return x;
  }

  static java.util.stream.Stream<Kernels> kernelSets() {
    return KernelSets.available().stream();
  }

  @ParameterizedTest
  @MethodSource("kernelSets")
  void areThoseOfTheReference(Kernels kernels) {
    try (TestGraphs t = new TestGraphs(3)) {
      Graph graph = graph(t);
      assertEquals(NUMBERS, graph.inputWidth());
      float[][] expected;
      try (Executable e = new ReferenceBackend().compile(graph, ROWS)) {
        expected = run(e);
      }
      for (int threads : new int[] {1, 3}) {
        try (Executable e = CpuBackendTest.compile(graph, ROWS, threads, kernels)) {
          CpuBackendTest.assertClose(expected, run(e), 2e-5, kernels.name());
        }
      }
    }
  }

  @Test
  void mistakesAreRefused() {
    try (TestGraphs t = new TestGraphs(3);
        Executable e =
            CpuBackendTest.compile(graph(t), ROWS, 1, KernelSets.available().getFirst());
        KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(ROWS, ROWS)) {
      b.append(kv, new int[] {1}, 0, 1);
      assertThrows(IllegalArgumentException.class, () -> b.input(0, new float[NUMBERS - 1]));
      assertThrows(IndexOutOfBoundsException.class, () -> b.input(1, new float[NUMBERS]));
      b.wantLogits(0);
      float[] hidden = new float[WIDTH];
      assertThrows(IllegalStateException.class, () -> b.hidden(0, hidden), "not run");
      e.forward(b);
      b.hidden(0, hidden);
      float[] again = hidden.clone();
      b.input(0, numbers(1));
      assertThrows(IllegalStateException.class, () -> b.hidden(0, hidden), "not run again");
      b.clear();
      b.append(kv, new int[] {1}, 0, 1);
      b.wantLogits(0);
      e.forward(b);
      b.hidden(0, hidden);
      assertArrayEquals(again, hidden, "numbers of an earlier batch are forgotten");
    }
    try (TestGraphs t = new TestGraphs(4)) {
      Graph.Builder g = Graph.builder("product");
      Value x = g.embedding("e", t.matrix("e", TensorType.F32, 19, WIDTH), 1);
      Value s = g.selectRows("s", x);
      LinearOp w = LinearOp.dense(t.matrix("w", TensorType.F32, WIDTH, WIDTH));
      Value h = g.linear("h", s, w, Optional.empty(), Optional.empty());
      Value logits = g.linear("l", h, w, Optional.empty(), Optional.empty());
      assertThrows(IllegalArgumentException.class, () -> g.build(logits, x), "of all rows");
      Graph graph = g.build(logits, h);
      assertThrows(
          GraphException.class,
          () -> CpuBackendTest.compile(graph, 1, 1, KernelSets.available().getFirst()).close());
      Graph plain = g.build(logits);
      try (Executable e = CpuBackendTest.compile(plain, 1, 1, KernelSets.available().getFirst());
          KvCache kv = e.newKvCache(1, KvCache.Type.F32);
          Batch b = e.newBatch(1, 1)) {
        b.append(kv, new int[] {1}, 0, 1);
        b.wantLogits(0);
        e.forward(b);
        assertThrows(IllegalStateException.class, () -> b.hidden(0, new float[WIDTH]));
        assertThrows(IllegalArgumentException.class, () -> b.input(0, new float[0]));
      }
    }
  }
}
