package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevice;
import io.fletch.ffm.device.CudaException;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Backend;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.KvCache;
import java.util.Objects;

/** Runs graphs on an NVIDIA GPU of compute capability 8.0 or more; only the driver is needed. */
public final class CudaBackend implements Backend {
  /** Hears how many bytes of weights are on the device; called by the compiling thread. */
  @FunctionalInterface
  public interface Progress {
    /** {@code done} of {@code total} bytes are there. */
    void loaded(long done, long total);
  }

  private final CudaDevice device;
  private final Progress progress;
  private final ModuleCache modules;

  /** A backend for a device. */
  public CudaBackend(CudaDevice device, Progress progress) {
    this(device, progress, ModuleCache.off());
  }

  private CudaBackend(CudaDevice device, Progress progress, ModuleCache modules) {
    this.device = Objects.requireNonNull(device, "device");
    this.progress = Objects.requireNonNull(progress, "progress");
    this.modules = Objects.requireNonNull(modules, "modules");
  }

  /** The same with compiled kernels that are kept on disk. */
  public CudaBackend withModules(ModuleCache cache) {
    return new CudaBackend(device, progress, cache);
  }

  /** The device. */
  public CudaDevice device() {
    return device;
  }

  /** Free and total memory of the device. */
  public CudaContext.MemoryInfo memory() {
    CudaContext context = CudaContext.open(device);
    try {
      return context.memory();
    } finally {
      close(context);
    }
  }

  /**
   * Closes a context, twice if the driver refuses: one that stays retained keeps its memory for the
   * life of the process.
   */
  public static void close(CudaContext context) {
    try {
      context.close();
    } catch (CudaException e) {
      context.close();
      throw e;
    }
  }

  /**
   * Bytes of device memory that a compiled graph takes, without keys and values.
   *
   * @throws GraphException if the graph has more experts than kernels choose from
   */
  public static long bytes(Graph graph, int maxRows) {
    return CudaExecutable.bytes(graph, maxRows);
  }

  /** Bytes of keys and values of that many slots. */
  public static long kvBytes(Graph graph, KvCache.Type type, int slots) {
    long slot = 0;
    for (AttentionSpec spec : graph.kvLayers()) {
      slot += Emitter.kvBytes(type, spec.kvHeads() * spec.keyDim());
      slot += Emitter.kvBytes(type, spec.kvHeads() * spec.valueDim());
    }
    return slot * slots;
  }

  @Override
  public String name() {
    return "cuda";
  }

  /**
   * {@inheritDoc}
   *
   * @throws GraphException if the graph has more experts than kernels choose from, or the device
   *     too little memory, before any is taken
   */
  @Override
  public Executable compile(Graph graph, int maxRows) {
    return CudaExecutable.compile(graph, maxRows, device, progress, modules);
  }
}
