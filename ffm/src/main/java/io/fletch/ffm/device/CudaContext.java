package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;

/**
 * The primary context of a device, and the owner of all that is made from it.
 *
 * <p>Usable from any thread: each call makes the context current on its thread first, which costs
 * nothing when it is already. Other code of the process that makes another context current on the
 * same thread must put this one back.
 *
 * <p>{@link #close()} releases what is still open, latest first, then the context, and throws an
 * {@link IllegalStateException} that names what had been left open: a leak is a bug of the owner.
 */
public final class CudaContext implements AutoCloseable {
  /** Bytes for the messages of the driver's compiler. */
  private static final int LOG = 16 << 10;

  private static final ThreadLocal<CudaContext> CURRENT = new ThreadLocal<>();

  private final CudaDevice device;
  private final MemorySegment handle;
  private final Set<CudaResource> live = Collections.synchronizedSet(new LinkedHashSet<>());
  private volatile boolean closed;
  private volatile boolean released;

  private CudaContext(CudaDevice device, MemorySegment handle) {
    this.device = device;
    this.handle = handle;
  }

  /**
   * Retains the device's primary context.
   *
   * @throws CudaException if the driver refuses, for instance as the device is used exclusively
   */
  public static CudaContext open(CudaDevice device) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      Driver.check(
          CudaDriver.cuDevicePrimaryCtxRetain(out, device.ordinal()),
          "cuDevicePrimaryCtxRetain",
          "device=" + device.ordinal());
      return new CudaContext(device, out.get(ValueLayout.ADDRESS, 0));
    }
  }

  /** The device. */
  public CudaDevice device() {
    return device;
  }

  /** Makes the context current on this thread. */
  void enter() {
    if (CURRENT.get() != this) {
      if (released) {
        throw new IllegalStateException("used after close: " + this);
      }
      Driver.check(CudaDriver.cuCtxSetCurrent(handle), "cuCtxSetCurrent", toString());
      CURRENT.set(this);
    } else if (released) {
      throw new IllegalStateException("used after close: " + this);
    }
  }

  private void use() {
    if (closed) {
      throw new IllegalStateException("used after close: " + this);
    }
    enter();
  }

  <T extends CudaResource> T own(T resource) {
    live.add(resource);
    return resource;
  }

  void forget(CudaResource resource) {
    live.remove(resource);
  }

  /** What was made from the context and is not closed, oldest first, as text. */
  public List<String> live() {
    synchronized (live) {
      return live.stream().map(CudaResource::toString).toList();
    }
  }

  /** Free and total bytes of a device. */
  public record MemoryInfo(long free, long total) {}

  /** Asks the driver for the free memory of the device, of all processes together. */
  public MemoryInfo memory() {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(16, 8);
      Driver.check(CudaDriver.cuMemGetInfo_v2(out, out.asSlice(8)), "cuMemGetInfo_v2", "");
      return new MemoryInfo(out.get(ValueLayout.JAVA_LONG, 0), out.get(ValueLayout.JAVA_LONG, 8));
    }
  }

  /** The newest CUDA version that the driver knows, 1000 times its number and 10 of the minor. */
  public int driverVersion() {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(4, 4);
      Driver.check(CudaDriver.cuDriverGetVersion(out), "cuDriverGetVersion", "");
      return out.get(ValueLayout.JAVA_INT, 0);
    }
  }

  /** Waits until all streams of the context are idle. */
  public void synchronize() {
    use();
    Driver.check(CudaDriver.cuCtxSynchronize(), "cuCtxSynchronize", "");
  }

  /** A stream that does not wait for the legacy default stream. */
  public CudaStream newStream() {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      Driver.check(
          CudaDriver.cuStreamCreate(out, CudaDriver.CU_STREAM_NON_BLOCKING()),
          "cuStreamCreate",
          "non-blocking");
      return own(new CudaStream(this, out.get(ValueLayout.ADDRESS, 0)));
    }
  }

  /**
   * An event.
   *
   * @param timing whether it records the time, which makes recording a little slower
   */
  public CudaEvent newEvent(boolean timing) {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      int flags = timing ? CudaDriver.CU_EVENT_DEFAULT() : CudaDriver.CU_EVENT_DISABLE_TIMING();
      Driver.check(CudaDriver.cuEventCreate(out, flags), "cuEventCreate", "timing=" + timing);
      return own(new CudaEvent(this, out.get(ValueLayout.ADDRESS, 0), timing));
    }
  }

  /**
   * Device memory, not initialised, aligned to 256 bytes. May wait for the device.
   *
   * @param bytes at least 1
   * @throws CudaMemoryException if the device has too little; nothing is taken then
   */
  public DeviceMemory allocate(long bytes) {
    use();
    DeviceMemory.checkSize(bytes);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.JAVA_LONG);
      int status = CudaDriver.cuMemAlloc_v2(out, bytes);
      if (status != Driver.SUCCESS) {
        throw Driver.allocationFailure(status, "cuMemAlloc_v2", bytes);
      }
      return own(new DeviceMemory(this, out.get(ValueLayout.JAVA_LONG, 0), bytes, null));
    }
  }

  /**
   * Host memory that the device reads and writes directly, so that copies are asynchronous.
   *
   * @param bytes at least 1
   * @throws CudaException if the system cannot pin so much
   */
  public PinnedMemory allocatePinned(long bytes) {
    use();
    DeviceMemory.checkSize(bytes);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      int flags = CudaDriver.CU_MEMHOSTALLOC_PORTABLE() | CudaDriver.CU_MEMHOSTALLOC_DEVICEMAP();
      int status = CudaDriver.cuMemHostAlloc(out, bytes, flags);
      if (status != Driver.SUCCESS) {
        throw Driver.failure(
            status,
            "cuMemHostAlloc",
            "bytes=" + bytes,
            status == Driver.OUT_OF_MEMORY ? "the host cannot pin so much memory" : "");
      }
      return own(new PinnedMemory(this, out.get(ValueLayout.ADDRESS, 0), bytes));
    }
  }

  /**
   * Compiles PTX for the device and loads it.
   *
   * @param name for messages
   * @param ptx the text of a whole module
   * @throws CudaException with the compiler's messages
   */
  public CudaModule loadPtx(String name, String ptx) {
    return load(name, (ptx + '\0').getBytes(StandardCharsets.UTF_8));
  }

  /**
   * Loads machine code that {@link #compile} made for the same device and driver.
   *
   * @param name for messages
   * @throws CudaException if it does not fit the device, so that the caller compiles again
   */
  public CudaModule loadCubin(String name, byte[] cubin) {
    // Reading past the end of a truncated image would be the driver's; ELF says where it ends.
    Cubin.check(cubin);
    return load(name, cubin.clone());
  }

  private CudaModule load(String name, byte[] image) {
    use();
    Objects.requireNonNull(name, "name");
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment data = arena.allocate(image.length, 64);
      MemorySegment.copy(image, 0, data, ValueLayout.JAVA_BYTE, 0, image.length);
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      JitLog log = new JitLog(arena);
      int status =
          CudaDriver.cuModuleLoadDataEx(out, data, JitLog.OPTIONS, log.options, log.values);
      if (status != Driver.SUCCESS) {
        throw Driver.failure(
            status, "cuModuleLoadDataEx", "module=" + name + ", bytes=" + image.length, log.text());
      }
      return own(new CudaModule(this, name, out.get(ValueLayout.ADDRESS, 0)));
    }
  }

  /**
   * Compiles PTX for the device to machine code that can be kept on disk.
   *
   * @param name for messages
   * @param ptx the text of a whole module
   * @return the image for {@link #loadCubin}
   * @throws CudaException with the compiler's messages
   */
  public byte[] compile(String name, String ptx) {
    use();
    try (Arena arena = Arena.ofConfined()) {
      byte[] image = (ptx + '\0').getBytes(StandardCharsets.UTF_8);
      MemorySegment data = arena.allocate(image.length);
      MemorySegment.copy(image, 0, data, ValueLayout.JAVA_BYTE, 0, image.length);
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      JitLog log = new JitLog(arena);
      String arguments = "module=" + name;
      Driver.check(
          CudaDriver.cuLinkCreate_v2(JitLog.OPTIONS, log.options, log.values, out),
          "cuLinkCreate_v2",
          arguments);
      MemorySegment link = out.get(ValueLayout.ADDRESS, 0);
      try {
        int status =
            CudaDriver.cuLinkAddData_v2(
                link,
                CudaDriver.CU_JIT_INPUT_PTX(),
                data,
                image.length,
                arena.allocateFrom(name),
                0,
                MemorySegment.NULL,
                MemorySegment.NULL);
        if (status != Driver.SUCCESS) {
          throw Driver.failure(status, "cuLinkAddData_v2", arguments, log.text());
        }
        MemorySegment size = arena.allocate(ValueLayout.JAVA_LONG);
        status = CudaDriver.cuLinkComplete(link, out, size);
        if (status != Driver.SUCCESS) {
          throw Driver.failure(status, "cuLinkComplete", arguments, log.text());
        }
        // The image belongs to the link and dies with it.
        return out.get(ValueLayout.ADDRESS, 0)
            .reinterpret(size.get(ValueLayout.JAVA_LONG, 0))
            .toArray(ValueLayout.JAVA_BYTE);
      } finally {
        // Its failure would hide the reason, and the next use of the context reports it anyway.
        int unused = CudaDriver.cuLinkDestroy(link);
      }
    }
  }

  /** Where the driver's compiler writes; valid as long as its arena. */
  private static final class JitLog {
    static final int OPTIONS = 4;

    final MemorySegment options;
    final MemorySegment values;
    private final MemorySegment errors;

    JitLog(Arena arena) {
      errors = arena.allocate(LOG);
      MemorySegment info = arena.allocate(LOG);
      options =
          arena.allocateFrom(
              ValueLayout.JAVA_INT,
              CudaDriver.CU_JIT_INFO_LOG_BUFFER(),
              CudaDriver.CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES(),
              CudaDriver.CU_JIT_ERROR_LOG_BUFFER(),
              CudaDriver.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES());
      values =
          arena.allocateFrom(
              ValueLayout.JAVA_LONG, info.address(), LOG - 1, errors.address(), LOG - 1);
    }

    String text() {
      return errors.getString(0).strip();
    }
  }

  /**
   * Releases what is still open, then the context. If the driver refuses to release the context,
   * calling it again is allowed.
   *
   * @throws IllegalStateException if already closed, or naming what was left open (it is released
   *     nevertheless)
   * @throws CudaException if the driver refuses; the process may go on
   */
  @Override
  public synchronized void close() {
    if (released) {
      throw new IllegalStateException("already closed: " + this);
    }
    closed = true;
    List<CudaResource> rest;
    synchronized (live) {
      rest = new ArrayList<>(live);
    }
    Collections.reverse(rest);
    List<String> leaked = new ArrayList<>();
    for (CudaResource resource : rest) {
      if (!resource.isClosed()) {
        leaked.add(resource.toString());
      }
      try {
        resource.abandon();
      } catch (CudaException _) {
        // Goes with the context below; the first failure was reported where it happened.
        forget(resource);
      }
    }
    if (CURRENT.get() == this) {
      CURRENT.remove();
      int unused = CudaDriver.cuCtxSetCurrent(MemorySegment.NULL);
    }
    Driver.check(
        CudaDriver.cuDevicePrimaryCtxRelease_v2(device.ordinal()),
        "cuDevicePrimaryCtxRelease_v2",
        "device=" + device.ordinal());
    released = true;
    if (!leaked.isEmpty()) {
      throw new IllegalStateException(
          "leaked " + leaked.size() + " of " + this + ": " + String.join(", ", leaked));
    }
  }

  @Override
  public String toString() {
    return "context of device " + device.ordinal() + " (" + device.name() + ")";
  }
}
