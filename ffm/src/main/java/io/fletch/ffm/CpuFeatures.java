package io.fletch.ffm;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Mem;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.EnumSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;

/**
 * What the CPU can do, as far as kernels care. Immutable.
 *
 * <p>Features count only when the operating system also saves their registers (XGETBV). They are
 * read with CPUID where machine code can run, else from {@code /proc/cpuinfo}. The system property
 * {@code fletch.cpu} caps them for tests and comparisons: {@code native} (default), {@code avx512},
 * {@code avx-vnni}, {@code avx2} or {@code none}. {@code fletch.cpu.assume} lists features, by the
 * names of {@code /proc/cpuinfo} and separated by commas, that count as there whatever CPUID says,
 * before the cap: hypervisors hide some that the CPU executes. Where the CPU does not, the process
 * dies of an illegal instruction.
 */
public final class CpuFeatures {
  /** Instruction set extensions that kernels choose by. */
  public enum Feature {
    AVX2("avx2"),
    FMA("fma"),
    F16C("f16c"),
    BMI2("bmi2"),
    POPCNT("popcnt"),
    AVX_VNNI("avx_vnni"),
    AVX512F("avx512f"),
    AVX512DQ("avx512dq"),
    AVX512BW("avx512bw"),
    AVX512VL("avx512vl"),
    AVX512_VBMI("avx512vbmi"),
    AVX512_VBMI2("avx512_vbmi2"),
    AVX512_VNNI("avx512_vnni"),
    AVX512_BF16("avx512_bf16"),
    AVX512_FP16("avx512_fp16"),
    AMX_TILE("amx_tile"),
    AMX_INT8("amx_int8"),
    AMX_BF16("amx_bf16");

    private final String procName;

    Feature(String procName) {
      this.procName = procName;
    }

    private boolean isAvx512() {
      return name().startsWith("AVX512");
    }

    private boolean isAmx() {
      return name().startsWith("AMX");
    }
  }

  private static final class Host {
    static final CpuFeatures DETECTED = detect();
    static final CpuFeatures CAPPED =
        DETECTED
            .assume(named(System.getProperty("fletch.cpu.assume", "")))
            .cap(System.getProperty("fletch.cpu", "native"));
  }

  private final String model;
  private final String source;
  private final Set<Feature> features;
  private final long l1;
  private final long l2;
  private final long l3;

  private CpuFeatures(
      String model, String source, Set<Feature> features, long l1, long l2, long l3) {
    this.model = model;
    this.source = source;
    this.features = Collections.unmodifiableSet(features);
    this.l1 = l1;
    this.l2 = l2;
    this.l3 = l3;
  }

  /** The CPU of this process, capped by {@code fletch.cpu}. */
  public static CpuFeatures host() {
    return Host.CAPPED;
  }

  /** The CPU of this process whatever {@code fletch.cpu} says: not for what may be executed. */
  public static CpuFeatures detected() {
    return Host.DETECTED;
  }

  /**
   * These features without those above a level.
   *
   * @param level {@code native}, {@code avx512} (no AMX), {@code avx-vnni} (AVX2 with AVX-VNNI
   *     where it is there: what desktop CPUs of Intel have), {@code avx2} (nothing newer), {@code
   *     none}
   */
  public CpuFeatures cap(String level) {
    Set<Feature> kept = EnumSet.noneOf(Feature.class);
    kept.addAll(features);
    switch (level.toLowerCase(Locale.ROOT)) {
      case "native" -> {}
      case "avx512" -> kept.removeIf(Feature::isAmx);
      case "avx-vnni" -> kept.removeIf(f -> f.isAmx() || f.isAvx512());
      case "avx2" -> kept.removeIf(f -> f.isAmx() || f.isAvx512() || f == Feature.AVX_VNNI);
      case "none" -> kept.clear();
      default ->
          throw new IllegalArgumentException(
              "fletch.cpu: expected=native|avx512|avx-vnni|avx2|none actual=" + level);
    }
    return new CpuFeatures(model, source, kept, l1, l2, l3);
  }

  /**
   * These features and more, for tests of what is chosen, and what {@code fletch.cpu.assume} says.
   */
  public CpuFeatures assume(Set<Feature> more) {
    Set<Feature> all = EnumSet.noneOf(Feature.class);
    all.addAll(features);
    return new CpuFeatures(
        model, all.addAll(more) ? source + ", assumed" : source, all, l1, l2, l3);
  }

  private static Set<Feature> named(String list) {
    Set<Feature> named = EnumSet.noneOf(Feature.class);
    for (String name : list.split(",")) {
      String wanted = name.strip();
      if (!wanted.isEmpty()) {
        named.add(
            Arrays.stream(Feature.values())
                .filter(f -> f.procName.equals(wanted))
                .findFirst()
                .orElseThrow(() ->
                    new IllegalArgumentException(
                        "fletch.cpu.assume: expected=names like avx_vnni actual=" + wanted)));
      }
    }
    return named;
  }

  /** Whether all of these are usable. */
  public boolean has(Feature first, Feature... rest) {
    return features.contains(first) && features.containsAll(List.of(rest));
  }

  /** All usable features. */
  public Set<Feature> features() {
    return features;
  }

  /** The model name that the CPU reports. */
  public String model() {
    return model;
  }

  /** Bytes of the level-1 data cache of a core; 0 if unknown. */
  public long l1Bytes() {
    return l1;
  }

  /** Bytes of the level-2 cache of a core; 0 if unknown. */
  public long l2Bytes() {
    return l2;
  }

  /** Bytes of the level-3 cache; 0 if unknown. */
  public long l3Bytes() {
    return l3;
  }

  /** One line for logs. */
  @Override
  public String toString() {
    StringBuilder text = new StringBuilder(model);
    text.append(", ").append(Affinity.physicalCores()).append(" cores, L1d ").append(size(l1));
    text.append(", L2 ").append(size(l2)).append(", L3 ").append(size(l3)).append(':');
    for (Feature f : features) {
      text.append(' ').append(f.procName);
    }
    return text.append(" (").append(source).append(')').toString();
  }

  private static String size(long bytes) {
    return bytes == 0 ? "?" : bytes >= 1 << 20 ? (bytes >> 20) + " MiB" : (bytes >> 10) + " KiB";
  }

  private static CpuFeatures detect() {
    String arch = System.getProperty("os.arch");
    if (!(arch.equals("amd64") || arch.equals("x86_64"))) {
      return new CpuFeatures(arch, "os.arch", EnumSet.noneOf(Feature.class), 0, 0, 0);
    }
    return ExecutableMemory.refusal().isEmpty() ? fromCpuid() : fromProc();
  }

  static CpuFeatures fromCpuid() {
    Cpuid cpuid = new Cpuid();
    int maxLeaf = cpuid.leaf(0, 0)[0];
    int[] one = cpuid.leaf(1, 0);
    int[] seven = maxLeaf >= 7 ? cpuid.leaf(7, 0) : new int[4];
    int[] sevenOne = seven[0] >= 1 ? cpuid.leaf(7, 1) : new int[4];
    boolean osSaves = bit(one[2], 27);
    long state = osSaves ? cpuid.xgetbv() : 0;
    boolean ymm = (state & 0x6) == 0x6;
    boolean zmm = (state & 0xe6) == 0xe6;
    boolean tiles = (state & 0x60000) == 0x60000;
    Set<Feature> f = EnumSet.noneOf(Feature.class);
    add(f, Feature.POPCNT, bit(one[2], 23));
    add(f, Feature.BMI2, bit(seven[1], 8));
    add(f, Feature.AVX2, ymm && bit(one[2], 28) && bit(seven[1], 5));
    add(f, Feature.FMA, ymm && bit(one[2], 12));
    add(f, Feature.F16C, ymm && bit(one[2], 29));
    add(f, Feature.AVX_VNNI, ymm && bit(sevenOne[0], 4));
    add(f, Feature.AVX512F, zmm && bit(seven[1], 16));
    add(f, Feature.AVX512DQ, zmm && bit(seven[1], 17));
    add(f, Feature.AVX512BW, zmm && bit(seven[1], 30));
    add(f, Feature.AVX512VL, zmm && bit(seven[1], 31));
    add(f, Feature.AVX512_VBMI, zmm && bit(seven[2], 1));
    add(f, Feature.AVX512_VBMI2, zmm && bit(seven[2], 6));
    add(f, Feature.AVX512_VNNI, zmm && bit(seven[2], 11));
    add(f, Feature.AVX512_BF16, zmm && bit(sevenOne[0], 5));
    add(f, Feature.AVX512_FP16, zmm && bit(seven[3], 23));
    add(f, Feature.AMX_TILE, tiles && bit(seven[3], 24));
    add(f, Feature.AMX_INT8, tiles && bit(seven[3], 25));
    add(f, Feature.AMX_BF16, tiles && bit(seven[3], 22));
    return withCaches(cpuid.brand(), "cpuid", f);
  }

  static CpuFeatures fromProc() {
    Set<Feature> f = EnumSet.noneOf(Feature.class);
    String model = "x86-64";
    try (var lines = Files.lines(Path.of("/proc/cpuinfo"))) {
      for (String line : (Iterable<String>) lines::iterator) {
        int colon = line.indexOf(':');
        if (colon < 0) {
          continue;
        }
        String value = line.substring(colon + 1).strip();
        if (line.startsWith("model name")) {
          model = value;
        } else if (line.startsWith("flags")) {
          Set<String> flags = Set.copyOf(List.of(value.split(" ")));
          for (Feature feature : Feature.values()) {
            add(f, feature, flags.contains(feature.procName));
          }
          break;
        }
      }
    } catch (IOException | UncheckedIOException e) {
      return withCaches(model, "unknown", EnumSet.noneOf(Feature.class));
    }
    return withCaches(model, "/proc/cpuinfo", f);
  }

  private static CpuFeatures withCaches(String model, String source, Set<Feature> features) {
    long[] sizes = new long[4];
    for (int i = 0; i < 8; i++) {
      Path index = Path.of("/sys/devices/system/cpu/cpu0/cache/index" + i);
      try {
        int level = Integer.parseInt(Files.readString(index.resolve("level")).strip());
        String type = Files.readString(index.resolve("type")).strip();
        String size = Files.readString(index.resolve("size")).strip();
        if (level < sizes.length && !type.equals("Instruction")) {
          long unit = size.endsWith("K") ? 1024 : size.endsWith("M") ? 1 << 20 : 1;
          String digits = unit == 1 ? size : size.substring(0, size.length() - 1);
          sizes[level] = Long.parseLong(digits) * unit;
        }
      } catch (IOException | NumberFormatException e) {
        break;
      }
    }
    return new CpuFeatures(model, source, features, sizes[1], sizes[2], sizes[3]);
  }

  private static boolean bit(int word, int bit) {
    return (word >>> bit & 1) != 0;
  }

  private static void add(Set<Feature> features, Feature feature, boolean present) {
    if (present) {
      features.add(feature);
    }
  }

  /** CPUID and XGETBV as emitted functions. */
  private static final class Cpuid {
    private final ExecutableMemory.Function cpuid;
    private final ExecutableMemory.Function xgetbv;

    Cpuid() {
      Assembler a = new Assembler();
      a.push(Gpr.RBX);
      a.mov(Gpr.R8, Gpr.RDX);
      a.mov(Gpr.RAX, Gpr.RDI);
      a.mov(Gpr.RCX, Gpr.RSI);
      a.cpuid();
      a.mov32(Mem.of(Gpr.R8, 0), Gpr.RAX);
      a.mov32(Mem.of(Gpr.R8, 4), Gpr.RBX);
      a.mov32(Mem.of(Gpr.R8, 8), Gpr.RCX);
      a.mov32(Mem.of(Gpr.R8, 12), Gpr.RDX);
      a.pop(Gpr.RBX);
      a.ret();
      cpuid = ExecutableMemory.shared().emit("cpuid", a.assemble());
      a = new Assembler();
      a.xor32(Gpr.RCX, Gpr.RCX);
      a.xgetbv();
      a.shl(Gpr.RDX, 32);
      a.or(Gpr.RAX, Gpr.RDX);
      a.ret();
      xgetbv = ExecutableMemory.shared().emit("xgetbv", a.assemble());
    }

    /** EAX, EBX, ECX, EDX. */
    int[] leaf(int leaf, int subleaf) {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment out = arena.allocate(16, 8);
        ExecutableMemory.call(cpuid, leaf, subleaf, out.address());
        return out.toArray(ValueLayout.JAVA_INT);
      }
    }

    long xgetbv() {
      return ExecutableMemory.call(xgetbv, 0, 0, 0);
    }

    String brand() {
      if (Integer.compareUnsigned(leaf(0x80000000, 0)[0], 0x80000004) < 0) {
        return "x86-64";
      }
      List<Byte> bytes = new ArrayList<>();
      for (int leaf = 0x80000002; leaf <= 0x80000004; leaf++) {
        for (int word : leaf(leaf, 0)) {
          for (int i = 0; i < 4; i++) {
            byte b = (byte) (word >>> 8 * i);
            if (b != 0) {
              bytes.add(b);
            }
          }
        }
      }
      byte[] text = new byte[bytes.size()];
      for (int i = 0; i < text.length; i++) {
        text[i] = bytes.get(i);
      }
      return new String(text, StandardCharsets.US_ASCII).strip();
    }
  }
}
