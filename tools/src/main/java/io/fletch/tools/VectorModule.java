package io.fletch.tools;

import io.fletch.ModelOptions;
import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import java.lang.reflect.InvocationTargetException;

/**
 * Loads the incubator module {@code jdk.incubator.vector} into the running JVM when, and only when,
 * its kernels are wanted. With {@code --add-modules} every start would pay for it (about 0.1 s, the
 * archived module graph is lost) and print a warning, though the emitted machine code needs none of
 * it.
 *
 * <p>The way in is an internal method of the JDK, opened by {@code Add-Exports} in the manifest of
 * the program's jar; so it works for {@code java -jar} only. Where it fails nothing is lost: the
 * kernels say that the module is missing and name the flag.
 */
final class VectorModule {
  private static final String NAME = "jdk.incubator.vector";

  private VectorModule() {}

  /** Loads the module if these options can make use of it. */
  static void load(ModelOptions options) {
    boolean wanted =
        switch (options.kernels()) {
          case VECTOR -> true;
          case AUTO -> runsOnCpu(options) && !emitsMachineCode();
          case SCALAR, NATIVE -> false;
        };
    if (wanted && !isLoaded()) {
      try {
        Class.forName("jdk.internal.module.Modules")
            .getMethod("loadModule", String.class)
            .invoke(null, NAME);
      } catch (ClassNotFoundException
          | NoSuchMethodException
          | IllegalAccessException
          | InvocationTargetException _) {
        // Started without the manifest, or another JDK: the kernels report it.
      }
    }
  }

  private static boolean emitsMachineCode() {
    return ExecutableMemory.refusal().isEmpty() && CpuFeatures.host().has(CpuFeatures.Feature.AVX2);
  }

  /** Whether this process has the module, however it came. */
  static boolean isLoaded() {
    try {
      Class.forName(NAME + ".Vector", false, null);
      return true;
    } catch (ClassNotFoundException _) {
      return false;
    }
  }

  /** Whether CPU kernels may run. */
  private static boolean runsOnCpu(ModelOptions options) {
    return options.backend() == ModelOptions.Backend.CPU
        || options.backend() == ModelOptions.Backend.AUTO;
  }
}
