package io.fletch.runtime.engine;

import io.fletch.ModelOptions;
import io.fletch.ffm.device.CudaContext;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.KvCache;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.cuda.CudaBackend;
import java.lang.System.Logger.Level;

/** How many of a model's layers run on a GPU: what was asked for, or as many as fit. Stateless. */
final class Offload {
  private static final System.Logger LOG = System.getLogger("io.fletch");

  private Offload() {}

  /**
   * Layers for the GPU, from the last one on.
   *
   * @return from 1 to all of the graph
   * @throws GraphException if those asked for do not fit, or not even one does
   */
  static int layers(Graph graph, int rows, ModelOptions options, CudaBackend gpu) {
    int all = graph.kvLayers().size();
    boolean asked = options.gpuLayers() != ModelOptions.AS_MANY_AS_FIT;
    int most = asked ? Math.min(options.gpuLayers(), all) : all;
    CudaContext.MemoryInfo memory = gpu.memory();
    // Compiled kernels, and what other programs take meanwhile.
    long free = memory.free() - memory.total() / 64;
    long wanted = bytes(graph, rows, options, all - most);
    if (wanted <= free || all < 2) {
      return most;
    }
    int fitting;
    try {
      fitting = fitting(graph, rows, options, most - 1, free);
    } catch (GraphException e) {
      // It cannot be cut in two: all of it is tried.
      LOG.log(Level.DEBUG, e::getMessage);
      return most;
    }
    String what =
        wanted
            + " bytes (with keys and values of "
            + options.contextLength()
            + " tokens), free="
            + free
            + " of "
            + memory.total()
            + " on "
            + gpu.device().name();
    if (asked || fitting == 0) {
      throw new GraphException(
          graph.name()
              + ": layers on the GPU: "
              + most
              + " of "
              + all
              + " need "
              + what
              + "; "
              + (fitting == 0 ? "not even the last one fits" : fitting + " would fit"));
    }
    LOG.log(
        Level.WARNING,
        () ->
            graph.name()
                + ": the last "
                + fitting
                + " of "
                + all
                + " layers run on the GPU, the others on the CPU: all need "
                + what);
    return fitting;
  }

  /** The most layers up to {@code most} that fit; fewer layers never need more. */
  private static int fitting(Graph graph, int rows, ModelOptions options, int most, long free) {
    int all = graph.kvLayers().size();
    int fit = 0;
    int tooMany = most + 1;
    while (tooMany - fit > 1) {
      int n = (fit + tooMany) / 2;
      if (bytes(graph, rows, options, all - n) <= free) {
        fit = n;
      } else {
        tooMany = n;
      }
    }
    return fit;
  }

  /** Bytes of the part from a layer on, with the keys and values of one session. */
  private static long bytes(Graph graph, int rows, ModelOptions options, int first) {
    Graph part = SplitBackend.second(graph, first);
    KvCache.Type type = KvCache.Type.valueOf(options.kvType().name());
    return CudaBackend.bytes(part, rows) + CudaBackend.kvBytes(part, type, options.contextLength());
  }
}
