package io.fletch.graph.cpu;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * The kernel sets that this JVM can run, fastest first, and why others are missing. Stateless; safe
 * for use by several threads.
 */
public final class KernelSets {
  private static final String VECTOR_MODULE = "jdk.incubator.vector";

  private KernelSets() {}

  /**
   * A choice and its reason.
   *
   * @param kernels the set
   * @param reason why it and not a faster one, one clause without a full stop
   */
  public record Choice(Kernels kernels, String reason) {}

  /** Plain Java; always there. */
  public static Kernels scalar() {
    return ScalarKernels.INSTANCE;
  }

  /** The Vector API, where its module is in the module graph. */
  public static Optional<Kernels> vector() {
    return Optional.empty();
  }

  /** All sets that can run here, fastest first. */
  public static List<Kernels> available() {
    List<Kernels> sets = new ArrayList<>();
    vector().ifPresent(sets::add);
    sets.add(scalar());
    return List.copyOf(sets);
  }

  /** The fastest set that can run here. */
  public static Choice best() {
    Optional<Kernels> vector = vector();
    if (vector.isPresent()) {
      return new Choice(vector.get(), "fastest available");
    }
    return new Choice(scalar(), "add --add-modules " + VECTOR_MODULE + " for faster kernels");
  }
}
