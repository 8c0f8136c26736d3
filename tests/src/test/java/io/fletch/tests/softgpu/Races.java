package io.fletch.tests.softgpu;

import java.util.Arrays;
import java.util.Locale;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Finds accesses to memory whose order nothing fixes, although the interpreter runs them in one.
 *
 * <p>Each warp has a clock that a barrier moves on, and knows up to which clock of each other warp
 * of its block all accesses come before its own (vector clocks). Memory remembers who wrote it last
 * and who read it since. Two accesses of one place, one of them a write, are ordered if they are of
 * one thread, of one warp with {@code bar.warp.sync} in between, of one block with a barrier in
 * between. Blocks of a launch are not ordered at all, launches are, unless one is programmatic:
 * that one sees what the launches before wrote after {@code griddepcontrol.wait}, and never by
 * {@code ld.global.nc}.
 *
 * <p>Global memory is looked at by words of 4 bytes, of which the latest reader and writer are
 * known; shared memory by 2 bytes, of which all readers are. So some races are missed (bytes of a
 * word by several threads; the first of two readers), none is invented. Several threads may write
 * what is there already. Accesses of single bytes of shared memory are not looked at, nor what
 * atomic, volatile, acquiring and releasing accesses do with each other; blocks of cooperative
 * launches may order each other and are believed.
 */
final class Races {
  private static final int PAGE_BITS = 12;
  private static final int WORDS = 1 << PAGE_BITS - 2;
  private static final int MANY = (1 << 28) - 1;

  /** Set in a stamp of an atomic access. */
  private static final int ATOMIC = 1 << 31;

  /** The shadows of a page: launch, block and bytes, and the thread's stamp. */
  static final class Page {
    long[] writers;
    int[] writes;
    long[] readers;

    /** Made last: where it is seen, the others are. */
    volatile int[] reads;

    /** Launches that read words as constant. */
    volatile int[] constant;

    private synchronized void accessed() {
      if (reads == null) {
        writers = new long[WORDS];
        writes = new int[WORDS];
        readers = new long[WORDS];
        reads = new int[WORDS];
      }
    }

    private synchronized void constant() {
      if (constant == null) {
        constant = new int[WORDS];
      }
    }
  }

  private final Object[] locks = new Object[64];
  private final ConcurrentHashMap<Long, Page> pages = new ConcurrentHashMap<>();
  private int launches;
  private int chain;

  Races() {
    Arrays.setAll(locks, i -> new Object());
  }

  /**
   * What a store to this address holds from {@link #write} until the value is there: a block that
   * another thread runs may write the same only where it can see it. A store is aligned and has 16
   * bytes at most.
   */
  Object lock(long at) {
    return locks[(int) (at >>> 4) & locks.length - 1];
  }

  /** A launch begins that may overlap those before it, or none of them. */
  synchronized void begin(Launch launch, boolean overlaps) {
    launch.number = ++launches;
    if (!overlaps) {
      chain = launch.number;
    }
    launch.chain = chain;
  }

  private Page page(Warp w, long at) {
    long number = at >>> PAGE_BITS;
    int i = (int) number & w.pages.length - 1;
    if (w.pageNumbers[i] == number && w.pages[i] != null) {
      return w.pages[i];
    }
    Page p = pages.computeIfAbsent(number, n -> new Page());
    w.pageNumbers[i] = number;
    w.pages[i] = p;
    return p;
  }

  private static String thread(int stamp) {
    return "thread " + ((stamp >> 5 & 31) * 32 + (stamp & 31));
  }

  private GpuFault race(Warp w, int lane, String what, long entry, int stamp) {
    Launch launch = w.block.launch;
    int block = (int) (entry >>> 4) & MANY;
    String who =
        block == MANY
            ? "several blocks"
            : String.format(
                Locale.ROOT,
                "block %d,%d,%d, %s",
                block % launch.gridX,
                block / launch.gridX % launch.gridY,
                block / launch.gridX / launch.gridY,
                thread(stamp));
    return w.fault(GpuFault.LAUNCH_FAILED, lane, "race: nothing orders it with " + what + who);
  }

  /** Whether an access of this launch comes before what the lane does now. */
  private static boolean before(Warp w, int lane, long entry, int stamp) {
    int block = (int) (entry >>> 4) & MANY;
    if (block != w.block.number) {
      return w.block.launch.cooperative;
    }
    return w.before(stamp, lane);
  }

  private static int mask(long at, int bytes, int word) {
    if (bytes >= 4) {
      return 15;
    }
    return (1 << bytes) - 1 << (int) (at & 3);
  }

  private static void waited(Warp w, int lane, long entry, long at) {
    Launch l = w.block.launch;
    int by = (int) (entry >>> 32);
    if (by >= l.chain && by < l.number && (w.waited >>> lane & 1) == 0) {
      throw w.fault(
          GpuFault.LAUNCH_FAILED,
          lane,
          "reads what a launch before wrote without griddepcontrol.wait: address=0x"
              + Long.toHexString(at));
    }
  }

  /** A read of global memory, aligned to its bytes. */
  void read(Warp w, int lane, long at, int bytes) {
    Page p = page(w, at);
    if (p.reads == null) {
      p.accessed();
    }
    Launch l = w.block.launch;
    int first = (int) (at & (1 << PAGE_BITS) - 1) >> 2;
    int stamp = w.stamp(lane);
    for (int i = first; i < first + (bytes + 3 >> 2); i++) {
      int mask = mask(at, bytes, i);
      long by = p.writers[i];
      if (l.programmatic) {
        waited(w, lane, by, at);
      }
      if ((int) (by >>> 32) == l.number
          && (by & mask) != 0
          && !before(w, lane, by, p.writes[i] & ~ATOMIC)) {
        throw race(w, lane, "a write of ", by, p.writes[i]);
      }
      long old = p.readers[i];
      int block = w.block.number;
      if ((int) (old >>> 32) == l.number) {
        boolean own = ((int) (old >>> 4) & MANY) == block;
        if (own && p.reads[i] == stamp) {
          mask |= (int) old & 15;
        } else if (!own && (old & mask) != 0) {
          mask &= (int) old;
          block = MANY;
        }
      }
      p.readers[i] = (long) l.number << 32 | (long) block << 4 | mask;
      p.reads[i] = stamp;
    }
  }

  /** A read as constant: no launch that is under way may write there. */
  void readConstant(Warp w, int lane, long at, int bytes) {
    Page p = page(w, at);
    if (p.constant == null) {
      p.constant();
    }
    Launch l = w.block.launch;
    int first = (int) (at & (1 << PAGE_BITS) - 1) >> 2;
    for (int i = first; i < first + (bytes + 3 >> 2); i++) {
      if (p.writers != null) {
        int by = (int) (p.writers[i] >>> 32);
        if (by >= l.chain && by != 0 && (p.writers[i] & mask(at, bytes, i)) != 0) {
          throw w.fault(
              GpuFault.LAUNCH_FAILED,
              lane,
              "reads by ld.global.nc what "
                  + (by == l.number ? "this launch" : "a launch that may still run")
                  + " writes: address=0x"
                  + Long.toHexString(at));
        }
      }
      p.constant[i] = l.number;
    }
  }

  /**
   * A write of global memory, aligned to its bytes.
   *
   * <p>The caller holds the {@link #lock} of the address until it has stored the value.
   *
   * @return null, or what is to be thrown unless the write changes nothing: several threads may
   *     write the same
   */
  GpuFault write(Warp w, int lane, long at, int bytes, boolean atomic) {
    Page p = page(w, at);
    if (p.reads == null) {
      p.accessed();
    }
    Launch l = w.block.launch;
    if (l.programmatic && (w.waited >>> lane & 1) == 0) {
      throw w.fault(GpuFault.LAUNCH_FAILED, lane, "writes before griddepcontrol.wait");
    }
    GpuFault fault = null;
    int first = (int) (at & (1 << PAGE_BITS) - 1) >> 2;
    int stamp = w.stamp(lane) | (atomic ? ATOMIC : 0);
    for (int i = first; i < first + (bytes + 3 >> 2); i++) {
      int mask = mask(at, bytes, i);
      long by = p.writers[i];
      if ((int) (by >>> 32) == l.number && (by & mask) != 0) {
        boolean both = atomic && p.writes[i] < 0;
        if (!both && !before(w, lane, by, p.writes[i] & ~ATOMIC)) {
          fault = race(w, lane, "a write of ", by, p.writes[i]);
        }
      }
      long read = p.readers[i];
      if ((int) (read >>> 32) == l.number
          && (read & mask) != 0
          && !before(w, lane, read, p.reads[i])) {
        throw race(w, lane, "a read of ", read, p.reads[i]);
      }
      if (p.constant != null && p.constant[i] >= l.chain && p.constant[i] != 0) {
        throw w.fault(
            GpuFault.LAUNCH_FAILED,
            lane,
            "writes what a launch that may still run reads by ld.global.nc: address=0x"
                + Long.toHexString(at));
      }
      p.writers[i] = (long) l.number << 32 | (long) w.block.number << 4 | mask;
      p.writes[i] = stamp;
    }
    return fault;
  }

  // Shared memory.

  /** Who wrote and read a block's shared memory, by two bytes. */
  static final class Shared {
    private final int[] writes;
    private final int[] reads;
    private final int warps;

    Shared(int bytes, int warps) {
      this.warps = warps;
      writes = new int[bytes + 1 >> 1];
      reads = new int[writes.length * warps];
    }

    void clear() {
      Arrays.fill(writes, 0);
      Arrays.fill(reads, 0);
    }

    void read(Warp w, int lane, int at, int bytes) {
      if (bytes < 2) {
        return;
      }
      int ordered = 0;
      for (int i = at >> 1; i < at + bytes >> 1; i++) {
        int by = writes[i];
        // Most often one write filled all of it.
        if (by != ordered) {
          if (by != 0 && !w.before(by & ~ATOMIC, lane)) {
            throw race(w, lane, by, at);
          }
          ordered = by;
        }
        int n = i * warps + w.index;
        int old = reads[n];
        // Clock and lane, or all lanes if several read.
        reads[n] =
            old >>> 6 == w.clock && (old & 63) != lane ? w.clock << 6 | 63 : w.clock << 6 | lane;
      }
    }

    /** Returns null, or what is to be thrown unless the write changes nothing. */
    GpuFault write(Warp w, int lane, int at, int bytes, boolean atomic) {
      if (bytes < 2) {
        return null;
      }
      GpuFault fault = null;
      for (int i = at >> 1; i < at + bytes >> 1; i++) {
        int by = writes[i];
        boolean both = atomic && by < 0;
        if (by != 0 && !both && !w.before(by & ~ATOMIC, lane)) {
          fault = race(w, lane, by, at);
        }
        for (int v = 0; v < warps; v++) {
          int read = reads[i * warps + v];
          boolean ordered =
              read == 0
                  || (v == w.index
                      ? read >>> 6 < w.clock || (read & 63) == lane
                      : w.seen[v] >= read >>> 6);
          if (!ordered) {
            throw w.fault(
                GpuFault.LAUNCH_FAILED,
                lane,
                "race: no barrier between it and a read of warp " + v + ": shared offset=" + at);
          }
        }
        writes[i] = w.stamp(lane) | (atomic ? ATOMIC : 0);
      }
      return fault;
    }

    private static GpuFault race(Warp w, int lane, int by, int at) {
      return w.fault(
          GpuFault.LAUNCH_FAILED,
          lane,
          "race: no barrier between it and the write of " + thread(by) + ": shared offset=" + at);
    }

    /** A copy in the background arrives; when it began it was a write. */
    void arrive(Warp w, int lane, int at, int bytes) {
      Arrays.fill(writes, at >> 1, at + bytes >> 1, w.stamp(lane));
    }

    /** A bulk copy arrives, for those who waited for it. */
    void forget(int at, int bytes) {
      Arrays.fill(writes, at >> 1, at + bytes >> 1, 0);
    }
  }
}
