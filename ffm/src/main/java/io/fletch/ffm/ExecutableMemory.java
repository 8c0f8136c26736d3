package io.fletch.ffm;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Mem;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Optional;

/**
 * Pages that hold machine code emitted at run time. {@link #shared()} is the arena that everybody
 * emits into, from any thread. Code lives as long as this class is loaded: a container that gives
 * an application a class loader of its own gets the pages back when it unloads that.
 *
 * <p>No page is ever writable and executable at one address (W^X). Pages are mapped read-write,
 * filled, then made read-execute; where a host refuses that change (SELinux execmem), a memory file
 * is mapped twice instead, writable at one address and executable at another. Where both are
 * refused, {@link #shared()} throws and {@link #refusal()} says why.
 *
 * <p>Code must be position-independent and follow the System V ABI. It starts at a page, so
 * constants inside it may be aligned up to 4096 bytes. The system property {@code
 * fletch.executable} chooses {@code auto} (default), {@code mprotect}, {@code memfd} or {@code
 * off}.
 */
public final class ExecutableMemory {
  /** How pages become executable. */
  enum Method {
    MPROTECT,
    MEMFD
  }

  /**
   * An emitted function.
   *
   * @param name for logs and plans
   * @param entry its address, of zero length, valid while this class is loaded
   * @param bytes size of code and constants
   */
  public record Function(String name, MemorySegment entry, int bytes) {}

  private static final long PAGE = 4096;
  private static final long REGION = 8L << 20;

  /** Resolved once: either the arena or the reason that there is none. */
  private static final class Shared {
    static final String CHOICE = System.getProperty("fletch.executable", "auto");
    static final ExecutableMemory ARENA;
    static final ExecutableMemoryException REFUSAL;

    static {
      ExecutableMemory arena = null;
      ExecutableMemoryException refusal = null;
      try {
        arena = create(CHOICE);
      } catch (ExecutableMemoryException e) {
        refusal = e;
      }
      ARENA = arena;
      REFUSAL = refusal;
    }
  }

  private final Method method;
  // Guarded by this.
  private long writable;
  private long executable;
  private long used;
  private long size;
  private long emitted;

  /** What removes mappings when nobody can reach this arena. */
  private final List<MemorySegment> mappings = new ArrayList<>();

  ExecutableMemory(Method method) {
    this.method = method;
  }

  /**
   * The arena of the process.
   *
   * @throws ExecutableMemoryException with the reason if there is none
   */
  public static ExecutableMemory shared() {
    if (Shared.ARENA == null) {
      throw new ExecutableMemoryException(Shared.REFUSAL.getMessage(), Shared.REFUSAL);
    }
    return Shared.ARENA;
  }

  /** Why machine code cannot run in this process; empty when it can. */
  public static Optional<String> refusal() {
    return Shared.ARENA == null ? Optional.of(Shared.REFUSAL.getMessage()) : Optional.empty();
  }

  /**
   * Whether this process goes without machine code that its platform could run and nobody switched
   * off: the host refuses it, or an option has a value that there is not. Who opens a model says so
   * louder than of a platform that has no machine code.
   */
  public static boolean refused() {
    return Shared.ARENA == null && platform() && !Shared.CHOICE.equals("off");
  }

  /** Whether machine code is emitted for this platform, native access provided. */
  private static boolean platform() {
    String arch = System.getProperty("os.arch");
    return NativeAccess.libc() && (arch.equals("amd64") || arch.equals("x86_64"));
  }

  /** Tries the ways that {@code choice} allows and proves each by calling a function. */
  static ExecutableMemory create(String choice) {
    if (choice.equals("off")) {
      throw new ExecutableMemoryException("executable memory is off: fletch.executable=off");
    }
    if (!NativeAccess.granted()) {
      throw new ExecutableMemoryException(NativeAccess.missing());
    }
    if (!platform()) {
      throw new ExecutableMemoryException(
          "machine code is emitted for x86-64 Linux only: os="
              + System.getProperty("os.name")
              + " arch="
              + System.getProperty("os.arch"));
    }
    StringBuilder reasons = new StringBuilder();
    for (Method method : Method.values()) {
      String name = method.name().toLowerCase(Locale.ROOT);
      if (choice.equals("auto") || choice.equals(name)) {
        try {
          ExecutableMemory memory = new ExecutableMemory(method);
          memory.prove();
          return memory;
        } catch (ExecutableMemoryException e) {
          reasons.append(reasons.isEmpty() ? "" : "; ").append(e.getMessage());
        }
      }
    }
    throw new ExecutableMemoryException(
        reasons.isEmpty()
            ? "fletch.executable: expected=auto|mprotect|memfd|off actual=" + choice
            : "the host refuses executable memory: " + reasons);
  }

  /** How pages become executable here, for logs: {@code mprotect} or {@code memfd}. */
  public String method() {
    return method.name().toLowerCase(Locale.ROOT);
  }

  /** Bytes of code emitted so far, whole pages. */
  public synchronized long emittedBytes() {
    return emitted;
  }

  /**
   * Places code and makes it executable.
   *
   * @param name for logs and plans
   * @param code position-independent code that starts with its entry
   * @throws ExecutableMemoryException if the host refuses more pages
   */
  public synchronized Function emit(String name, byte[] code) {
    if (code.length == 0) {
      throw new IllegalArgumentException("no code: name=" + name);
    }
    long bytes = (code.length + PAGE - 1) & -PAGE;
    if (bytes > size - used) {
      reserve(Math.max(REGION, bytes));
    }
    long from = writable + used;
    if (method == Method.MPROTECT) {
      check("mprotect(rw)", Libc.mprotect(from, bytes, Libc.PROT_READ | Libc.PROT_WRITE));
    }
    MemorySegment.copy(
        MemorySegment.ofArray(code),
        0,
        MemorySegment.ofAddress(from).reinterpret(bytes),
        0,
        code.length);
    if (method == Method.MPROTECT) {
      check("mprotect(rx)", Libc.mprotect(from, bytes, Libc.PROT_READ | Libc.PROT_EXEC));
    }
    MemorySegment entry = MemorySegment.ofAddress(executable + used);
    used += bytes;
    emitted += bytes;
    return new Function(name, entry, code.length);
  }

  /**
   * A handle that calls a function of that shape; its first parameter is the {@link
   * Function#entry()}. Keep it in a {@code static final} field, where a call costs about 6 ns.
   *
   * @throws NativeException if native access is not granted
   */
  public static MethodHandle caller(FunctionDescriptor descriptor) {
    NativeAccess.check("calling machine code");
    return Linker.nativeLinker().downcallHandle(descriptor);
  }

  private void reserve(long bytes) {
    if (method == Method.MPROTECT) {
      int flags = Libc.MAP_PRIVATE | Libc.MAP_ANONYMOUS | Libc.MAP_NORESERVE;
      writable = check("mmap", Libc.mmap(0, bytes, Libc.PROT_NONE, flags, -1, 0));
      executable = writable;
      hold(writable, bytes);
    } else {
      int fd = (int) check("memfd_create", Libc.memfdCreate("fletch-code", Libc.MFD_CLOEXEC));
      try {
        check("ftruncate", Libc.ftruncate(fd, bytes));
        int readWrite = Libc.PROT_READ | Libc.PROT_WRITE;
        int readExecute = Libc.PROT_READ | Libc.PROT_EXEC;
        long rw = check("mmap(rw)", Libc.mmap(0, bytes, readWrite, Libc.MAP_SHARED, fd, 0));
        long rx = Libc.mmap(0, bytes, readExecute, Libc.MAP_SHARED, fd, 0);
        if (rx < 0) {
          Libc.munmap(rw, bytes);
        }
        executable = check("mmap(rx)", rx);
        writable = rw;
        hold(rw, bytes);
        hold(rx, bytes);
      } finally {
        Libc.close(fd);
      }
    }
    used = 0;
    size = bytes;
  }

  /** Removes a mapping with the arena, unless that lives as long as the process anyway. */
  private void hold(long address, long bytes) {
    if (ExecutableMemory.class.getClassLoader() != ClassLoader.getSystemClassLoader()) {
      // Takes some milliseconds of the start.
      mappings.add(Libc.untilUnreachable(address, bytes));
    }
  }

  private void prove() {
    Assembler a = new Assembler();
    a.lea(Gpr.RAX, Mem.of(Gpr.RDI, 42));
    a.ret();
    Function function = emit("probe", a.assemble());
    try {
      long answer =
          (long)
              caller(FunctionDescriptor.of(ValueLayout.JAVA_LONG, ValueLayout.JAVA_LONG))
                  .invokeExact(function.entry(), 58L);
      if (answer != 100) {
        throw new ExecutableMemoryException("probe: expected=100 actual=" + answer);
      }
    } catch (ExecutableMemoryException e) {
      throw e;
    } catch (Throwable e) {
      throw new ExecutableMemoryException("probe failed", e);
    }
  }

  private long check(String call, long result) {
    if (result < 0 && result > -4096) {
      throw new ExecutableMemoryException(
          method() + ": " + call + " failed with " + Libc.errorName(result));
    }
    return result;
  }

  /** Runs an emitted function of three longs; for probing, not for kernels. */
  static long call(Function function, long first, long second, long third) {
    try {
      return (long) Call3.HANDLE.invokeExact(function.entry(), first, second, third);
    } catch (Throwable e) {
      throw new NativeException("call failed: " + function.name(), e);
    }
  }

  private static final class Call3 {
    static final MethodHandle HANDLE =
        caller(
            FunctionDescriptor.of(
                ValueLayout.JAVA_LONG,
                ValueLayout.JAVA_LONG,
                ValueLayout.JAVA_LONG,
                ValueLayout.JAVA_LONG));
  }
}
