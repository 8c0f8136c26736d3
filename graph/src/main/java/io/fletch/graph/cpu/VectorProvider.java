package io.fletch.graph.cpu;

import java.util.Optional;

/**
 * The way to the kernels of the Vector API without linking them: this class mentions no type of the
 * incubator module, so it loads where the module is absent.
 */
final class VectorProvider {
  private static final String MODULE = "jdk.incubator.vector";

  private VectorProvider() {}

  /** The kernel set, or empty where {@link #obstacle} says why not. */
  static Optional<Kernels> kernels() {
    return obstacle().isPresent() ? Optional.empty() : Optional.of(Holder.KERNELS);
  }

  /** Why there is no such kernel set in this process, in one line with the remedy. */
  static Optional<String> obstacle() {
    Optional<Module> vector = ModuleLayer.boot().findModule(MODULE);
    if (vector.isEmpty()) {
      return Optional.of("module " + MODULE + " is not resolved: add --add-modules " + MODULE);
    }
    if (!VectorProvider.class.getModule().canRead(vector.get())) {
      return Optional.of(
          "module " + MODULE + " is not readable by " + VectorProvider.class.getModule());
    }
    return Optional.empty();
  }

  private static final class Holder {
    static final Kernels KERNELS = new VectorKernels();
  }
}
