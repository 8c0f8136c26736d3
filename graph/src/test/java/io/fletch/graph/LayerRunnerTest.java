package io.fletch.graph;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Layer by layer gives what the reference gives at once. */
class LayerRunnerTest {
  private static final int[] IDS = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2};

  private static float[][] reference(Graph graph) {
    try (Executable e = new ReferenceBackend().compile(graph, IDS.length);
        KvCache kv = e.newKvCache(IDS.length, KvCache.Type.F32);
        Batch b = e.newBatch(IDS.length, IDS.length)) {
      b.append(kv, IDS, 0, IDS.length);
      for (int r = 0; r < IDS.length; r++) {
        b.wantLogits(r);
      }
      e.forward(b);
      float[][] logits = new float[IDS.length][graph.vocabulary()];
      for (int r = 0; r < IDS.length; r++) {
        b.logits(r, logits[r]);
      }
      return logits;
    }
  }

  /** Norm and output matrix after the last layer, which the runner does not run. */
  private static float[][] head(Graph graph, LayerRunner runner, int sequence) {
    Op.SelectRows selected = null;
    float[] x = null;
    Set<Value> known = new HashSet<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.SelectRows o) {
        selected = o;
        x = runner.state(sequence, o.in());
        known.add(o.out());
      } else if (selected != null && known.containsAll(op.inputs())) {
        x =
            switch (op) {
              case Op.RmsNorm o -> ReferenceExecutable.rmsNorm(o, x);
              case Op.SoftCap o -> ReferenceExecutable.softCap(o, x);
              case Op.Linear o -> {
                float[] y = new float[x.length / o.in().width() * o.out().width()];
                ReferenceExecutable.product(o.weight(), x, x.length / o.in().width(), y);
                yield y;
              }
              default -> throw new AssertionError(op);
            };
        known.add(op.output().orElseThrow());
      }
    }
    float[][] rows = new float[x.length / graph.vocabulary()][graph.vocabulary()];
    for (int r = 0; r < rows.length; r++) {
      System.arraycopy(x, r * graph.vocabulary(), rows[r], 0, graph.vocabulary());
    }
    return rows;
  }

  private static void check(Graph graph) {
    LayerRunner runner = new LayerRunner(graph, true);
    runner.start(new int[][] {{7, 7}, IDS});
    while (runner.layers() > 0 && !runner.toString().contains("layer " + runner.layers() + " of")) {
      // Looking changes nothing.
      runner.observe((op, x, rows) -> assertEquals(rows * op.in().width(), x.length));
      runner.advance();
    }
    float[][] expected = reference(graph);
    float[][] actual = head(graph, runner, 1);
    for (int r = 0; r < IDS.length; r++) {
      assertArrayEquals(expected[r], actual[r], 2e-4f, "row " + r);
    }
  }

  @ParameterizedTest
  @ValueSource(longs = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
  void sameLogitsAsTheReference(long seed) {
    try (TestGraphs graphs = new TestGraphs(seed)) {
      SplittableRandom random = new SplittableRandom(seed);
      check(graphs.llama(TestGraphs.Shape.random(random, TensorType.F32)));
    }
  }

  @ParameterizedTest
  @ValueSource(longs = {1, 2, 3})
  void sameLogitsOfMixtures(long seed) {
    try (TestGraphs graphs = new TestGraphs(seed)) {
      check(graphs.mixture(TestGraphs.Shape.small(), graphs.routing()));
    }
  }

  @Test
  void inputsAreShownAndMatricesCanBeReplaced() {
    try (TestGraphs graphs = new TestGraphs(5)) {
      Graph graph = graphs.llama(TestGraphs.Shape.small());
      LayerRunner runner = new LayerRunner(graph, true);
      runner.start(new int[][] {IDS});
      List<Op.Linear> seen = new ArrayList<>();
      runner.observe((op, x, rows) -> seen.add(op));
      assertEquals(runner.linears(0), seen);
      assertSame(seen.get(0).in(), seen.get(1).in(), "queries and keys share their input");
      Tensor down = ((LinearOp.Dense) seen.getLast().weight()).weight();
      Tensor output =
          seen.stream()
              .filter(op -> op.output().orElseThrow().name().endsWith("attn_output"))
              .map(op -> ((LinearOp.Dense) op.weight()).weight())
              .findFirst()
              .orElseThrow();
      assertThrows(IllegalArgumentException.class, () -> runner.replace(down, new float[3]));
      // Without both branches the layer is the identity.
      runner.replace(down, new float[(int) down.elements()]);
      runner.replace(output, new float[(int) output.elements()]);
      runner.advance();
      Op.Embedding embedding = (Op.Embedding) graph.ops().getFirst();
      float[] row = new float[embedding.out().width()];
      List<float[]> inputs = new ArrayList<>();
      Value in =
          graph.ops().stream()
              .filter(op -> op.output().map(v -> v.name().equals("blk.1.attn_norm")).orElse(false))
              .map(op -> op.inputs().getFirst())
              .findFirst()
              .orElseThrow();
      inputs.add(runner.state(0, in));
      for (int r = 0; r < IDS.length; r++) {
        Dequantizer.row(embedding.table(), IDS[r], row, 0);
        for (int i = 0; i < row.length; i++) {
          assertEquals(row[i] * embedding.scale(), inputs.getFirst()[r * row.length + i]);
        }
      }
      assertTrue(inputs.getFirst().length == IDS.length * row.length);
    }
  }
}
