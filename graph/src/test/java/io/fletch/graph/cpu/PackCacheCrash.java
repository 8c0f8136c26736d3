package io.fletch.graph.cpu;

import io.fletch.graph.TestGraphs;
import java.nio.file.Path;
import java.util.List;

/**
 * A start that dies while it writes packed weights, as if killed: arguments are the folder and the
 * number of the progress report after which it ends, nothing closed and nothing cleaned up.
 */
final class PackCacheCrash {
  private PackCacheCrash() {}

  /** Dies. */
  public static void main(String[] args) {
    int[] left = {Integer.parseInt(args[1])};
    TestGraphs graphs = new TestGraphs(3);
    CpuBackend.Options options =
        CpuBackend.Options.defaults()
            .withThreads(2)
            .withLayout(CpuBackend.Layout.PACKED)
            .withCache(PackCacheTest.cache(false, Path.of(args[0])))
            .withProgress((done, total) -> {
              if (--left[0] == 0) {
                Runtime.getRuntime().halt(PackCacheTest.KILLED);
              }
            });
    new CpuBackend(options).compile(graphs.llama(PackCacheTest.SHAPE), 64);
    throw new AssertionError("still alive: " + List.of(args));
  }
}
