package io.fletch.tests.softgpu;

import java.lang.foreign.MemorySegment;
import java.util.Map;
import java.util.TreeMap;

/** Which addresses a kernel may touch. Changes are seen by the next look-up; from any thread. */
final class MemoryMap {
  /** All of memory: every address is checked before it is used. */
  static final MemorySegment ALL = MemorySegment.NULL.reinterpret(Long.MAX_VALUE);

  private final TreeMap<Long, Long> blocks = new TreeMap<>();

  synchronized void add(long start, long bytes) {
    blocks.put(start, bytes);
  }

  synchronized void remove(long start) {
    blocks.remove(start);
  }

  /** The block around an address as start and end, or null. */
  synchronized long[] find(long address) {
    Map.Entry<Long, Long> e = blocks.floorEntry(address);
    return e == null || address >= e.getKey() + e.getValue()
        ? null
        : new long[] {e.getKey(), e.getKey() + e.getValue()};
  }

  /** Says what is near an address. */
  synchronized String near(long address) {
    Map.Entry<Long, Long> below = blocks.floorEntry(address);
    Map.Entry<Long, Long> above = blocks.ceilingEntry(address + 1);
    String s = "";
    if (below != null) {
      long end = below.getKey() + below.getValue();
      s =
          "; "
              + (address - end)
              + " bytes past the end of a block of "
              + below.getValue()
              + " bytes at 0x"
              + Long.toHexString(below.getKey());
    }
    if (above != null) {
      s += "; " + (above.getKey() - address) + " bytes before a block of " + above.getValue();
    }
    return s.isEmpty() ? "; nothing is allocated" : s;
  }
}
