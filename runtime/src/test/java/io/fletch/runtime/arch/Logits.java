package io.fletch.runtime.arch;

import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import java.util.function.Consumer;

/** Logits of all tokens of a text, in one forward with a cache of float32. */
final class Logits {
  private Logits() {}

  static float[][] of(Backend backend, Graph graph, int[] ids) {
    return of(backend, graph, ids, b -> {});
  }

  /**
   * The same where rows ask for something.
   *
   * @param change of the batch, before it runs
   */
  static float[][] of(Backend backend, Graph graph, int[] ids, Consumer<Batch> change) {
    int n = ids.length;
    try (Executable e = backend.compile(graph, n);
        KvCache kv = e.newKvCache(n, KvCache.Type.F32);
        Batch batch = e.newBatch(n, n)) {
      batch.append(kv, ids, 0, n);
      for (int r = 0; r < n; r++) {
        batch.wantLogits(r);
      }
      change.accept(batch);
      e.forward(batch);
      float[][] out = new float[n][graph.logits().width()];
      for (int r = 0; r < n; r++) {
        batch.logits(r, out[r]);
      }
      return out;
    }
  }
}
