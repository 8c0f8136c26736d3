package io.fletch.graph.support;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Objects;

/**
 * Packs buffers into one block of memory so that buffers that live at the same time never overlap:
 * largest first, each into the smallest gap that is free for its whole lifetime. Deterministic.
 */
public final class MemoryPlanner {
  /** Every offset is a multiple of this: no two buffers share a cache line or its pair. */
  public static final long ALIGNMENT = 128;

  private MemoryPlanner() {}

  /**
   * One buffer.
   *
   * @param bytes its size
   * @param first the step that writes it first
   * @param last the last step that reads or writes it; it is live in {@code first} and {@code last}
   */
  public record Buffer(long bytes, int first, int last) {
    /** Checks the range. */
    public Buffer {
      if (bytes < 0 || first > last) {
        throw new IllegalArgumentException(
            "buffer: bytes=" + bytes + " first=" + first + " last=" + last);
      }
    }

    /** Whether both are live at some step. */
    public boolean meets(Buffer other) {
      return first <= other.last && other.first <= last;
    }
  }

  /**
   * Where each buffer lies.
   *
   * @param offsets in the order of the buffers given
   * @param bytes size of the block
   */
  public record Layout(List<Long> offsets, long bytes) {
    /** Copies the list. */
    public Layout {
      offsets = List.copyOf(offsets);
    }
  }

  /** Plans the block. */
  public static Layout plan(List<Buffer> buffers) {
    List<Integer> order = new ArrayList<>();
    for (int i = 0; i < buffers.size(); i++) {
      order.add(i);
    }
    order.sort(Comparator.comparingLong((Integer i) -> -buffers.get(i).bytes()));
    Long[] offsets = new Long[buffers.size()];
    long end = 0;
    for (int i : order) {
      long size = align(buffers.get(i).bytes());
      offsets[i] = place(i, size, buffers, offsets);
      end = Math.max(end, offsets[i] + size);
    }
    return new Layout(List.of(offsets), end);
  }

  /** The start of the smallest gap between placed buffers that meet buffer {@code i}. */
  private static long place(int i, long size, List<Buffer> buffers, Long[] offsets) {
    List<Integer> placed = new ArrayList<>();
    for (int k = 0; k < offsets.length; k++) {
      if (offsets[k] != null && buffers.get(i).meets(buffers.get(k))) {
        placed.add(k);
      }
    }
    placed.sort(Comparator.comparing((Integer k) -> offsets[k]));
    long best = -1;
    long bestGap = Long.MAX_VALUE;
    long free = 0;
    for (int k : placed) {
      long gap = offsets[k] - free;
      if (gap >= size && gap < bestGap) {
        best = free;
        bestGap = gap;
      }
      free = Math.max(free, offsets[k] + align(buffers.get(k).bytes()));
    }
    return best >= 0 ? best : free;
  }

  private static long align(long bytes) {
    return Math.addExact(Objects.checkIndex(bytes, Long.MAX_VALUE), ALIGNMENT - 1) & -ALIGNMENT;
  }
}
