package io.fletch.graph.cuda;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.Value;
import io.fletch.graph.Value.Rows;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Sizes of packed matrices, and what the assembler says of the products with them. */
class ProductsTest {
  static final Pattern FUNCTION = Pattern.compile("Compiling entry function '([^']+)' for");
  static final Pattern REGISTERS = Pattern.compile("Used (\\d+) registers");
  private static final Optional<Gate> GATE = Optional.of(new Gate(1, Gate.Unit.FFN));

  /** Types of kept elements of packed 2:4 matrices. */
  private static final List<TensorType> SPARSE =
      List.of(TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0);

  private static List<TensorType> types() {
    return Arrays.stream(TensorType.values()).filter(PackedMatrix::takes).toList();
  }

  /** Addresses do not matter. */
  private static final FewRows.Addresses NOWHERE =
      new FewRows.Addresses() {
        @Override
        public long of(Value value) {
          return 0;
        }

        @Override
        public long weights(Object source) {
          return 0;
        }

        @Override
        public long parts(Fusion.Source source) {
          return 0;
        }

        @Override
        public int keysBefore(KvCache.Type type, int layer) {
          return 640;
        }
      };

  /** A layer of a Llama of 4096 elements with every second matrix of another type. */
  private static Graph layer(TestGraphs graphs, TensorType t, TensorType other, boolean sparse) {
    Graph.Builder g = Graph.builder("layer");
    int n = 4096;
    Optional<Tensor> none = Optional.empty();
    Optional<Gate> gate = Optional.of(new Gate(0, Gate.Unit.ATTENTION));
    RopeSpec rope =
        new RopeSpec(
            t.ordinal() % 2 == 0 ? RopeSpec.Style.NORM : RopeSpec.Style.NEOX, new float[64], 1);
    Matrices w = sparse ? ProductsTest::sparse : ProductsTest::matrix;
    Value x = g.embedding("x", empty(graphs, "e", t, 64, n), 1);
    Value h = g.rmsNorm("n", x, graphs.norm("n", n), 1e-5f, 1, 1);
    Value q = g.linear("q", h, w.of(graphs, "q", t, n, n), none, gate);
    Value k = g.linear("k", h, w.of(graphs, "k", t, 1024, n), none, Optional.empty());
    Value v = g.linear("v", h, w.of(graphs, "v", other, 1024, n), none, Optional.empty());
    q = g.rope("qr", q, rope, 32, 128);
    k = g.rope("kr", k, rope, 8, 128);
    AttentionSpec spec = new AttentionSpec(0, 32, 8, 128, 128, 0.1f, 0, 0);
    Value a = g.attention("a", spec, q, k, v, gate);
    Value o = g.linear("o", a, w.of(graphs, "o", other, n, n), none, gate);
    x = g.add("s", x, o, 1, gate);
    h = g.rmsNorm("n2", x, graphs.norm("n2", n), 1e-5f, 1, 1);
    Value u = g.linear("u", h, w.of(graphs, "u", t, 14336, n), none, GATE);
    Value f = g.linear("f", h, w.of(graphs, "f", t, 14336, n), none, GATE);
    Value act = g.activate("act", Activation.SILU, Optional.of(f), u, GATE);
    Value d = g.linear("d", act, w.of(graphs, "d", other, n, 14336), none, GATE);
    x = g.add("s2", x, d, 1, GATE);
    h = g.rmsNorm("n3", g.selectRows("l", x), graphs.norm("n3", n), 1e-5f, 1, 1);
    return g.build(g.linear("logits", h, w.of(graphs, "w", t, 64, n), none, Optional.empty()));
  }

  @FunctionalInterface
  private interface Matrices {
    LinearOp of(TestGraphs graphs, String name, TensorType t, int rows, int cols);
  }

  private static LinearOp sparse(TestGraphs graphs, String name, TensorType t, int rows, int cols) {
    Tensor index = graphs.store().allocate(name + ".index", TensorType.I8, rows, cols / 8);
    index.segment().fill((byte) 0x44);
    Tensor values = empty(graphs, name, t, rows, cols / 2);
    return new LinearOp.Sparse(new SparseMatrix.TwoOfFour(index, values));
  }

  private static LinearOp matrix(TestGraphs graphs, String name, TensorType t, int rows, int cols) {
    return LinearOp.dense(empty(graphs, name, t, rows, cols));
  }

  private static Tensor empty(TestGraphs graphs, String name, TensorType t, int rows, int cols) {
    return graphs.store().allocate(name, t, rows, cols);
  }

  private static PtxKernel few(Fusion.Product p, int rows, KvCache.Type kv, boolean overlaps) {
    Control c = new Control(rows, 2, 4, 0, 0);
    return new FewRows(c, new Emitter(c), NOWHERE, kv, overlaps).product(p).kernel();
  }

  private static PtxKernel wide(Fusion.Product p, int rows) {
    Fusion.Branch b = p.branches().getFirst();
    Optional<Op.Add> add =
        b.tail() instanceof Fusion.Residual r ? Optional.of(r.add()) : Optional.empty();
    return new Products(new Control(rows, 2, 4, 0, 0))
        .wide(b.linear(), p.source().norm().isPresent(), add);
  }

  private static Map<String, PtxKernel> kernels(TensorType t) {
    Map<String, PtxKernel> all = new LinkedHashMap<>();
    PackedMatrix m = PackedMatrix.of(t, 4096, 4096);
    for (Op.Embedding.Index index : Op.Embedding.Index.values()) {
      PtxKernel k = new Products(new Control(1, 2, 4, 0, 0)).embedding(m, index, 2);
      all.put("embedding_" + index, k);
    }
    TensorType other =
        Parts.Kind.of(t) == Parts.Kind.BFLOAT || t == TensorType.Q6_K ? t : TensorType.Q6_K;
    all.putAll(products(t, other, false));
    return all;
  }

  private static Map<String, PtxKernel> products(TensorType t, TensorType other, boolean sparse) {
    Map<String, PtxKernel> all = new LinkedHashMap<>();
    try (TestGraphs graphs = new TestGraphs(1)) {
      for (Fusion.Node node : Fusion.of(layer(graphs, t, other, sparse))) {
        if (!(node instanceof Fusion.Product p)) {
          continue;
        }
        String name = p.branches().getFirst().linear().out().name();
        switch (name) {
          case "q" -> {
            all.put("qkv_1", few(p, 1, KvCache.Type.F16, false));
            if (t == TensorType.Q8_0 || t == TensorType.Q4_K) {
              all.put("qkv_8_Q8_0", few(p, 8, KvCache.Type.Q8_0, false));
              all.put("qkv_8_F32", few(p, 8, KvCache.Type.F32, false));
            }
          }
          case "f" -> {
            all.put("gate_up_8", few(p, 8, KvCache.Type.F16, false));
            if (sparse) {
              all.put("gate_up_1", few(p, 1, KvCache.Type.F16, false));
            }
          }
          case "o" -> {
            all.put("residual_1", few(p, 1, KvCache.Type.F16, false));
            all.put("wide_64", wide(p, 64));
          }
          case "logits" -> all.put("wide", wide(p, 512));
          default -> {}
        }
      }
    }
    return all;
  }

  @Test
  void packedFormsAreNotMuchLargerThanTheFile() {
    for (TensorType t : types()) {
      long packed = PackedMatrix.of(t, 4096, 4096).bytes();
      double ratio = packed / (double) t.bytes(4096L * 4096);
      // Scales of MXFP4 and Q3_K become whole bytes or more.
      double most = t == TensorType.MXFP4 || t == TensorType.Q3_K ? 1.06 : 1.03;
      assertTrue(ratio >= 1 && ratio < most, t + " " + ratio);
    }
    try (TestGraphs graphs = new TestGraphs(1)) {
      for (TensorType t : SPARSE) {
        LinearOp w = sparse(graphs, "w" + t, t, 4096, 4096);
        assertEquals(w.bytes(), PackedMatrix.of(w).orElseThrow().bytes(), t.toString());
      }
    }
  }

  @Test
  void theAssemblerTakesAllProducts(@TempDir Path folder) throws Exception {
    StringBuilder text = new StringBuilder(PtxKernel.header());
    for (TensorType t : types()) {
      kernels(t).forEach((name, k) -> text.append(k.text(name + "_" + t)));
    }
    for (TensorType t : SPARSE) {
      products(t, t, true).forEach((name, k) -> text.append(k.text(name + "_2of4_" + t)));
    }
    for (Rows rows : Rows.values()) {
      for (Parts.Kind kind : Parts.Kind.values()) {
        Parts p = new Parts(4096, kind);
        String name = kind + "_" + rows;
        Control c = new Control(8, 2, 4, 0, 0);
        text.append(p.prepare(c, Optional.empty(), rows).text("prepare_" + name));
        Parts.Norm norm = new Parts.Norm(1e-5f, 2);
        text.append(p.prepare(c, Optional.of(norm), rows).text("prepare_norm_" + name));
      }
    }
    Assembler.assemble(text.toString(), folder).forEach(ProductsTest::report);
  }

  /**
   * What the machine code of decoding can reach on an H200, counted and not measured; bench/gpu and
   * docs/gpu.md.
   */
  @Test
  void productsThatOverlapCanStreamFastEnough(@TempDir Path folder) throws Exception {
    StringBuilder text = new StringBuilder(PtxKernel.header(90));
    Map<String, Roofline.Kernel> all = new LinkedHashMap<>();
    for (TensorType t : Roofline.TYPES) {
      for (int rows : new int[] {1, 8}) {
        String name = t + "_" + rows;
        PtxKernel k = gateUp(t, rows).overlapping();
        text.append(k.text(name));
        all.put(name, new Roofline.Kernel(t, rows, k.threads()));
      }
    }
    Map<String, String> outputs = Assembler.assemble(text.toString(), folder, "sm_90");
    if (outputs.isEmpty()) {
      return;
    }
    List<Roofline.Row> table =
        Roofline.of(all, outputs.get("sm_90"), folder.resolve("sm_90.cubin"));
    System.out.print(Roofline.text(table));
    for (Roofline.Row r : table) {
      assertTrue(r.share() >= r.wanted(), r + ": expected share>=" + r.wanted());
    }
  }

  private static PtxKernel gateUp(TensorType t, int rows) {
    try (TestGraphs graphs = new TestGraphs(1)) {
      return Fusion.of(layer(graphs, t, t, false)).stream()
          .filter(Fusion.Product.class::isInstance)
          .map(Fusion.Product.class::cast)
          .filter(p -> p.branches().getFirst().linear().out().name().equals("f"))
          .map(p -> few(p, rows, KvCache.Type.F16, true))
          .findFirst()
          .orElseThrow();
    }
  }

  private static void report(String target, String output) {
    String kernel = "";
    List<String> all = new ArrayList<>();
    for (String line : output.lines().toList()) {
      Matcher function = FUNCTION.matcher(line);
      if (function.find()) {
        kernel = function.group(1);
      }
      Matcher registers = REGISTERS.matcher(line);
      if (registers.find()) {
        all.add(kernel + "=" + registers.group(1));
      }
    }
    System.out.println(target + ": registers " + String.join(" ", all) + ", none spills");
  }
}
