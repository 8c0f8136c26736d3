package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.Plan;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.Span;
import io.fletch.graph.Value;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Attention on tensor cores: queries, keys and values are pieces of the embedding's rows, the
 * result is the logits. Contexts of several pieces, rows of every kind of visibility side by side.
 */
class CudaAttentionTest {
  private static final int VOCABULARY = 40;
  private static final int ROWS = 36;
  private static final int CONTEXT = 170;
  private static final int MOST = 66;

  private final SplittableRandom random = new SplittableRandom(3);
  private TensorStore store;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  @BeforeEach
  void open() {
    store = TensorStore.create();
    SoftGpu.reset().workers(2);
  }

  @AfterEach
  void close() {
    store.close();
  }

  private Graph graph(int heads, int kvHeads, int keyDim, int valueDim, int window, float cap) {
    int q = heads * keyDim;
    int k = kvHeads * keyDim;
    int v = kvHeads * valueDim;
    float[] x = new float[VOCABULARY * (q + k + v)];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) (4 * random.nextDouble() - 2);
    }
    Graph.Builder g = Graph.builder("attention");
    Value e = g.embedding("e", store.floats("e", x, VOCABULARY, q + k + v), 1);
    float scale = (float) (1.5 / Math.sqrt(keyDim));
    AttentionSpec spec = new AttentionSpec(0, heads, kvHeads, keyDim, valueDim, scale, cap, window);
    Value y =
        g.attention(
            "a",
            spec,
            g.slice("q", e, 0, q),
            g.slice("k", e, q, k),
            g.slice("v", e, q + k, v),
            Optional.of(new Gate(0, Gate.Unit.ATTENTION)));
    return g.build(g.selectRows("rows", y));
  }

  private static int[] tokens(int n) {
    int[] t = new int[n];
    for (int i = 0; i < n; i++) {
      t[i] = (i * 17 + i * i / 7) % VOCABULARY;
    }
    return t;
  }

  private static List<float[]> forward(Executable e, Batch b) {
    for (int r = 0; r < b.rows(); r++) {
      b.wantLogits(r);
    }
    e.forward(b);
    List<float[]> rows = new ArrayList<>();
    for (int r = 0; r < b.rows(); r++) {
      float[] y = new float[e.graph().logits().width()];
      b.logits(r, y);
      rows.add(y);
    }
    return rows;
  }

  /** A prompt in chunks of so many rows, from a slot on. */
  private static List<float[]> append(Executable e, Batch b, KvCache kv, int to, int chunk) {
    List<float[]> all = new ArrayList<>();
    int[] tokens = tokens(to);
    while (kv.length() < to) {
      int n = Math.min(chunk, to - kv.length());
      b.clear();
      b.append(kv, tokens, kv.length(), n);
      all.addAll(forward(e, b));
      kv.length(kv.length() + n);
    }
    return all;
  }

  /** Keys and values of the same prompt, whose rows rest. */
  private static void store(Executable e, Batch b, KvCache kv, int to) {
    int[] tokens = tokens(to);
    while (kv.length() < to) {
      int n = Math.min(ROWS, to - kv.length());
      b.clear();
      b.append(kv, tokens, kv.length(), n);
      for (int r = 0; r < n; r++) {
        b.gate(0, Gate.Unit.ATTENTION, r, Gate.SKIP);
      }
      b.wantLogits(0);
      e.forward(b);
      kv.length(kv.length() + n);
    }
  }

  /** A prompt in chunks, then rows of two sequences of every kind, one of which rests. */
  private static List<float[]> scenario(Executable e, KvCache.Type type) {
    try (KvCache one = e.newKvCache(260, type);
        KvCache two = e.newKvCache(100, type);
        Batch b = e.newBatch(ROWS, ROWS)) {
      List<float[]> all = append(e, b, one, CONTEXT, ROWS);
      two.copy(one, 9, 0, 70);
      b.clear();
      int[] t = tokens(ROWS);
      int at = CONTEXT;
      b.add(new Span(one, 9, at, at, at, 0, 0, Span.Own.BIDIRECTIONAL, 0), t, 0);
      b.add(new Span(two, 5, 70, 70, 70, 0, 0, Span.Own.CAUSAL, 0), t, 3);
      b.add(new Span(one, 7, 100, 220, 100, 108, 130, Span.Own.BIDIRECTIONAL, 0), t, 1);
      b.add(new Span(one, 6, 132, 200, 130, 0, 0, Span.Own.BLOCK_CAUSAL, 4), t, 5);
      b.add(new Span(two, 3, 3, 90, 0, 0, 0, Span.Own.BIDIRECTIONAL, 0), t, 2);
      b.gate(0, Gate.Unit.ATTENTION, 4, Gate.SKIP);
      all.addAll(forward(e, b));
      return all;
    }
  }

  private static Executable cuda(Graph graph) {
    return new CudaBackend(CudaDevices.find().first(), (done, total) -> {}).compile(graph, MOST);
  }

  /** One head per group, odd groups, groups of more than a warp takes, windows, soft caps. */
  @ParameterizedTest
  @CsvSource({
    "F16, 4, 4, 64, 64, 0, 0",
    "F16, 6, 2, 32, 96, 50, 0",
    "F16, 20, 1, 32, 32, 0, 3",
    "F16, 2, 1, 64, 256, 3, 0",
    "Q8_0, 1, 1, 256, 192, 0, 0",
    "Q8_0, 4, 2, 64, 64, 0, 0",
    "Q8_0, 7, 1, 32, 64, 20, 2",
    "Q8_0, 3, 3, 96, 32, 0, 0",
  })
  void piecesGiveWhatTheReferenceGives(
      KvCache.Type type, int heads, int kvHeads, int keyDim, int valueDim, int window, float cap) {
    Graph graph = graph(heads, kvHeads, keyDim, valueDim, window, cap);
    List<float[]> expected;
    try (Executable e = new ReferenceBackend().compile(graph, ROWS)) {
      expected = scenario(e, type);
    }
    try (Executable e = cuda(graph)) {
      List<float[]> rows = scenario(e, type);
      // What rounds on the way to a block may come out as its neighbour.
      double bound = type == KvCache.Type.F16 ? 1e-5 : 2.0 / 127;
      for (int r = 0; r < rows.size(); r++) {
        assertArrayEquals(expected.get(r), rows.get(r), (float) bound, "row " + r);
      }
      for (Plan plan : e.plans()) {
        String kernel = plan.maxRows() <= 16 ? "split_attention" : "tiled_attention";
        assertTrue(plan.steps().stream().anyMatch(s -> s.kernel().startsWith(kernel)), kernel);
      }
      check(e, type, rows);
    }
  }

  /** Rows alone, in small batches and windows that lie elsewhere have the same bits. */
  private static void check(Executable e, KvCache.Type type, List<float[]> rows) {
    try (KvCache kv = e.newKvCache(260, type);
        Batch b = e.newBatch(ROWS, ROWS)) {
      store(e, b, kv, CONTEXT - 9);
      List<float[]> few = append(e, b, kv, CONTEXT - 5, 1);
      few.addAll(append(e, b, kv, CONTEXT, 5));
      for (int i = 0; i < 9; i++) {
        float[] whole = rows.get(CONTEXT - 9 + i);
        assertArrayEquals(whole, few.get(i), type + " row " + (CONTEXT - 9 + i));
      }
      List<List<float[]>> windows = new ArrayList<>();
      for (int slot : new int[] {CONTEXT, 230}) {
        for (int others : new int[] {0, 27}) {
          b.clear();
          if (others > 0) {
            b.add(new Span(kv, others, 0, 190, 0, 0, 0, Span.Own.CAUSAL, 0), tokens(others), 0);
          }
          Span span = new Span(kv, 6, CONTEXT, slot, CONTEXT, 0, 0, Span.Own.BIDIRECTIONAL, 0);
          b.add(span, tokens(6), 0);
          windows.add(forward(e, b).subList(others, others + 6));
        }
      }
      for (List<float[]> w : windows) {
        for (int r = 0; r < 6; r++) {
          assertArrayEquals(windows.getFirst().get(r), w.get(r), "row of a window " + r);
        }
      }
    }
  }

  /**
   * A sequence whose keys and values are no numbers shares forwards with a whole one: rows of the
   * other one, and rows before the first bad token, have the bits that they have without it.
   */
  @ParameterizedTest
  @CsvSource({
    "F32, 4, 2, 64, 64, 33, NaN", "F16, 4, 2, 64, 64, 33, NaN", "F16, 2, 2, 32, 256, 33, Infinity",
    "F16, 6, 2, 64, 64, 9, NaN", "Q8_0, 4, 2, 64, 64, 33, NaN", "Q8_0, 3, 1, 64, 32, 31, NaN"
  })
  void aBrokenSessionDoesNotReachItsNeighbours(
      KvCache.Type type, int heads, int kvHeads, int keyDim, int valueDim, int rows, float bad) {
    Graph graph = graph(heads, kvHeads, keyDim, valueDim, 0, 0);
    int q = heads * keyDim;
    int kv = kvHeads * (keyDim + valueDim);
    Tensor table =
        ((Op.Embedding)
                graph.ops().stream()
                    .filter(Op.Embedding.class::isInstance)
                    .findFirst()
                    .orElseThrow())
            .table();
    List<float[]> expected;
    try (Executable e = cuda(graph)) {
      expected = besideEachOther(e, type, rows, 0);
    }
    // Of the last token all of the key or all of the value.
    int token = VOCABULARY - 1;
    for (int from : new int[] {q, q + kvHeads * keyDim}) {
      int to = from == q ? q + kvHeads * keyDim : q + kv;
      float[] whole = new float[to - from];
      MemorySegment at = table.segment().asSlice(4L * (token * (q + kv) + from), 4L * whole.length);
      MemorySegment.copy(at, ValueLayout.JAVA_FLOAT_UNALIGNED, 0, whole, 0, whole.length);
      for (int i = 0; i < whole.length; i++) {
        at.setAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, i, bad);
      }
      List<float[]> actual;
      try (Executable e = cuda(graph)) {
        actual = besideEachOther(e, type, rows, token);
      }
      at.copyFrom(MemorySegment.ofArray(whole));
      int broken = 0;
      for (int r = 0; r < expected.size(); r++) {
        boolean sees = r % (2 * rows) >= rows / 2 && r % (2 * rows) < rows;
        if (!sees) {
          assertArrayEquals(expected.get(r), actual.get(r), type + " from=" + from + " row " + r);
        } else if (!Float.isFinite(actual.get(r)[0])) {
          broken++;
        }
      }
      if (Float.isNaN(bad) && type != KvCache.Type.Q8_0) {
        assertEquals(rows - rows / 2, broken, "rows that see it");
      }
    }
  }

  /**
   * Rows of two sequences in one forward.
   *
   * @param bad takes the place of the tokens in the second half of the first sequence's rows
   */
  private static List<float[]> besideEachOther(Executable e, KvCache.Type type, int rows, int bad) {
    try (KvCache one = e.newKvCache(260, type);
        KvCache two = e.newKvCache(100, type);
        Batch b = e.newBatch(2 * rows, 2 * rows)) {
      int[] t = new int[2 * rows];
      for (int i = 0; i < t.length; i++) {
        t[i] = i % (VOCABULARY - 1);
      }
      Arrays.fill(t, rows / 2, rows, bad);
      b.add(new Span(one, rows, 0, 0, 0, 0, 0, Span.Own.CAUSAL, 0), t, 0);
      b.add(new Span(two, rows, 0, 0, 0, 0, 0, Span.Own.CAUSAL, 0), t, rows);
      return forward(e, b);
    }
  }
}
