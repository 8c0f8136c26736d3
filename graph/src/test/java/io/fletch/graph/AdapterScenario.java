package io.fletch.graph;

import io.fletch.graph.LowRankAdapter.Term;
import io.fletch.graph.support.PreparedAdapter;
import io.fletch.quant.TensorType;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;

/** Sequences with different adapters, run together and alone. */
public final class AdapterScenario {
  private static final TensorType[] TYPES = {TensorType.F32, TensorType.F16, TensorType.BF16};

  private AdapterScenario() {}

  /** Random deltas for a random subset of a graph's products, at least one. */
  public static Map<Value, LowRankDelta> deltas(TestGraphs graphs, Graph graph) {
    SplittableRandom random = graphs.random();
    List<Op.Linear> products = new ArrayList<>(PreparedAdapter.products(graph).values());
    int always = random.nextInt(products.size());
    Map<Value, LowRankDelta> deltas = new LinkedHashMap<>();
    for (int i = 0; i < products.size(); i++) {
      if (i == always || random.nextBoolean()) {
        Value out = products.get(i).out();
        deltas.put(out, delta(graphs, graph, out));
      }
    }
    return deltas;
  }

  /** A random delta for a product. */
  public static LowRankDelta delta(TestGraphs graphs, Graph graph, Value product) {
    SplittableRandom random = graphs.random();
    Op.Linear l = PreparedAdapter.products(graph).get(product);
    int rank = 1 + random.nextInt(20);
    String name = product.name();
    return new LowRankDelta(
        graphs.matrix("a." + name, type(random), rank, l.in().width()),
        graphs.matrix("b." + name, type(random), l.out().width(), rank),
        (float) (0.2 + random.nextDouble()),
        random.nextInt(3) == 0
            ? Optional.of(graphs.vector("g." + name, l.out().width()))
            : Optional.empty());
  }

  private static TensorType type(SplittableRandom random) {
    return TYPES[random.nextInt(TYPES.length)];
  }

  /**
   * Logits of all rows of the sequences.
   *
   * @param terms of each sequence
   * @param together whether each forward takes a piece of every sequence
   * @param piece tokens of a sequence per forward
   */
  public static float[][][] run(
      Executable e, int[][] ids, List<List<Term>> terms, boolean together, int piece) {
    int n = ids.length;
    float[][][] all = new float[n][][];
    List<KvCache> caches = new ArrayList<>();
    try (Batch b = e.newBatch(n * piece, n * piece)) {
      for (int s = 0; s < n; s++) {
        all[s] = new float[ids[s].length][e.graph().vocabulary()];
        caches.add(e.newKvCache(ids[s].length, KvCache.Type.F32));
      }
      if (together) {
        while (step(e, b, ids, terms, caches, all, 0, n, piece)) {}
      } else {
        for (int s = 0; s < n; s++) {
          while (step(e, b, ids, terms, caches, all, s, s + 1, piece)) {}
        }
      }
    } finally {
      caches.forEach(KvCache::close);
    }
    return all;
  }

  private static boolean step(
      Executable e,
      Batch b,
      int[][] ids,
      List<List<Term>> terms,
      List<KvCache> caches,
      float[][][] all,
      int from,
      int to,
      int piece) {
    b.clear();
    int[] count = new int[ids.length];
    for (int s = from; s < to; s++) {
      KvCache kv = caches.get(s);
      count[s] = Math.min(piece, ids[s].length - kv.length());
      if (count[s] > 0) {
        int first = b.append(kv, ids[s], kv.length(), count[s]);
        for (int i = 0; i < count[s]; i++) {
          b.adapt(first + i, terms.get(s));
          b.wantLogits(first + i);
        }
      }
    }
    if (b.rows() == 0) {
      return false;
    }
    e.forward(b);
    int row = 0;
    for (int s = from; s < to; s++) {
      KvCache kv = caches.get(s);
      for (int i = 0; i < count[s]; i++) {
        b.logits(row++, all[s][kv.length() + i]);
      }
      kv.length(kv.length() + count[s]);
    }
    return true;
  }
}
