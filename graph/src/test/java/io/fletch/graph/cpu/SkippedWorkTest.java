package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Proxy;
import java.util.Map;
import java.util.TreeMap;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** Gates save work: kernels are counted, row by row. */
class SkippedWorkTest {
  private static final int ROWS = 5;

  private final TestGraphs graphs = new TestGraphs(31);
  private final Map<String, Integer> calls = new TreeMap<>();

  @AfterEach
  void close() {
    graphs.close();
  }

  /**
   * The scalar kernels, counting calls, rows of attention, and rows of products by the width of
   * their result.
   */
  private Kernels counting() {
    return proxy(Kernels.class, KernelSets.scalar());
  }

  private <T> T proxy(Class<T> type, T target) {
    return type.cast(
        Proxy.newProxyInstance(
            type.getClassLoader(),
            new Class<?>[] {type},
            (self, method, args) -> {
              if (method.getName().equals("run")) {
                long out = (Long) args[1];
                // Once per matrix, however it is split.
                if ((Long) args[2] == 0) {
                  calls.merge("product " + out, (Integer) args[6], Integer::sum);
                }
              } else {
                boolean tile = method.getName().equals("attention");
                int times = tile ? ((AttentionTile) args[1]).rows() : 1;
                calls.merge(method.getName(), times, Integer::sum);
              }
              try {
                Object result = method.invoke(target, args);
                return result instanceof Kernels.Matmul m ? proxy(Kernels.Matmul.class, m) : result;
              } catch (InvocationTargetException e) {
                throw e.getCause();
              }
            }));
  }

  /** Counts of one forward of {@link #ROWS} rows, some of which skip units of layer 0. */
  private Map<String, Integer> count(Executable e, int skipAttention, int skipFeedForward) {
    try (KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(ROWS, 1)) {
      b.append(kv, graphs.tokens(ROWS, e.graph().vocabulary()), 0, ROWS);
      for (int r = 0; r < skipAttention; r++) {
        b.gate(0, Gate.Unit.ATTENTION, ROWS - 1 - r, Gate.SKIP);
      }
      for (int r = 0; r < skipFeedForward; r++) {
        b.gate(0, Gate.Unit.FFN, r, Gate.SKIP);
      }
      b.wantLogits(0);
      calls.clear();
      e.forward(b);
      return new TreeMap<>(calls);
    }
  }

  @Test
  void skippedRowsAreNotComputed() {
    // Widths tell the products apart: q 128, k and v 64 each, output 64, gate and up 96, down 64.
    Shape s = Shape.small();
    Graph graph = graphs.llama(s.sizes(s.hidden(), 1).wide(4, 96));
    try (Executable e = CpuBackendTest.compile(graph, ROWS, 1, counting())) {
      Map<String, Integer> all = count(e, 0, 0);
      assertEquals(ROWS, all.get("product 128"));
      assertEquals(4 * ROWS, all.get("product 64"));
      assertEquals(2 * ROWS, all.get("product 96"));
      Map<String, Integer> skipped = count(e, 2, 3);
      assertEquals(ROWS - 2, skipped.get("product 128"), "q");
      assertEquals(2 * ROWS + ROWS - 2 + ROWS - 3, skipped.get("product 64"), "k v output down");
      assertEquals(2 * (ROWS - 3), skipped.get("product 96"), "gate and up");
      assertEquals(all.get("kvStore"), skipped.get("kvStore"), "the cache is always complete");
      assertEquals(all.get("attention") - 2 * 2, skipped.get("attention"), "2 rows, 2 kv heads");
      assertEquals(all.get("rmsNorm") - 3, skipped.get("rmsNorm"), "norms of the second unit");
      assertEquals(all.get("rope") - 2 * 4, skipped.get("rope"), "4 query heads");
    }
  }
}
