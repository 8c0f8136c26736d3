package io.fletch.ffm;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Binding of platform threads to CPUs. Every method concerns the calling thread or the process and
 * may be called from any thread; on systems without it, pinning does nothing and says so.
 */
public final class Affinity {
  private static final int MASK_BYTES = 1024 / 8;

  /** CPUs the process was allowed to use when this class was first used. */
  private static final class Process {
    static final long[] MASK = current();
    // Of a pinned thread the JVM says 1.
    static final int PROCESSORS = Runtime.getRuntime().availableProcessors();
  }

  private Affinity() {}

  /** Whether threads can be bound here. */
  public static boolean available() {
    return NativeAccess.libc() && Process.MASK != null;
  }

  /** CPUs that the process may use, ascending; empty where that is unknown. */
  public static List<Integer> allowed() {
    List<Integer> cpus = new ArrayList<>();
    if (available()) {
      for (int cpu = 0; cpu < MASK_BYTES * 8; cpu++) {
        if ((Process.MASK[cpu >> 6] >>> cpu & 1) != 0) {
          cpus.add(cpu);
        }
      }
    }
    return List.copyOf(cpus);
  }

  /**
   * One allowed CPU per physical core, ascending; empty where that is unknown. Cores are told apart
   * by the siblings that sysfs lists.
   */
  public static List<Integer> cores() {
    List<Integer> cores = new ArrayList<>();
    Set<String> seen = new HashSet<>();
    for (int cpu : allowed()) {
      Path path = Path.of("/sys/devices/system/cpu/cpu" + cpu + "/topology/thread_siblings_list");
      String siblings;
      try {
        siblings = Files.readString(path).strip();
      } catch (IOException e) {
        siblings = "cpu" + cpu;
      }
      if (seen.add(siblings)) {
        cores.add(cpu);
      }
    }
    return List.copyOf(cores);
  }

  /** Physical cores that the process may use, at least 1; all processors where unknown. */
  public static int physicalCores() {
    int cores = cores().size();
    return cores > 0 ? Math.min(cores, Process.PROCESSORS) : Process.PROCESSORS;
  }

  /**
   * Binds the calling platform thread to one CPU.
   *
   * @return whether the system did it
   */
  public static boolean pin(int cpu) {
    if (cpu < 0 || cpu >= MASK_BYTES * 8) {
      throw new IllegalArgumentException(
          "cpu out of range: expected=[0," + MASK_BYTES * 8 + ") actual=" + cpu);
    }
    if (!available() || Thread.currentThread().isVirtual()) {
      return false;
    }
    long[] mask = new long[MASK_BYTES / 8];
    mask[cpu >> 6] = 1L << cpu;
    return set(mask);
  }

  /**
   * Lets the calling platform thread run on every CPU of the process again.
   *
   * @return whether the system did it
   */
  public static boolean unpin() {
    return available() && !Thread.currentThread().isVirtual() && set(Process.MASK);
  }

  private static boolean set(long[] mask) {
    try (Arena arena = Arena.ofConfined()) {
      return Libc.schedSetAffinity(arena.allocateFrom(ValueLayout.JAVA_LONG, mask)) == 0;
    }
  }

  /** CPUs of the calling thread, or null where unknown. */
  static long[] current() {
    if (!NativeAccess.libc()) {
      return null;
    }
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment mask = arena.allocate(MASK_BYTES, 8);
      return Libc.schedGetAffinity(mask) < 0 ? null : mask.toArray(ValueLayout.JAVA_LONG);
    }
  }
}
