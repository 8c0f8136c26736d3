package io.fletch.graph.cuda;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.RouteSpec;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.Value;
import io.fletch.graph.Value.Rows;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The text of the kernels; the assembler takes all of them where it is installed. */
class EmitterTest {
  private static final Optional<Gate> GATE = Optional.of(new Gate(1, Gate.Unit.FFN));

  private static List<PtxKernel> kernels(int rows) {
    Emitter e = new Emitter(new Control(rows, 2, 4, 3, 7));
    List<PtxKernel> all = new ArrayList<>();
    for (TensorType t : TensorType.values()) {
      if (Emitter.isNative(t)) {
        for (Op.Embedding.Index index : Op.Embedding.Index.values()) {
          all.add(e.embedding(t, 64, index, 2));
        }
        all.add(e.linear(t, 96, 33, true, GATE, Rows.BATCH));
        all.add(e.linear(t, 96, 33, false, GATE, Rows.LOGITS));
      }
    }
    all.add(e.linear(TensorType.F32, 33, 1, false, Optional.empty(), Rows.BATCH));
    for (Rows r : Rows.values()) {
      all.add(e.rmsNorm(207, 3, 1e-5f, 1, r));
      all.add(e.layerNorm(33, 1e-5f, true, r));
      all.add(e.layerNorm(33, 1e-5f, false, r));
      for (RopeSpec.Style style : RopeSpec.Style.values()) {
        all.add(e.rope(new RopeSpec(style, new float[8], 1.5f), 3, 20, r));
      }
      for (Activation a : Activation.values()) {
        all.add(e.activate(a, 33, true, GATE, r));
        all.add(e.activate(a, 33, false, Optional.empty(), r));
      }
      all.add(e.add(33, 0.5f, GATE, r));
      all.add(e.scale(33, 2, r));
      all.add(e.affine(33, true, GATE, r));
      all.add(e.affine(33, false, Optional.empty(), r));
      all.add(e.softCap(33, 30, r));
      all.add(e.slice(33, 1, 31, r));
      all.add(e.gather(33, 0, 31, r));
      all.add(e.gather(33, 9, 31, r));
      all.add(e.replace(33, GATE.get(), r));
      all.add(e.keepLargest(36, 2, 4, r));
      for (KvCache.Type t : KvCache.Type.values()) {
        int n = t == KvCache.Type.Q8_0 ? 64 : 40;
        AttentionSpec spec = new AttentionSpec(0, 4, 2, n, n, 0.1f, 50, 7);
        all.add(e.attention(spec, t, 1, 640, GATE, r, Optional.empty()));
        Parts parts = new Parts(4 * 64, Parts.Kind.HALF);
        AttentionSpec whole = new AttentionSpec(0, 4, 2, 64, 64, 0.1f, 0, 0);
        all.add(e.attention(whole, t, 1, 640, GATE, r, Optional.of(parts)));
      }
    }
    for (KvCache.Type t : KvCache.Type.values()) {
      all.add(e.kvStore(t, 64, 640));
    }
    for (int n : new int[] {32, 64, 128, 256}) {
      for (KvCache.Type t : new KvCache.Type[] {KvCache.Type.F16, KvCache.Type.Q8_0}) {
        AttentionSpec spec = new AttentionSpec(0, 12, 4, n, n, 0.1f, n == 64 ? 50 : 0, 7);
        AttentionTiles tiles =
            new AttentionTiles(new Control(rows, 2, 4, 3, 7), e, spec, t, 1, 640, GATE);
        all.add(tiles.split());
        all.add(tiles.whole());
        all.add(tiles.combine(true, Optional.of(new Parts(12 * n, Parts.Kind.HALF))));
        all.add(tiles.combine(false, Optional.empty()));
      }
    }
    experts(e, rows, all);
    AdapterKernels adapters = new AdapterKernels(e, new Control(rows, 2, 4, 3, 7, true));
    for (Rows r : Rows.values()) {
      all.add(adapters.down(75, r));
      all.add(adapters.up(33, true, GATE, r));
      all.add(adapters.up(33, false, Optional.empty(), r));
    }
    all.add(e.selectRows(33));
    all.add(e.skipSimilar(1, 33, GATE.orElseThrow(), new int[] {0, 3}));
    all.add(e.routeUnit(2, GATE.orElseThrow()));
    all.add(e.add(33, 1, Optional.of(GATE.orElseThrow().standIn()), Rows.BATCH));
    all.add(e.input(2, 5));
    all.add(e.statistics(97));
    all.add(e.follow(List.of(0, 7)));
    all.add(TopKernel.kernel(4 * 128_256));
    return all;
  }

  /** Mixtures of experts, and matrices that are not stored whole. */
  private static void experts(Emitter e, int rows, List<PtxKernel> all) {
    Control control = new Control(rows, 2, 4, 3, 0);
    ExpertKernels experts = new ExpertKernels(e, control);
    SparseKernels sparse = new SparseKernels(e, control);
    for (RouteSpec spec :
        List.of(
            RouteSpec.softmax(67, 7, true),
            new RouteSpec(36, 5, RouteSpec.Scoring.SIGMOID, true, 2.5f, 6, 2))) {
      all.add(experts.route(spec, true, Rows.BATCH));
      all.add(experts.list(spec.width(), spec.used(), Rows.BATCH));
    }
    try (TestGraphs graphs = new TestGraphs(1)) {
      RouteSpec spec = RouteSpec.softmax(3, 2, true);
      for (TensorType t : TensorType.values()) {
        if (!Emitter.isNative(t)) {
          continue;
        }
        List<Tensor> up = new ArrayList<>();
        List<Tensor> down = new ArrayList<>();
        for (int i = 0; i < spec.experts(); i++) {
          up.add(graphs.matrix("up" + i, t, 96, 64));
          down.add(graphs.matrix("down" + i, t, 64, 96));
        }
        Graph.Builder g = Graph.builder("experts");
        Value x = g.embedding("x", graphs.matrix("e", t, 29, 64), 1);
        LinearOp router = LinearOp.dense(graphs.matrix("r", t, 3, 64));
        Value scores = g.linear("s", x, router, Optional.empty(), Optional.empty());
        Value routing = g.route("route", scores, spec, Optional.empty());
        Value h = g.expertLinear("up", x, routing, spec, up, false);
        h = g.expertLinear("down", h, routing, spec, down, true);
        Value mixed = g.mix("mix", h, routing, spec);
        LinearOp blocks =
            new LinearOp.BlockDiagonal(
                graphs.encode("b", t, graphs.floats(2 * 33 * 32, 1), 2, 33, 32));
        Value y = g.linear("y", mixed, blocks, Optional.empty(), GATE);
        LinearOp bitmap =
            new LinearOp.Sparse(
                SparseEncoder.bitmap(graphs.masked("m", 66, 64, 0.4), t, graphs.store()));
        Value z = g.linear("z", mixed, bitmap, Optional.of(graphs.vector("zb", 66)), GATE);
        Graph graph = g.build(g.selectRows("l", g.add("a", y, z, 1, Optional.empty())));
        for (Op op : graph.ops()) {
          switch (op) {
            case Op.ExpertLinear o -> {
              all.add(experts.single(o, t));
              all.add(experts.grouped(o, t));
            }
            case Op.Mix o -> all.add(experts.mix(o));
            case Op.Linear o when o.weight() instanceof LinearOp.BlockDiagonal b ->
                all.add(sparse.blockDiagonal(o, b.blocks(), t));
            case Op.Linear o when o.weight() instanceof LinearOp.Sparse s ->
                all.add(sparse.sparse(o, SparseForm.of(s.matrix())));
            default -> {}
          }
        }
      }
    }
  }

  @Test
  void theTextDependsOnTheShapesOnly() {
    List<PtxKernel> one = kernels(8);
    List<PtxKernel> two = kernels(8);
    for (int i = 0; i < one.size(); i++) {
      String text = one.get(i).text("k");
      assertEquals(text, two.get(i).text("k"));
      assertTrue(text.startsWith(".visible .entry k("), text);
      assertFalse(text.contains("null"), text);
    }
  }

  @Test
  void theAssemblerTakesAllKernels(@TempDir Path folder) throws Exception {
    StringBuilder text = new StringBuilder(PtxKernel.header());
    int n = 0;
    for (int rows : new int[] {1, 8}) {
      for (PtxKernel k : kernels(rows)) {
        text.append(k.text("k" + n++));
      }
    }
    int assembled = n;
    Assembler.assemble(text.toString(), folder)
        .keySet()
        .forEach(target ->
            System.out.println(target + ": kernels=" + assembled + " assembled, none spills"));
  }
}
