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
    Optional<Module> vector = module();
    if (vector.isEmpty()) {
      return Optional.of("module " + MODULE + " is not resolved: add --add-modules " + MODULE);
    }
    // A no-op where the descriptor's "requires static" or the class path gave it already.
    VectorProvider.class.getModule().addReads(vector.get());
    return Optional.empty();
  }

  /**
   * The module, from the boot layer or loaded into the boot loader later, as the command line does
   * it: that one is in no layer that can be asked.
   */
  private static Optional<Module> module() {
    Optional<Module> resolved = ModuleLayer.boot().findModule(MODULE);
    if (resolved.isPresent()) {
      return resolved;
    }
    try {
      return Optional.of(Class.forName(MODULE + ".Vector", false, null).getModule());
    } catch (ClassNotFoundException _) {
      return Optional.empty();
    }
  }

  private static final class Holder {
    static final Kernels KERNELS = new VectorKernels();
  }
}
