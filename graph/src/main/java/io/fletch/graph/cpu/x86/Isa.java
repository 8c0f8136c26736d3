package io.fletch.graph.cpu.x86;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.CpuFeatures.Feature;
import java.util.Optional;

/** Instruction sets that kernels are generated for. */
public enum Isa {
  /** 256 bits, 8-bit products by vpmaddubsw. */
  AVX2("avx2", 32, 16, false),
  /** 256 bits with the 8-bit dot product; in EVEX encoding where the CPU only has that. */
  AVX_VNNI("avx-vnni", 32, 16, true),
  /** 512 bits with the 8-bit dot product. */
  AVX512_VNNI("avx512-vnni", 64, 32, true);

  private final String label;
  private final int bytes;
  private final int registers;
  private final boolean vnni;

  Isa(String label, int bytes, int registers, boolean vnni) {
    this.label = label;
    this.bytes = bytes;
    this.registers = registers;
    this.vnni = vnni;
  }

  /** The best set that a CPU has; empty when it has none of them. */
  public static Optional<Isa> of(CpuFeatures cpu) {
    for (Isa isa : new Isa[] {AVX512_VNNI, AVX_VNNI, AVX2}) {
      if (isa.supportedBy(cpu)) {
        return Optional.of(isa);
      }
    }
    return Optional.empty();
  }

  /** Whether a CPU has all that kernels of this set use. */
  public boolean supportedBy(CpuFeatures cpu) {
    boolean base = cpu.has(Feature.AVX2, Feature.FMA, Feature.F16C);
    return switch (this) {
      case AVX2 -> base;
      case AVX_VNNI ->
          base && (cpu.has(Feature.AVX_VNNI) || cpu.has(Feature.AVX512VL, Feature.AVX512_VNNI));
      case AVX512_VNNI ->
          base
              && cpu.has(
                  Feature.AVX512F,
                  Feature.AVX512BW,
                  Feature.AVX512DQ,
                  Feature.AVX512VL,
                  Feature.AVX512_VNNI);
    };
  }

  /** Name for plans and logs. */
  public String label() {
    return label;
  }

  /** Bytes of a vector. */
  public int bytes() {
    return bytes;
  }

  /** 32-bit lanes of a vector: rows of weights that are interleaved. */
  public int lanes() {
    return bytes / 4;
  }

  /** Vector registers there are. */
  int registers() {
    return registers;
  }

  /** Whether dot products need the EVEX encoding whatever their registers are. */
  boolean evexDots() {
    return vnni && !CpuFeatures.host().has(Feature.AVX_VNNI);
  }

  /** Whether there is an unsigned-by-signed 8-bit dot product into 32 bits. */
  boolean vnni() {
    return vnni;
  }
}
