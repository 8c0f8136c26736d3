package io.fletch.graph.cpu;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.graph.cpu.x86.Isa;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * The kernel sets that this JVM can run, fastest first, and why others are missing. Stateless; safe
 * for use by several threads.
 */
public final class KernelSets {
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
    return VectorProvider.kernels();
  }

  /** Machine code for the best instruction set of this CPU, where it can run. */
  public static Optional<Kernels> machineCode() {
    return Isa.of(CpuFeatures.host()).flatMap(KernelSets::machineCode);
  }

  private static Optional<Kernels> machineCode(Isa isa) {
    return X86Kernels.of(isa, vector().orElse(scalar()));
  }

  /** All sets that can run here, fastest first; machine code for every instruction set. */
  public static List<Kernels> available() {
    List<Kernels> sets = new ArrayList<>();
    for (Isa isa : new Isa[] {Isa.AVX512_VNNI, Isa.AVX_VNNI, Isa.AVX2}) {
      machineCode(isa).ifPresent(sets::add);
    }
    vector().ifPresent(sets::add);
    sets.add(scalar());
    return List.copyOf(sets);
  }

  /** The fastest set that can run here. */
  public static Choice best() {
    Optional<Kernels> code = machineCode();
    if (code.isPresent()) {
      return new Choice(code.get(), "the best instruction set of this CPU");
    }
    String obstacle =
        ExecutableMemory.refusal()
            .orElseGet(() -> "no machine code for this CPU: " + CpuFeatures.host());
    return vector()
        .map(k -> new Choice(k, obstacle))
        .orElseGet(
            () -> new Choice(scalar(), obstacle + "; " + VectorProvider.obstacle().orElse("")));
  }
}
