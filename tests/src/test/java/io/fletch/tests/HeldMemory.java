package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.math.BigInteger;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.management.JMException;
import javax.management.ObjectName;

/**
 * Memory that this process holds, for tests that run long: objects that a full collection leaves,
 * and what is resident beside the Java heap (buffers, arenas, stacks, compiled code, the allocator
 * of the C library). The heap's own pages say nothing about a leak: the collector lets garbage lie
 * until the heap is full, so what is resident of it grows up to the heap's limit in any program.
 *
 * @param objects bytes of live objects
 * @param outside resident bytes outside the Java heap, from Linux; 0 where that is not to be had
 * @param resident bytes of the process, the heap's included
 */
public record HeldMemory(long objects, long outside, long resident) {
  /** Objects of the requests that are under way in one measurement and not in the other. */
  private static final long OBJECTS_GROWTH = 8L << 20;

  /** Methods that are compiled late, and what compiling them took and the C library kept. */
  private static final long OUTSIDE_GROWTH = 24L << 20;

  private static final Path MAPPINGS = Path.of("/proc/self/smaps");
  private static final Pattern MAPPING = Pattern.compile("([0-9a-f]+)-([0-9a-f]+) .*");
  private static final Pattern RANGE = Pattern.compile("\\[0x([0-9a-f]+), .*0x([0-9a-f]+)\\)");

  /**
   * Looks for five seconds, while whatever runs goes on, and takes the least of each: requests come
   * and go, and garbage with them.
   */
  public static HeldMemory now() throws IOException, InterruptedException {
    Runtime runtime = Runtime.getRuntime();
    HeldMemory least = new HeldMemory(Long.MAX_VALUE, Long.MAX_VALUE, Long.MAX_VALUE);
    for (int i = 0; i < 10; i++) {
      System.gc();
      long objects = runtime.totalMemory() - runtime.freeMemory();
      diagnose("systemTrimNativeHeap");
      long[] now = residentBytes();
      least =
          new HeldMemory(
              Math.min(least.objects, objects),
              Math.min(least.outside, now[0]),
              Math.min(least.resident, now[1]));
      Thread.sleep(500);
    }
    return least;
  }

  /** Resident bytes outside the Java heap, and all. */
  private static long[] residentBytes() throws IOException {
    long[] out = new long[2];
    if (!Files.isReadable(MAPPINGS)) {
      return out;
    }
    BigInteger[] heap = heap();
    boolean isHeap = false;
    for (String line : Files.readAllLines(MAPPINGS)) {
      Matcher mapping = MAPPING.matcher(line);
      if (mapping.matches()) {
        BigInteger start = new BigInteger(mapping.group(1), 16);
        isHeap = start.compareTo(heap[0]) >= 0 && start.compareTo(heap[1]) < 0;
      } else if (line.startsWith("Rss:")) {
        long bytes = Long.parseLong(line.replaceAll("[^0-9]", "")) << 10;
        out[0] += isHeap ? 0 : bytes;
        out[1] += bytes;
      }
    }
    return out;
  }

  /** Where the heap begins and ends, as its collector tells it; empty if it does not. */
  private static BigInteger[] heap() {
    BigInteger start = BigInteger.ZERO;
    BigInteger end = BigInteger.ZERO;
    Matcher range = RANGE.matcher(diagnose("gcHeapInfo"));
    while (range.find()) {
      BigInteger first = new BigInteger(range.group(1), 16);
      start = start.signum() == 0 ? first : start.min(first);
      end = end.max(new BigInteger(range.group(2), 16));
    }
    return new BigInteger[] {start, end};
  }

  /** What {@code jcmd} does; empty where this JVM does not know the command. */
  private static String diagnose(String command) {
    try {
      return (String)
          ManagementFactory.getPlatformMBeanServer()
              .invoke(
                  new ObjectName("com.sun.management:type=DiagnosticCommand"), command, null, null);
    } catch (JMException e) {
      return "";
    }
  }

  /** Checks that no more is held than in an earlier measurement. */
  public void checkSteady(HeldMemory before) {
    assertTrue(
        objects - before.objects < OBJECTS_GROWTH && outside - before.outside < OUTSIDE_GROWTH,
        "memory: before=" + before + " after=" + this);
  }

  @Override
  public String toString() {
    return String.format(
        Locale.ROOT,
        "%.1f MiB of objects, %.1f MiB outside the heap, %d MiB resident",
        objects / 0x1p20,
        outside / 0x1p20,
        resident >> 20);
  }
}
