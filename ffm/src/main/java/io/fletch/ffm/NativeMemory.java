package io.fletch.ffm;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * A large block of zeroed native memory with one owner, who closes it exactly once. Usable by any
 * thread until then; closing stops all threads once, so it is for weights and caches, not for
 * temporaries.
 *
 * <p>On Linux with native access the block is an anonymous mapping, aligned to 2 MiB and advised to
 * use huge pages; pages are taken from the system when first touched, so a large reservation costs
 * nothing. Elsewhere it comes from an {@link Arena} (aligned to 64 bytes, to 2 MiB from that size
 * on, and zeroed at once).
 */
public final class NativeMemory implements AutoCloseable {
  /** Bytes of a huge page; larger blocks begin at a multiple of it. */
  public static final long HUGE_PAGE = 2L << 20;

  private final Arena arena;
  private final MemorySegment segment;
  private final boolean mapped;
  private final boolean hugePages;

  private NativeMemory(Arena arena, MemorySegment segment, boolean mapped, boolean hugePages) {
    this.arena = arena;
    this.segment = segment;
    this.mapped = mapped;
    this.hugePages = hugePages;
  }

  /**
   * Allocates a block.
   *
   * @param bytes size, at least 0
   * @throws OutOfMemoryError if the system refuses; the message says how much was wanted
   */
  public static NativeMemory allocate(long bytes) {
    // Small blocks would waste most of a huge page.
    return allocate(bytes, bytes >= HUGE_PAGE);
  }

  /**
   * Allocates a block that is filled little by little at many places, such as a cache: it does not
   * use huge pages, each of which would be taken as a whole by its first byte, before {@link
   * #adviseHugePages}.
   *
   * @param bytes size, at least 0
   * @throws OutOfMemoryError if the system refuses; the message says how much was wanted
   */
  public static NativeMemory allocateSparse(long bytes) {
    return allocate(bytes, false);
  }

  /**
   * Advises the system to use huge pages for a part, which keeps its contents: for what is touched
   * from now on, and after a while for what was touched before.
   *
   * @param offset multiple of {@link #HUGE_PAGE}
   * @param bytes multiple of {@link #HUGE_PAGE}
   * @return whether the system took the advice
   * @throws IllegalStateException if closed
   */
  public boolean adviseHugePages(long offset, long bytes) {
    if (!segment.scope().isAlive()) {
      throw new IllegalStateException("the block is closed");
    }
    Objects.checkFromIndexSize(offset, bytes, segment.byteSize());
    if (offset % HUGE_PAGE != 0 || bytes % HUGE_PAGE != 0) {
      throw new IllegalArgumentException(
          "expected=multiples of " + HUGE_PAGE + " actual offset=" + offset + " bytes=" + bytes);
    }
    long start = segment.address() + offset;
    return mapped && Libc.madvise(start, bytes, Libc.MADV_HUGEPAGE) == 0;
  }

  private static NativeMemory allocate(long bytes, boolean huge) {
    if (bytes < 0 || bytes > Long.MAX_VALUE - 2 * HUGE_PAGE) {
      throw new IllegalArgumentException("size out of range: bytes=" + bytes);
    }
    return NativeAccess.libc() && bytes > 0
        ? map(bytes, huge)
        : fromArena(bytes, huge ? HUGE_PAGE : 64);
  }

  private static NativeMemory map(long bytes, boolean huge) {
    long align = bytes >= HUGE_PAGE ? HUGE_PAGE : 4096;
    long length = (bytes + 4095) & -4096L;
    long reserved = length + align;
    int flags = Libc.MAP_PRIVATE | Libc.MAP_ANONYMOUS | Libc.MAP_NORESERVE;
    long base = Libc.mmap(0, reserved, Libc.PROT_READ | Libc.PROT_WRITE, flags, -1, 0);
    if (base < 0 && base > -4096) {
      throw new OutOfMemoryError(
          "native memory: wanted=" + bytes + " bytes, mmap failed with " + Libc.errorName(base));
    }
    long start = (base + align - 1) & -align;
    if (start > base) {
      Libc.munmap(base, start - base);
    }
    long tail = base + reserved - (start + length);
    if (tail > 0) {
      Libc.munmap(start + length, tail);
    }
    // The opposite advice matters where the system uses huge pages without being asked.
    int advice = huge ? Libc.MADV_HUGEPAGE : Libc.MADV_NOHUGEPAGE;
    boolean advised = Libc.madvise(start, length, advice) == 0 && huge;
    Arena arena = Arena.ofShared();
    MemorySegment segment =
        MemorySegment.ofAddress(start)
            .reinterpret(bytes, arena, s -> Libc.munmap(s.address(), length));
    return new NativeMemory(arena, segment, true, advised);
  }

  private static NativeMemory fromArena(long bytes, long align) {
    Arena arena = Arena.ofShared();
    try {
      return new NativeMemory(arena, arena.allocate(bytes, align), false, false);
    } catch (RuntimeException | Error e) {
      arena.close();
      throw e;
    }
  }

  /** The bytes; not accessible after {@link #close()}. */
  public MemorySegment segment() {
    return segment;
  }

  /** Whether pages are taken when first touched (an own mapping) rather than at once. */
  public boolean lazy() {
    return mapped;
  }

  /** Whether the system accepted the advice to use huge pages. */
  public boolean hugePages() {
    return hugePages;
  }

  /**
   * Gives the memory back.
   *
   * @throws IllegalStateException if already closed
   */
  @Override
  public void close() {
    arena.close();
  }
}
