package io.fletch.graph;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.LinearOp;
import io.fletch.quant.TensorType;
import java.util.Optional;
import java.util.function.BiPredicate;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** The oracle against arithmetic written down independently. */
class ReferenceBackendTest {
  private static final int DIM = 32;
  private static final int VOCABULARY = 50;
  private static final float SCALE = 0.3f;

  private final TestGraphs graphs = new TestGraphs(7);

  @AfterEach
  void close() {
    graphs.close();
  }

  /** Logits are the attention output itself: one head whose q, k, v are the embeddings. */
  private Graph attentionOnly(float[] table, int window) {
    float[] identity = new float[DIM * DIM];
    for (int i = 0; i < DIM; i++) {
      identity[i * DIM + i] = 1;
    }
    Graph.Builder g = Graph.builder("attention");
    Value x = g.embedding("embd", graphs.encode("embd", TensorType.F32, table, VOCABULARY, DIM), 1);
    AttentionSpec spec = new AttentionSpec(0, 1, 1, DIM, DIM, SCALE, 0, window);
    Value a = g.attention("attn", spec, x, x, x, Optional.empty());
    Value s = g.selectRows("rows", a);
    return g.build(
        g.linear(
            "out",
            s,
            LinearOp.dense(graphs.encode("one", TensorType.F32, identity, DIM, DIM)),
            Optional.empty(),
            Optional.empty()));
  }

  /** Attention of a query token over a set of tokens, from the definition. */
  private static float[] attend(float[] table, int query, int[] seen) {
    double[] p = new double[seen.length];
    double sum = 0;
    for (int k = 0; k < seen.length; k++) {
      double dot = 0;
      for (int i = 0; i < DIM; i++) {
        dot += (double) table[query * DIM + i] * table[seen[k] * DIM + i];
      }
      p[k] = Math.exp(dot * SCALE);
      sum += p[k];
    }
    float[] y = new float[DIM];
    for (int i = 0; i < DIM; i++) {
      double v = 0;
      for (int k = 0; k < seen.length; k++) {
        v += p[k] / sum * table[seen[k] * DIM + i];
      }
      y[i] = (float) v;
    }
    return y;
  }

  /**
   * Fills slots 0..23 with known tokens, runs a span over it, and compares every row with the
   * definition; {@code sees(row, slot)} says what a row must see.
   */
  private void check(
      int window,
      int prefix,
      int slot,
      int rows,
      int position,
      int from,
      int to,
      Span.Own own,
      int block,
      BiPredicate<Integer, Integer> sees) {
    float[] table = graphs.floats(VOCABULARY * DIM, 1);
    Graph graph = attentionOnly(table, window);
    int[] atSlot = graphs.tokens(24, VOCABULARY);
    int[] ids = graphs.tokens(rows, VOCABULARY);
    try (Executable e = new ReferenceBackend().compile(graph, 32);
        KvCache kv = e.newKvCache(64, KvCache.Type.F32);
        Batch b = e.newBatch(32, 32)) {
      b.append(kv, atSlot, 0, 24);
      e.forward(b);
      b.clear();
      b.add(new Span(kv, rows, position, slot, prefix, from, to, own, block), ids, 0);
      for (int r = 0; r < rows; r++) {
        b.wantLogits(r);
      }
      e.forward(b);
      for (int r = 0; r < rows; r++) {
        int row = r;
        int[] seen =
            java.util.stream.IntStream.range(0, 64)
                .filter(s -> sees.test(row, s))
                .map(s -> s >= slot && s < slot + rows ? ids[s - slot] : atSlot[s])
                .toArray();
        float[] actual = new float[DIM];
        b.logits(r, actual);
        assertArrayEquals(attend(table, ids[r], seen), actual, 1e-5f, "row " + r);
      }
    }
  }

  @Test
  void causal() {
    check(0, 24, 24, 5, 24, 0, 0, Span.Own.CAUSAL, 0, (r, s) -> s <= 24 + r);
  }

  @Test
  void causalWithWindow() {
    check(4, 24, 24, 9, 24, 0, 0, Span.Own.CAUSAL, 0, (r, s) -> s <= 24 + r && s > 24 + r - 4);
  }

  @Test
  void windowOfOneSeesItselfOnly() {
    check(1, 24, 24, 3, 24, 0, 0, Span.Own.CAUSAL, 0, (r, s) -> s == 24 + r);
  }

  @Test
  void bidirectionalInPlaceWithSuffix() {
    check(0, 8, 8, 6, 8, 14, 24, Span.Own.BIDIRECTIONAL, 0, (r, s) -> s < 24);
  }

  @Test
  void bidirectionalWithoutPrefix() {
    check(0, 0, 3, 7, 0, 0, 0, Span.Own.BIDIRECTIONAL, 0, (r, s) -> s >= 3 && s < 10);
  }

  @Test
  void blockCausalOnTheGridOfPositions() {
    // Positions 10..16 with blocks of 4: block ends are 12, 16, 20.
    int[] end = {12, 12, 16, 16, 16, 16, 20};
    check(0, 10, 10, 7, 10, 0, 0, Span.Own.BLOCK_CAUSAL, 4, (r, s) -> s < Math.min(end[r], 17));
  }

  @Test
  void candidateBehindSharedPrefixAndSuffix() {
    check(
        0,
        6,
        40,
        4,
        6,
        10,
        20,
        Span.Own.BIDIRECTIONAL,
        0,
        (r, s) -> s < 6 || s >= 10 && s < 20 || s >= 40 && s < 44);
  }

  @Test
  void candidateWithWindowCountsThePrefixAsItsPast() {
    check(
        5,
        10,
        40,
        4,
        10,
        0,
        0,
        Span.Own.CAUSAL,
        0,
        (r, s) -> s < 10 && s >= 10 + r - 4 || s >= 40 && s <= 40 + r);
  }

  @Test
  void rowsOverlappingThePrefixAreSeenOnce() {
    check(0, 20, 12, 4, 12, 0, 0, Span.Own.BIDIRECTIONAL, 0, (r, s) -> s < 20);
  }

  @Test
  void copiedSlotsAreTheSlots() {
    Graph graph = graphs.llama(TestGraphs.Shape.small());
    int[] ids = graphs.tokens(6, graph.vocabulary());
    try (Executable e = new ReferenceBackend().compile(graph, 16);
        Batch b = e.newBatch(16, 1);
        KvCache from = e.newKvCache(24, KvCache.Type.F16);
        KvCache to = e.newKvCache(16, KvCache.Type.F16)) {
      last(e, b, from, ids, 0, 5);
      from.length(5);
      from.copy(from, 0, 12, 5);
      to.copy(from, 12, 0, 5);
      to.length(5);
      assertArrayEquals(last(e, b, from, ids, 5, 1), last(e, b, to, ids, 5, 1));
      assertThrows(IllegalArgumentException.class, () -> from.copy(from, 0, 4, 5));
      assertThrows(IndexOutOfBoundsException.class, () -> to.copy(from, 0, 12, 5));
    }
  }

  @Test
  void truncateAndReplayEqualsFresh() {
    Graph graph = graphs.llama(TestGraphs.Shape.small());
    int[] ids = graphs.tokens(12, graph.vocabulary());
    try (Executable e = new ReferenceBackend().compile(graph, 16);
        Batch b = e.newBatch(16, 1)) {
      for (KvCache.Type type : KvCache.Type.values()) {
        try (KvCache fresh = e.newKvCache(32, type);
            KvCache used = e.newKvCache(32, type)) {
          float[] expected = last(e, b, fresh, ids, 0, 12);
          last(e, b, used, ids, 0, 7);
          used.length(7);
          last(e, b, used, graphs.tokens(9, graph.vocabulary()), 0, 9);
          used.length(16);
          used.length(5);
          float[] actual = last(e, b, used, ids, 5, 7);
          assertArrayEquals(expected, actual, type + " cache");
        }
      }
    }
  }

  private static float[] last(Executable e, Batch b, KvCache kv, int[] ids, int from, int count) {
    b.clear();
    int first = b.append(kv, ids, from, count);
    int logit = b.wantLogits(first + count - 1);
    e.forward(b);
    float[] y = new float[e.graph().vocabulary()];
    b.logits(logit, y);
    return y;
  }

  @Test
  void skippingEveryUnitLeavesTheEmbedding() {
    Graph graph = graphs.llama(TestGraphs.Shape.small());
    try (Executable e = new ReferenceBackend().compile(graph, 4);
        Batch b = e.newBatch(4, 1);
        KvCache kv = e.newKvCache(8, KvCache.Type.F32)) {
      int[] ids = {3, 5};
      b.append(kv, ids, 0, 2);
      for (int l = 0; l < 2; l++) {
        b.gate(l, Gate.Unit.ATTENTION, 1, Gate.SKIP);
        b.gate(l, Gate.Unit.FFN, 1, Gate.SKIP);
      }
      b.wantLogits(1);
      e.forward(b);
      float[] skipped = new float[graph.vocabulary()];
      b.logits(0, skipped);
      // The same row behind another token: nothing of the first row may reach it.
      int[] other = {8, 5};
      b.clear();
      b.append(kv, other, 0, 2);
      for (int l = 0; l < 2; l++) {
        b.gate(l, Gate.Unit.ATTENTION, 1, Gate.SKIP);
        b.gate(l, Gate.Unit.FFN, 1, Gate.SKIP);
      }
      b.wantLogits(1);
      e.forward(b);
      float[] again = new float[graph.vocabulary()];
      b.logits(0, again);
      assertArrayEquals(skipped, again);
      b.clear();
      b.append(kv, other, 0, 2);
      b.wantLogits(1);
      e.forward(b);
      b.logits(0, again);
      assertTrue(Math.abs(skipped[0] - again[0]) > 1e-6, "clear() must reset the gates");
    }
  }

  @Test
  void statisticsMatchTheirDefinition() {
    Graph graph = graphs.llama(TestGraphs.Shape.small());
    try (Executable e = new ReferenceBackend().compile(graph, 4);
        Batch b = e.newBatch(4, 4);
        KvCache kv = e.newKvCache(8, KvCache.Type.F32)) {
      int[] ids = {1, 2, 3};
      b.append(kv, ids, 0, 3);
      b.wantLogits(2);
      e.forward(b);
      float[] x = new float[graph.vocabulary()];
      b.logits(0, x);
      double sum = 0;
      int best = 0;
      for (int i = 0; i < x.length; i++) {
        sum += Math.exp(x[i]);
        best = x[i] > x[best] ? i : best;
      }
      double entropy = 0;
      float second = Float.NEGATIVE_INFINITY;
      for (int i = 0; i < x.length; i++) {
        double p = Math.exp(x[i]) / sum;
        entropy -= p * Math.log(p);
        second = i == best ? second : Math.max(second, x[i]);
      }
      Batch.RowStatistics s = new Batch.RowStatistics();
      b.statistics(0, s);
      assertEquals(best, s.argmax);
      assertEquals(best, b.argmax(0));
      assertEquals(x[best], s.top1);
      assertEquals(second, s.top2);
      assertEquals(Math.log(sum), s.logSumExp, 1e-9);
      assertEquals(entropy, s.entropy, 1e-8);
      assertEquals(Math.exp(x[best]) / sum, s.probability(), 1e-9);
    }
  }

  @SuppressWarnings("try") // a cache is closed early on purpose
  @Test
  void wrongArgumentsAreRefused() {
    Graph graph = graphs.llama(TestGraphs.Shape.small());
    try (Executable e = new ReferenceBackend().compile(graph, 4);
        Executable other = new ReferenceBackend().compile(graph, 4);
        Batch b = e.newBatch(4, 1);
        KvCache kv = e.newKvCache(8, KvCache.Type.F32);
        KvCache foreign = other.newKvCache(8, KvCache.Type.F32)) {
      int[] ids = {0, 1, 2, 3, 4, 5};
      assertThrows(IllegalArgumentException.class, () -> e.forward(b));
      assertThrows(IllegalArgumentException.class, () -> b.append(foreign, ids, 0, 1));
      assertThrows(IllegalArgumentException.class, () -> b.append(kv, ids, 0, 5));
      assertThrows(IllegalArgumentException.class, () -> b.append(kv, new int[] {97}, 0, 1));
      assertThrows(IllegalArgumentException.class, () -> b.append(kv, new int[] {-1}, 0, 1));
      assertThrows(IndexOutOfBoundsException.class, () -> b.append(kv, ids, 5, 2));
      assertEquals(0, b.rows());
      b.append(kv, ids, 0, 2);
      assertThrows(IllegalArgumentException.class, () -> b.append(kv, ids, 0, 2));
      assertThrows(IndexOutOfBoundsException.class, () -> b.wantLogits(2));
      assertThrows(IllegalArgumentException.class, () -> b.gate(2, Gate.Unit.FFN, 0, Gate.SKIP));
      b.wantLogits(1);
      assertEquals(0, b.wantLogits(1), "asking twice gives the same logit row");
      assertThrows(IllegalArgumentException.class, () -> b.wantLogits(0));
      assertThrows(IllegalStateException.class, () -> b.argmax(0));
      e.forward(b);
      b.argmax(0);
      assertThrows(IndexOutOfBoundsException.class, () -> kv.length(9));
      assertThrows(IllegalArgumentException.class, () -> other.forward(b));
      kv.close();
      assertThrows(IllegalStateException.class, () -> e.forward(b));
    }
  }
}
