package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaDevice;
import io.fletch.graph.Backend;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
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
