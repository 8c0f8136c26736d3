package io.fletch.ffm;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandleProxies;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.util.function.Consumer;

/**
 * The calls of the C library that this module makes, with errno. Linux only: the constants are the
 * kernel's, equal on x86-64 and AArch64. Nothing here is on a hot path.
 *
 * <p>Initialising this class makes restricted calls: ask {@link NativeAccess#libc()} first.
 *
 * <p>A failure is a negative result {@code -errno}, as the kernel itself reports it.
 */
final class Libc {
  static final int PROT_NONE = 0;
  static final int PROT_READ = 1;
  static final int PROT_WRITE = 2;
  static final int PROT_EXEC = 4;
  static final int MAP_SHARED = 1;
  static final int MAP_PRIVATE = 2;
  static final int MAP_ANONYMOUS = 0x20;
  static final int MAP_NORESERVE = 0x4000;
  static final int MADV_DONTNEED = 4;
  static final int MADV_HUGEPAGE = 14;
  static final int MADV_NOHUGEPAGE = 15;
  static final int MFD_CLOEXEC = 1;

  private static final Linker LINKER = Linker.nativeLinker();
  private static final Linker.Option ERRNO = Linker.Option.captureCallState("errno");
  private static final VarHandle ERRNO_VALUE =
      Linker.Option.captureStateLayout().varHandle(MemoryLayout.PathElement.groupElement("errno"));

  /**
   * One shape for all: functions ignore argument registers beyond their parameters, and read an int
   * from the lower half of one. Linking a shape takes milliseconds of every start.
   */
  private static final MethodHandle CALL =
      LINKER.downcallHandle(
          FunctionDescriptor.of(
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG),
          ERRNO);

  private static final MemorySegment MMAP = symbol("mmap");
  private static final MemorySegment MUNMAP = symbol("munmap");
  private static final MemorySegment MPROTECT = symbol("mprotect");
  private static final MemorySegment MADVISE = symbol("madvise");
  private static final MemorySegment MEMFD_CREATE = symbol("memfd_create");
  private static final MemorySegment FTRUNCATE = symbol("ftruncate");
  private static final MemorySegment CLOSE = symbol("close");
  private static final MemorySegment SCHED_SETAFFINITY = symbol("sched_setaffinity");
  private static final MemorySegment SCHED_GETAFFINITY = symbol("sched_getaffinity");

  private Libc() {}

  static long mmap(long address, long bytes, int protection, int flags, int fd, long offset) {
    return call(MMAP, true, address, bytes, protection, flags, fd, offset);
  }

  static long munmap(long address, long bytes) {
    return call(MUNMAP, false, address, bytes, 0, 0, 0, 0);
  }

  /**
   * A mapping that is removed when the segment is no longer reachable. What removes it is made of
   * the JDK's classes only: the list of what is to be cleaned up then does not hold this class, and
   * with it the class loader of an application that is deployed anew.
   */
  @SuppressWarnings("unchecked")
  static MemorySegment untilUnreachable(long address, long bytes) {
    MemorySegment state = Arena.ofAuto().allocate(Linker.Option.captureStateLayout());
    MethodHandle unmap =
        MethodHandles.insertArguments(CALL, 0, MUNMAP, state, address, bytes, 0L, 0L, 0L, 0L);
    return MemorySegment.ofAddress(address)
        .reinterpret(
            bytes,
            Arena.ofAuto(),
            MethodHandleProxies.asInterfaceInstance(
                Consumer.class, MethodHandles.dropArguments(unmap, 0, Object.class)));
  }

  static long mprotect(long address, long bytes, int protection) {
    return call(MPROTECT, false, address, bytes, protection, 0, 0, 0);
  }

  static long madvise(long address, long bytes, int advice) {
    return call(MADVISE, false, address, bytes, advice, 0, 0, 0);
  }

  static long memfdCreate(String name, int flags) {
    try (Arena arena = Arena.ofConfined()) {
      return call(MEMFD_CREATE, false, arena.allocateFrom(name).address(), flags, 0, 0, 0, 0);
    }
  }

  static long ftruncate(int fd, long bytes) {
    return call(FTRUNCATE, false, fd, bytes, 0, 0, 0, 0);
  }

  static long close(int fd) {
    return call(CLOSE, false, fd, 0, 0, 0, 0, 0);
  }

  static long schedSetAffinity(MemorySegment mask) {
    return call(SCHED_SETAFFINITY, false, 0, mask.byteSize(), mask.address(), 0, 0, 0);
  }

  static long schedGetAffinity(MemorySegment mask) {
    return call(SCHED_GETAFFINITY, false, 0, mask.byteSize(), mask.address(), 0, 0, 0);
  }

  /**
   * Calls a function; segments whose addresses are passed must stay reachable.
   *
   * @param wide whether the result has 64 bits; of an int the upper half means nothing
   * @return the result, or the negative error number where it is -1
   */
  private static long call(
      MemorySegment function, boolean wide, long a, long b, long c, long d, long e, long f) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      long raw = (long) CALL.invokeExact(function, state, a, b, c, d, e, f);
      long result = wide ? raw : (int) raw;
      return result == -1 ? -(long) (int) ERRNO_VALUE.get(state, 0L) : result;
    } catch (RuntimeException | Error x) {
      throw x;
    } catch (Throwable x) {
      throw new NativeException("native call failed", x);
    }
  }

  /** The usual name of an error number, for messages. */
  static String errorName(long negativeErrno) {
    int errno = (int) -negativeErrno;
    return switch (errno) {
      case 1 -> "EPERM";
      case 11 -> "EAGAIN";
      case 12 -> "ENOMEM";
      case 13 -> "EACCES";
      case 22 -> "EINVAL";
      case 23 -> "ENFILE";
      case 24 -> "EMFILE";
      case 38 -> "ENOSYS";
      default -> "errno=" + errno;
    };
  }

  private static MemorySegment symbol(String name) {
    return LINKER
        .defaultLookup()
        .find(name)
        .orElseThrow(() -> new NativeException("the C library has no " + name));
  }
}
