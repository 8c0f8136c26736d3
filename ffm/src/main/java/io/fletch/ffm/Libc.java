package io.fletch.ffm;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.VarHandle;

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

  private static final MethodHandle MMAP = handle("mmap", "JJIIIJ");
  private static final MethodHandle MUNMAP = handle("munmap", "JJ");
  private static final MethodHandle MPROTECT = handle("mprotect", "JJI");
  private static final MethodHandle MADVISE = handle("madvise", "JJI");
  private static final MethodHandle MEMFD_CREATE = handle("memfd_create", "AI");
  private static final MethodHandle FTRUNCATE = handle("ftruncate", "IJ");
  private static final MethodHandle CLOSE = handle("close", "I");
  private static final MethodHandle SCHED_SETAFFINITY = handle("sched_setaffinity", "IJA");
  private static final MethodHandle SCHED_GETAFFINITY = handle("sched_getaffinity", "IJA");

  private Libc() {}

  static long mmap(long address, long bytes, int protection, int flags, int fd, long offset) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      long r = (long) MMAP.invokeExact(state, address, bytes, protection, flags, fd, offset);
      return result(r, state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long munmap(long address, long bytes) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) MUNMAP.invokeExact(state, address, bytes), state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long mprotect(long address, long bytes, int protection) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) MPROTECT.invokeExact(state, address, bytes, protection), state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long madvise(long address, long bytes, int advice) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) MADVISE.invokeExact(state, address, bytes, advice), state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long memfdCreate(String name, int flags) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) MEMFD_CREATE.invokeExact(state, arena.allocateFrom(name), flags), state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long ftruncate(int fd, long bytes) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) FTRUNCATE.invokeExact(state, fd, bytes), state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long close(int fd) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) CLOSE.invokeExact(state, fd), state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long schedSetAffinity(MemorySegment mask) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) SCHED_SETAFFINITY.invokeExact(state, 0, mask.byteSize(), mask), state);
    } catch (Throwable e) {
      throw rethrow(e);
    }
  }

  static long schedGetAffinity(MemorySegment mask) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment state = arena.allocate(Linker.Option.captureStateLayout());
      return result((long) SCHED_GETAFFINITY.invokeExact(state, 0, mask.byteSize(), mask), state);
    } catch (Throwable e) {
      throw rethrow(e);
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

  private static long result(long value, MemorySegment state) {
    return value == -1 ? -(long) (int) ERRNO_VALUE.get(state, 0L) : value;
  }

  /** All functions return long here: an int result of -1 is sign-extended by the adapter below. */
  private static MethodHandle handle(String name, String parameters) {
    MemoryLayout[] layouts = new MemoryLayout[parameters.length()];
    for (int i = 0; i < layouts.length; i++) {
      layouts[i] =
          switch (parameters.charAt(i)) {
            case 'J' -> ValueLayout.JAVA_LONG;
            case 'I' -> ValueLayout.JAVA_INT;
            default -> ValueLayout.ADDRESS;
          };
    }
    MemoryLayout result = name.equals("mmap") ? ValueLayout.JAVA_LONG : ValueLayout.JAVA_INT;
    MemorySegment symbol =
        LINKER
            .defaultLookup()
            .find(name)
            .orElseThrow(() -> new NativeException("the C library has no " + name));
    MethodHandle handle =
        LINKER.downcallHandle(symbol, FunctionDescriptor.of(result, layouts), ERRNO);
    return handle.asType(handle.type().changeReturnType(long.class));
  }

  private static RuntimeException rethrow(Throwable e) {
    if (e instanceof RuntimeException r) {
      return r;
    }
    if (e instanceof Error error) {
      throw error;
    }
    return new NativeException("native call failed", e);
  }
}
