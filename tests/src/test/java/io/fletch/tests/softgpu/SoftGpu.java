package io.fletch.tests.softgpu;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import io.fletch.ffm.cuda.CUlaunchAttributeValue_union;
import io.fletch.ffm.cuda.CUlaunchAttribute_st;
import io.fletch.ffm.cuda.CUlaunchConfig_st;
import io.fletch.ffm.cuda.CudaDriver;
import io.fletch.ffm.cuda.CudaLookup;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import org.opentest4j.TestAbortedException;

/**
 * The driver of a GPU that does not exist. {@link #install} puts it behind the bindings for the
 * life of the JVM; {@link #reset} starts anew with one device.
 *
 * <p>With {@code -Dfletch.tests.gpu=driver} it stays out of the way: the same tests run on the
 * driver of this machine, and those that ask what only the software GPU tells are skipped.
 *
 * <p>Work is done when somebody waits for it and not before, so that a missing wait shows. Device
 * memory is host memory whose addresses kernels use as they are; each access is checked.
 */
public final class SoftGpu {
  /** Multiprocessors that it claims to have. */
  static final int MULTIPROCESSORS = 4;

  private static final int SHARED_LIMIT = 232_448;
  private static final int SHARED_DEFAULT = 48 << 10;
  private static final int INVALID_VALUE = 1;
  private static final int OUT_OF_MEMORY = 2;
  private static final int INVALID_DEVICE = 101;
  private static final int INVALID_CONTEXT = 201;
  private static final int NO_BINARY = 209;
  private static final int INVALID_PTX = 218;
  private static final int INVALID_HANDLE = 400;
  private static final int NOT_FOUND = 500;
  private static final int OUT_OF_RESOURCES = 701;
  private static final int COOPERATIVE_TOO_LARGE = 720;
  private static final int CAPTURE_UNSUPPORTED = 900;
  private static final int CAPTURE_INVALIDATED = 901;
  private static final int ILLEGAL_STATE = 401;
  private static final int UPDATE_FAILURE = 910;
  private static final int UNKNOWN = 999;

  private static final Map<String, Optional<MemorySegment>> STUBS = new ConcurrentHashMap<>();
  private static final boolean DRIVER =
      System.getProperty("fletch.tests.gpu", "software").equals("driver");
  private static boolean installed;
  private static volatile SoftGpu current = new SoftGpu(90, 1L << 30);

  private final int capability;
  private final long totalMemory;
  private int deviceCount = 1;
  private int driverVersion = 13_000;
  private int workers = 1;

  private int retained;
  private long nextHandle = 0x1000;
  private final ThreadLocal<Long> currentContext = ThreadLocal.withInitial(() -> 0L);
  private final Map<Long, Object> objects = new HashMap<>();
  private final TreeMap<Long, Allocation> allocations = new TreeMap<>();
  private final MemoryMap memory = new MemoryMap();
  private final ArrayDeque<Runnable> queue = new ArrayDeque<>();
  private final Map<Integer, MemorySegment> texts = new HashMap<>();
  private int sticky;
  private String faultText = "";
  private long used;

  // Counters and faults.
  private long calls;
  private long failAt = -1;
  private int failCode;
  private String failedCall = "";
  private List<String> trace;
  private long kernelLaunches;
  private long graphLaunches;
  private long synchronisations;
  private long copies;
  private final AtomicLong downloaded = new AtomicLong();
  private long instructions;
  private final Map<String, Integer> kernelRuns = new TreeMap<>();

  private record Allocation(MemorySegment block, long bytes, String kind) {
    void free() {
      Heap.free(block);
    }
  }

  /** The C heap: closing arenas would stop all threads each time. */
  private static final class Heap {
    private static final MethodHandle MALLOC =
        Linker.nativeLinker()
            .downcallHandle(
                Linker.nativeLinker().defaultLookup().findOrThrow("malloc"),
                FunctionDescriptor.of(ADDRESS, JAVA_LONG));
    private static final MethodHandle FREE =
        Linker.nativeLinker()
            .downcallHandle(
                Linker.nativeLinker().defaultLookup().findOrThrow("free"),
                FunctionDescriptor.ofVoid(ADDRESS));

    static MemorySegment malloc(long bytes) {
      try {
        return (MemorySegment) MALLOC.invokeExact(bytes);
      } catch (Throwable e) {
        throw new IllegalStateException(e);
      }
    }

    static void free(MemorySegment block) {
      try {
        FREE.invokeExact(block);
      } catch (Throwable e) {
        throw new IllegalStateException(e);
      }
    }
  }

  private static final class Stream {
    Graph capturing;
    boolean origin;
    boolean invalid;
  }

  private static final class Event {
    long nanos;
    boolean recorded;
    Graph captured;
  }

  private record Node(String kind, Runnable work) {}

  private static final class Graph {
    final List<Node> nodes = new ArrayList<>();
  }

  private static final class GraphExec {
    List<Node> nodes;
  }

  private static final class Module {
    final Map<String, Long> functions = new HashMap<>();
    final Map<String, Long> variables = new HashMap<>();
  }

  private static final class Function {
    CompiledKernel kernel;
    int dynamicLimit = SHARED_DEFAULT;
  }

  private static final class Link {
    String ptx;
    final Arena arena = Arena.ofShared();
  }

  private final Races races = new Races();

  /** Whether what ran last is a kernel, which a programmatic launch may overlap. */
  private boolean kernelBefore;

  private long overlapping;

  private SoftGpu(int capability, long totalMemory) {
    this.capability = capability;
    this.totalMemory = totalMemory;
  }

  /** Puts the software GPU behind the bindings, unless that was done before. */
  public static synchronized void install() {
    if (!installed && !DRIVER) {
      CudaLookup.install(SoftGpu::find);
      installed = true;
    }
  }

  /** A new device of compute capability 9.0 with 1 GiB; what the old one held is forgotten. */
  public static SoftGpu reset() {
    return reset(90, 1L << 30);
  }

  /**
   * A new device; what the old one held is forgotten.
   *
   * @param capability compute capability as major * 10 + minor
   * @param memory bytes of device memory
   */
  public static SoftGpu reset(int capability, long memory) {
    install();
    if (capability != 90 || memory != 1L << 30) {
      softwareOnly();
    }
    SoftGpu gpu = new SoftGpu(capability, memory);
    current = gpu;
    return gpu;
  }

  /** Skips the calling test on a real device. */
  private static void softwareOnly() {
    if (DRIVER) {
      throw new TestAbortedException("only the software GPU can do or tell this");
    }
  }

  /** How many threads run the blocks of a launch that is not cooperative. */
  public SoftGpu workers(int n) {
    workers = n;
    return this;
  }

  /** Claims another driver version and number of devices. */
  public SoftGpu pretend(int version, int devices) {
    softwareOnly();
    driverVersion = version;
    deviceCount = devices;
    return this;
  }

  /** Lets the n-th call from now (1 is the next) fail without effect. */
  public synchronized void failCall(long n, int code) {
    softwareOnly();
    failAt = calls + n;
    failCode = code;
    failedCall = "";
  }

  /** Remembers the names of the calls from now on. */
  public synchronized void trace() {
    softwareOnly();
    trace = new ArrayList<>();
  }

  /** The calls since {@link #trace}, in order. */
  public synchronized List<String> traced() {
    return List.copyOf(trace);
  }

  /** How often the primary context is retained. */
  public synchronized int retained() {
    return retained;
  }

  /** The call that was made to fail, or empty if it has not come to that. */
  public synchronized String failedCall() {
    return failedCall;
  }

  /** Driver calls so far, without those that ask for texts of errors. */
  public synchronized long calls() {
    softwareOnly();
    return calls;
  }

  /** Kernels launched by themselves (not in graphs, not recorded). */
  public synchronized long kernelLaunches() {
    softwareOnly();
    return kernelLaunches;
  }

  /** Kernels, in graphs too, that might have begun before those before them ended. */
  public synchronized long overlapping() {
    softwareOnly();
    return overlapping;
  }

  /** Launches of graphs. */
  public synchronized long graphLaunches() {
    softwareOnly();
    return graphLaunches;
  }

  /** Calls that wait for the device. */
  public synchronized long synchronisations() {
    softwareOnly();
    return synchronisations;
  }

  /** Copies between host and device in either direction, and on the device. */
  public synchronized long copies() {
    softwareOnly();
    return copies;
  }

  /** Bytes that copies have brought from the device to the host. */
  public long downloadedBytes() {
    softwareOnly();
    return downloaded.get();
  }

  /** Instructions of warps so far. */
  public synchronized long instructions() {
    softwareOnly();
    return instructions;
  }

  /** How often each kernel ran. */
  public synchronized Map<String, Integer> kernelRuns() {
    softwareOnly();
    return new TreeMap<>(kernelRuns);
  }

  /** Bytes of device and pinned memory that are allocated. */
  public synchronized long liveBytes() {
    return allocations.values().stream().mapToLong(Allocation::bytes).sum();
  }

  /** Streams, events, modules, graphs and links that are not destroyed. */
  public synchronized long liveObjects() {
    return objects.values().stream().filter(o -> !(o instanceof Function)).count();
  }

  /** What the last kernel did wrong, or empty. */
  public synchronized String faultText() {
    return faultText;
  }

  // Stubs.

  private static Optional<MemorySegment> find(String name) {
    return STUBS.computeIfAbsent(name, SoftGpu::stub);
  }

  private static Optional<MemorySegment> stub(String name) {
    Method wrapper =
        Arrays.stream(CudaDriver.class.getMethods())
            .filter(m -> m.getName().equals(name))
            .findFirst()
            .orElse(null);
    if (wrapper == null) {
      return Optional.empty();
    }
    Method target;
    try {
      target = SoftGpu.class.getDeclaredMethod(name, wrapper.getParameterTypes());
    } catch (NoSuchMethodException _) {
      return Optional.empty();
    }
    MemoryLayout[] layouts =
        Arrays.stream(wrapper.getParameterTypes())
            .map(t ->
                t == int.class
                    ? JAVA_INT
                    : t == long.class
                        ? JAVA_LONG
                        : t == byte.class
                            ? JAVA_BYTE
                            : t == short.class ? java.lang.foreign.ValueLayout.JAVA_SHORT : ADDRESS)
            .toArray(MemoryLayout[]::new);
    try {
      MethodHandles.Lookup lookup = MethodHandles.lookup();
      MethodHandle dispatch =
          lookup.findStatic(
              SoftGpu.class,
              "dispatch",
              MethodType.methodType(int.class, String.class, MethodHandle.class, Object[].class));
      MethodHandle body =
          lookup
              .unreflect(target)
              .asType(MethodType.methodType(int.class, SoftGpu.class, wrapper.getParameterTypes()))
              .asSpreader(Object[].class, wrapper.getParameterCount());
      MethodHandle call =
          MethodHandles.insertArguments(dispatch, 0, name, body)
              .asCollector(Object[].class, wrapper.getParameterCount())
              .asType(MethodType.methodType(int.class, wrapper.getParameterTypes()));
      return Optional.of(
          Linker.nativeLinker()
              .upcallStub(call, FunctionDescriptor.of(JAVA_INT, layouts), Arena.global()));
    } catch (ReflectiveOperationException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Every call comes through here; nothing may be thrown out of it. */
  private static int dispatch(String name, MethodHandle body, Object[] arguments) {
    try {
      SoftGpu gpu = current;
      synchronized (gpu) {
        if (!name.startsWith("cuGetError")) {
          gpu.calls++;
          if (gpu.trace != null) {
            gpu.trace.add(name);
          }
          if (gpu.calls == gpu.failAt) {
            gpu.failedCall = name;
            return gpu.failCode;
          }
          int refused = gpu.refuse(name);
          if (refused != 0) {
            return refused;
          }
        }
        return (int) body.invoke(gpu, arguments);
      }
    } catch (Throwable e) {
      System.err.println("software GPU: " + name + ": " + e);
      return UNKNOWN;
    }
  }

  private int refuse(String name) {
    if (name.equals("cuInit")
        || name.startsWith("cuDriver")
        || name.startsWith("cuDevice")
        || name.startsWith("cuCtxSet")) {
      return 0;
    }
    if (retained == 0 || currentContext.get() != 1) {
      return INVALID_CONTEXT;
    }
    return sticky;
  }

  // Helpers.

  private long add(Object o) {
    nextHandle += 16;
    objects.put(nextHandle, o);
    return nextHandle;
  }

  private <T> T get(MemorySegment handle, Class<T> type) {
    Object o = objects.get(handle.address());
    return type.isInstance(o) ? type.cast(o) : null;
  }

  private static MemorySegment at(MemorySegment s, long bytes) {
    return s.reinterpret(bytes);
  }

  private static void put(MemorySegment out, long v) {
    at(out, 8).set(JAVA_LONG, 0, v);
  }

  private static void put(MemorySegment out, int v) {
    at(out, 4).set(JAVA_INT, 0, v);
  }

  private void drain() {
    while (!queue.isEmpty()) {
      Runnable r = queue.removeFirst();
      if (sticky != 0) {
        continue;
      }
      try {
        r.run();
      } catch (GpuFault e) {
        sticky = e.code();
        faultText = e.getMessage();
      } catch (RuntimeException e) {
        sticky = UNKNOWN;
        faultText = "the software GPU itself failed: " + e;
        e.printStackTrace();
      }
    }
  }

  private final Stream legacy = new Stream();

  private Stream stream(MemorySegment handle) {
    return handle.address() == 0 ? legacy : get(handle, Stream.class);
  }

  private int submit(MemorySegment handle, String kind, Runnable work) {
    Stream s = stream(handle);
    if (s == null) {
      return INVALID_HANDLE;
    }
    if (s.invalid) {
      return CAPTURE_INVALIDATED;
    }
    Runnable all =
        kind.equals("kernel")
            ? work
            : () -> {
              work.run();
              kernelBefore = false;
            };
    if (s.capturing != null) {
      s.capturing.nodes.add(new Node(kind, all));
      return 0;
    }
    queue.add(all);
    if (queue.size() > 4096) {
      drain();
    }
    return 0;
  }

  /** A call that must not be made while a stream records; breaks the recording. */
  private int unsafe() {
    boolean capturing = false;
    for (Object o : objects.values()) {
      if (o instanceof Stream s && s.capturing != null) {
        s.invalid = true;
        capturing = true;
      }
    }
    return capturing ? CAPTURE_UNSUPPORTED : 0;
  }

  // Errors.

  int cuGetErrorName(int error, MemorySegment out) {
    String name = errorName(error);
    at(out, 8).set(ADDRESS, 0, text(2 * error, name));
    return name.isEmpty() ? INVALID_VALUE : 0;
  }

  int cuGetErrorString(int error, MemorySegment out) {
    String s = error == sticky && error != 0 ? faultText : errorName(error);
    texts.remove(2 * error + 1);
    at(out, 8).set(ADDRESS, 0, text(2 * error + 1, s));
    return 0;
  }

  private MemorySegment text(int key, String s) {
    return texts.computeIfAbsent(key, k -> Arena.ofAuto().allocateFrom(s));
  }

  private static String errorName(int error) {
    return ErrorNames.ALL.getOrDefault(error, "");
  }

  private static final class ErrorNames {
    static final Map<Integer, String> ALL = new HashMap<>();

    static {
      for (Method m : CudaDriver.class.getMethods()) {
        if (m.getParameterCount() == 0
            && m.getReturnType() == int.class
            && (m.getName().startsWith("CUDA_ERROR_") || m.getName().equals("CUDA_SUCCESS"))) {
          try {
            ALL.put((int) m.invoke(null), m.getName());
          } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
          }
        }
      }
    }
  }

  // Devices and contexts.

  int cuInit(int flags) {
    return deviceCount == 0 ? 100 : 0;
  }

  int cuDriverGetVersion(MemorySegment out) {
    put(out, driverVersion);
    return 0;
  }

  int cuDeviceGetCount(MemorySegment out) {
    put(out, deviceCount);
    return 0;
  }

  int cuDeviceGet(MemorySegment out, int ordinal) {
    put(out, ordinal);
    return ordinal < 0 || ordinal >= deviceCount ? INVALID_DEVICE : 0;
  }

  int cuDeviceGetName(MemorySegment name, int length, int device) {
    byte[] s = "Software GPU".getBytes(StandardCharsets.US_ASCII);
    MemorySegment out = at(name, length);
    out.fill((byte) 0);
    MemorySegment.copy(s, 0, out, JAVA_BYTE, 0, Math.min(s.length, length - 1));
    return 0;
  }

  int cuDeviceTotalMem_v2(MemorySegment out, int device) {
    put(out, totalMemory);
    return 0;
  }

  int cuDeviceGetAttribute(MemorySegment out, int attribute, int device) {
    Map<Integer, Integer> values = new HashMap<>();
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR(), capability / 10);
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR(), capability % 10);
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT(), MULTIPROCESSORS);
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN(), SHARED_LIMIT);
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE(), 50 << 20);
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH(), 1);
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED(), 1);
    values.put(CudaDriver.CU_DEVICE_ATTRIBUTE_WARP_SIZE(), 32);
    Integer v = values.get(attribute);
    if (v == null) {
      return INVALID_VALUE;
    }
    put(out, v.intValue());
    return 0;
  }

  int cuDevicePrimaryCtxRetain(MemorySegment out, int device) {
    if (device < 0 || device >= deviceCount) {
      return INVALID_DEVICE;
    }
    retained++;
    put(out, 1L);
    return 0;
  }

  int cuDevicePrimaryCtxRelease_v2(int device) {
    if (retained == 0) {
      return INVALID_CONTEXT;
    }
    if (--retained == 0) {
      drain();
      allocations.forEach((a, b) -> {
        memory.remove(a);
        b.free();
      });
      allocations.clear();
      objects
          .values()
          .forEach(o -> {
            if (o instanceof Link l) {
              l.arena.close();
            }
          });
      objects.clear();
      used = 0;
      sticky = 0;
    }
    return 0;
  }

  int cuCtxSetCurrent(MemorySegment context) {
    currentContext.set(context.address());
    return 0;
  }

  int cuCtxSynchronize() {
    if (unsafe() != 0) {
      return CAPTURE_UNSUPPORTED;
    }
    synchronisations++;
    drain();
    return sticky;
  }

  // Memory.

  int cuMemGetInfo_v2(MemorySegment free, MemorySegment total) {
    put(free, totalMemory - used);
    put(total, totalMemory);
    return 0;
  }

  private int allocate(MemorySegment out, long bytes, String kind) {
    if (bytes <= 0) {
      return INVALID_VALUE;
    }
    boolean device = !kind.equals("pinned");
    if (device && bytes > totalMemory - used) {
      return OUT_OF_MEMORY;
    }
    MemorySegment block = Heap.malloc(bytes + 256);
    if (block.address() == 0) {
      return OUT_OF_MEMORY;
    }
    long address = block.address() + 255 & -256;
    // What was never written is not zero on a device either.
    MemoryMap.ALL.asSlice(address, bytes).fill((byte) 0xcb);
    allocations.put(address, new Allocation(block, bytes, kind));
    memory.add(address, bytes);
    used += device ? bytes : 0;
    put(out, address);
    return 0;
  }

  private int free(long address, boolean pinned) {
    Allocation a = allocations.get(address);
    if (a == null || a.kind().equals("pinned") != pinned) {
      return INVALID_VALUE;
    }
    allocations.remove(address);
    memory.remove(address);
    used -= pinned ? 0 : a.bytes();
    a.free();
    return 0;
  }

  int cuMemAlloc_v2(MemorySegment out, long bytes) {
    int refused = unsafe();
    return refused != 0 ? refused : allocate(out, bytes, "device");
  }

  int cuMemFree_v2(long address) {
    int refused = unsafe();
    if (refused != 0) {
      return refused;
    }
    drain();
    return free(address, false);
  }

  int cuMemAllocAsync(MemorySegment out, long bytes, MemorySegment stream) {
    Stream s = stream(stream);
    if (s == null) {
      return INVALID_HANDLE;
    }
    if (s.capturing != null) {
      return CAPTURE_UNSUPPORTED;
    }
    drain();
    return allocate(out, bytes, "device");
  }

  int cuMemFreeAsync(long address, MemorySegment stream) {
    Stream s = stream(stream);
    if (s == null) {
      return INVALID_HANDLE;
    }
    if (s.capturing != null) {
      return CAPTURE_UNSUPPORTED;
    }
    if (!allocations.containsKey(address)) {
      return INVALID_VALUE;
    }
    return submit(
        stream,
        "free",
        () -> {
          int unused = free(address, false);
        });
  }

  int cuMemHostAlloc(MemorySegment out, long bytes, int flags) {
    int refused = unsafe();
    return refused != 0 ? refused : allocate(out, bytes, "pinned");
  }

  int cuMemFreeHost(MemorySegment p) {
    drain();
    return free(p.address(), true);
  }

  private boolean inside(long address, long bytes) {
    Map.Entry<Long, Allocation> e = allocations.floorEntry(address);
    return e != null && bytes >= 0 && address + bytes <= e.getKey() + e.getValue().bytes();
  }

  private boolean pinned(long address) {
    Map.Entry<Long, Allocation> e = allocations.floorEntry(address);
    return e != null
        && address < e.getKey() + e.getValue().bytes()
        && e.getValue().kind().equals("pinned");
  }

  private static void move(long to, long from, long bytes) {
    MemorySegment.copy(MemoryMap.ALL, from, MemoryMap.ALL, to, bytes);
  }

  private void checkedMove(long to, long from, long bytes, boolean toDevice, boolean fromDevice) {
    if (toDevice && !inside(to, bytes) || fromDevice && !inside(from, bytes)) {
      throw new GpuFault(GpuFault.ILLEGAL_ADDRESS, "a copy touches memory that was freed");
    }
    if (!toDevice) {
      downloaded.addAndGet(bytes);
    }
    move(to, from, bytes);
  }

  int cuMemcpyHtoDAsync_v2(long to, MemorySegment from, long bytes, MemorySegment stream) {
    if (!inside(to, bytes)) {
      return INVALID_VALUE;
    }
    copies++;
    Stream s = stream(stream);
    if (pinned(from.address()) || s != null && s.capturing != null) {
      return submit(stream, "copy", () -> checkedMove(to, from.address(), bytes, true, false));
    }
    byte[] staged = at(from, bytes).toArray(JAVA_BYTE);
    return submit(
        stream,
        "copy",
        () -> {
          if (!inside(to, bytes)) {
            throw new GpuFault(GpuFault.ILLEGAL_ADDRESS, "a copy touches memory that was freed");
          }
          MemorySegment.copy(staged, 0, MemoryMap.ALL, JAVA_BYTE, to, staged.length);
        });
  }

  int cuMemcpyDtoHAsync_v2(MemorySegment to, long from, long bytes, MemorySegment stream) {
    if (!inside(from, bytes)) {
      return INVALID_VALUE;
    }
    copies++;
    Stream s = stream(stream);
    boolean wait = !pinned(to.address()) && s != null && s.capturing == null;
    int status = submit(stream, "copy", () -> checkedMove(to.address(), from, bytes, false, true));
    if (wait && status == 0) {
      drain();
      return sticky;
    }
    return status;
  }

  int cuMemcpyDtoDAsync_v2(long to, long from, long bytes, MemorySegment stream) {
    if (!inside(to, bytes) || !inside(from, bytes)) {
      return INVALID_VALUE;
    }
    copies++;
    return submit(stream, "copy", () -> checkedMove(to, from, bytes, true, true));
  }

  int cuMemsetD8Async(long to, byte v, long n, MemorySegment stream) {
    if (!inside(to, n)) {
      return INVALID_VALUE;
    }
    return submit(stream, "set", () -> MemoryMap.ALL.asSlice(to, n).fill(v));
  }

  int cuMemsetD32Async(long to, int v, long n, MemorySegment stream) {
    if (!inside(to, 4 * n) || (to & 3) != 0) {
      return INVALID_VALUE;
    }
    return submit(
        stream,
        "set",
        () -> {
          for (long i = 0; i < n; i++) {
            MemoryMap.ALL.set(JAVA_INT, to + 4 * i, v);
          }
        });
  }

  // Streams and events.

  int cuStreamCreate(MemorySegment out, int flags) {
    put(out, add(new Stream()));
    return 0;
  }

  int cuStreamDestroy_v2(MemorySegment stream) {
    if (get(stream, Stream.class) == null) {
      return INVALID_HANDLE;
    }
    drain();
    objects.remove(stream.address());
    return 0;
  }

  int cuStreamSynchronize(MemorySegment stream) {
    Stream s = stream(stream);
    if (s == null) {
      return INVALID_HANDLE;
    }
    if (s.capturing != null) {
      s.invalid = true;
      return CAPTURE_UNSUPPORTED;
    }
    synchronisations++;
    drain();
    return sticky;
  }

  int cuStreamQuery(MemorySegment stream) {
    if (stream(stream) == null) {
      return INVALID_HANDLE;
    }
    drain();
    return sticky;
  }

  int cuStreamWaitEvent(MemorySegment stream, MemorySegment event, int flags) {
    Stream s = stream(stream);
    Event e = get(event, Event.class);
    if (s == null || e == null) {
      return INVALID_HANDLE;
    }
    if (e.captured != null && s.capturing == null) {
      s.capturing = e.captured;
    }
    return 0;
  }

  int cuEventCreate(MemorySegment out, int flags) {
    put(out, add(new Event()));
    return 0;
  }

  int cuEventDestroy_v2(MemorySegment event) {
    if (get(event, Event.class) == null) {
      return INVALID_HANDLE;
    }
    objects.remove(event.address());
    return 0;
  }

  int cuEventRecord(MemorySegment event, MemorySegment stream) {
    Event e = get(event, Event.class);
    Stream s = stream(stream);
    if (e == null || s == null) {
      return INVALID_HANDLE;
    }
    e.captured = s.capturing;
    if (s.capturing != null) {
      return 0;
    }
    e.recorded = true;
    return submit(stream, "event", () -> e.nanos = System.nanoTime());
  }

  int cuEventSynchronize(MemorySegment event) {
    Event e = get(event, Event.class);
    if (e == null) {
      return INVALID_HANDLE;
    }
    if (e.captured != null) {
      return 907;
    }
    synchronisations++;
    drain();
    return sticky;
  }

  int cuEventQuery(MemorySegment event) {
    if (get(event, Event.class) == null) {
      return INVALID_HANDLE;
    }
    drain();
    return sticky;
  }

  int cuEventElapsedTime_v2(MemorySegment out, MemorySegment start, MemorySegment end) {
    Event a = get(start, Event.class);
    Event b = get(end, Event.class);
    if (a == null || b == null || !a.recorded || !b.recorded) {
      return INVALID_HANDLE;
    }
    drain();
    at(out, 4).set(JAVA_FLOAT, 0, (b.nanos - a.nanos) / 1e6f);
    return sticky;
  }

  // Modules.

  private static void log(MemorySegment options, MemorySegment values, int n, String message) {
    MemorySegment ids = at(options, 4L * n);
    MemorySegment v = at(values, 8L * n);
    long buffer = 0;
    long size = 0;
    for (int i = 0; i < n; i++) {
      int id = ids.getAtIndex(JAVA_INT, i);
      if (id == CudaDriver.CU_JIT_ERROR_LOG_BUFFER()) {
        buffer = v.getAtIndex(JAVA_LONG, i);
      } else if (id == CudaDriver.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES()) {
        size = v.getAtIndex(JAVA_LONG, i);
      }
    }
    if (buffer != 0 && size > 1) {
      byte[] b = message.getBytes(StandardCharsets.UTF_8);
      int length = (int) Math.min(b.length, size - 1);
      MemorySegment.copy(b, 0, MemoryMap.ALL, JAVA_BYTE, buffer, length);
      MemoryMap.ALL.set(JAVA_BYTE, buffer + length, (byte) 0);
    }
  }

  /** Modules without variables, whose addresses would be part of the kernels, by their texts. */
  private static final Map<String, Compiled> COMPILED =
      new LinkedHashMap<>(64, 0.75f, true) {
        private static final long serialVersionUID = 1L;

        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Compiled> eldest) {
          return size() > 64;
        }
      };

  /** A text that was read, and its kernels unless they are to be made. */
  private record Compiled(PtxParser source, List<CompiledKernel> kernels) {}

  private static boolean isPlaced(PtxParser.Variable v) {
    return !v.space().equals(".shared");
  }

  private Compiled parse(String ptx) {
    Compiled known;
    synchronized (COMPILED) {
      known = COMPILED.get(ptx);
    }
    Compiled c = known == null ? new Compiled(new PtxParser(ptx), null) : known;
    checkTarget(c.source());
    return c;
  }

  /**
   * Kernels of a text.
   *
   * @param places addresses of its variables
   */
  private static List<CompiledKernel> compile(String ptx, Compiled c, Map<String, Long> places) {
    PtxParser p = c.source();
    List<CompiledKernel> kernels = c.kernels();
    if (kernels == null) {
      kernels =
          p.kernels.values().stream()
              .map(k -> PtxCompiler.compile(k, p.variables, places))
              .toList();
      if (p.variables.values().stream().noneMatch(SoftGpu::isPlaced)) {
        synchronized (COMPILED) {
          COMPILED.put(ptx, new Compiled(p, kernels));
        }
      }
    }
    return kernels.stream().map(CompiledKernel::copy).toList();
  }

  private void checkTarget(PtxParser p) {
    String digits = p.target.replaceAll("\\D", "");
    if (digits.isEmpty() || Integer.parseInt(digits) > capability) {
      throw new PtxException(1, "target " + p.target + " is newer than the device: " + capability);
    }
  }

  int cuModuleLoadDataEx(
      MemorySegment out,
      MemorySegment image,
      int count,
      MemorySegment options,
      MemorySegment values) {
    MemorySegment data = at(image, Long.MAX_VALUE - image.address());
    String ptx;
    if (data.get(JAVA_INT, 0) == 0x464c457f) {
      if (data.get(JAVA_INT, 68) != capability) {
        return NO_BINARY;
      }
      ptx =
          new String(
              data.asSlice(72, data.get(JAVA_INT, 64)).toArray(JAVA_BYTE), StandardCharsets.UTF_8);
    } else {
      ptx = data.getString(0);
    }
    Module m = new Module();
    try {
      Compiled c = parse(ptx);
      for (PtxParser.Variable v : c.source().variables.values()) {
        if (!isPlaced(v)) {
          continue;
        }
        try (Arena arena = Arena.ofConfined()) {
          MemorySegment address = arena.allocate(8, 8);
          int status = allocate(address, v.size(), "device");
          if (status != 0) {
            unload(m);
            return status;
          }
          long a = address.get(JAVA_LONG, 0);
          m.variables.put(v.name(), a);
          MemoryMap.ALL.asSlice(a, v.size()).fill((byte) 0);
          if (v.initial() != null) {
            MemorySegment.copy(v.initial(), 0, MemoryMap.ALL, JAVA_BYTE, a, v.initial().length);
          }
        }
      }
      for (CompiledKernel k : compile(ptx, c, m.variables)) {
        Function f = new Function();
        f.kernel = k;
        m.functions.put(k.name, add(f));
      }
    } catch (PtxException e) {
      unload(m);
      log(options, values, count, e.getMessage());
      return INVALID_PTX;
    }
    put(out, add(m));
    return 0;
  }

  private void unload(Module m) {
    m.variables
        .values()
        .forEach(a -> {
          int unused = free(a, false);
        });
    m.functions.values().forEach(objects::remove);
  }

  int cuModuleUnload(MemorySegment module) {
    Module m = get(module, Module.class);
    if (m == null) {
      return INVALID_HANDLE;
    }
    drain();
    unload(m);
    objects.remove(module.address());
    return 0;
  }

  int cuModuleGetFunction(MemorySegment out, MemorySegment module, MemorySegment name) {
    Module m = get(module, Module.class);
    if (m == null) {
      return INVALID_HANDLE;
    }
    Long f = m.functions.get(at(name, Long.MAX_VALUE - name.address()).getString(0));
    if (f == null) {
      return NOT_FOUND;
    }
    put(out, f.longValue());
    return 0;
  }

  int cuModuleGetGlobal_v2(
      MemorySegment out, MemorySegment bytes, MemorySegment module, MemorySegment name) {
    Module m = get(module, Module.class);
    if (m == null) {
      return INVALID_HANDLE;
    }
    Long a = m.variables.get(at(name, Long.MAX_VALUE - name.address()).getString(0));
    if (a == null) {
      return NOT_FOUND;
    }
    put(out, a.longValue());
    put(bytes, allocations.get(a).bytes());
    return 0;
  }

  int cuLinkCreate_v2(int count, MemorySegment options, MemorySegment values, MemorySegment out) {
    put(out, add(new Link()));
    return 0;
  }

  int cuLinkAddData_v2(
      MemorySegment link,
      int type,
      MemorySegment data,
      long size,
      MemorySegment name,
      int count,
      MemorySegment options,
      MemorySegment values) {
    Link l = get(link, Link.class);
    if (l == null) {
      return INVALID_HANDLE;
    }
    String ptx = at(data, size).getString(0);
    try {
      Compiled c = parse(ptx);
      Map<String, Long> places = new HashMap<>();
      c.source().variables.keySet().forEach(v -> places.put(v, 4096L));
      compile(ptx, c, places);
    } catch (PtxException _) {
      return INVALID_PTX;
    }
    l.ptx = ptx;
    return 0;
  }

  int cuLinkComplete(MemorySegment link, MemorySegment out, MemorySegment size) {
    Link l = get(link, Link.class);
    if (l == null || l.ptx == null) {
      return INVALID_HANDLE;
    }
    byte[] text = l.ptx.getBytes(StandardCharsets.UTF_8);
    MemorySegment elf = l.arena.allocate(72 + text.length, 8);
    elf.set(JAVA_INT, 0, 0x464c457f);
    elf.set(JAVA_BYTE, 4, (byte) 2);
    elf.set(JAVA_LONG, 32, 64);
    elf.set(JAVA_LONG, 40, 72L + text.length);
    elf.set(JAVA_INT, 64, text.length);
    elf.set(JAVA_INT, 68, capability);
    MemorySegment.copy(text, 0, elf, JAVA_BYTE, 72, text.length);
    at(out, 8).set(ADDRESS, 0, elf);
    put(size, elf.byteSize());
    return 0;
  }

  int cuLinkDestroy(MemorySegment link) {
    Link l = get(link, Link.class);
    if (l == null) {
      return INVALID_HANDLE;
    }
    l.arena.close();
    objects.remove(link.address());
    return 0;
  }

  int cuFuncGetAttribute(MemorySegment out, int attribute, MemorySegment function) {
    Function f = get(function, Function.class);
    if (f == null) {
      return INVALID_HANDLE;
    }
    Map<Integer, Integer> v = new LinkedHashMap<>();
    v.put(CudaDriver.CU_FUNC_ATTRIBUTE_NUM_REGS(), Math.min(255, f.kernel.slots));
    v.put(CudaDriver.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES(), 0);
    v.put(CudaDriver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES(), f.kernel.staticShared);
    v.put(CudaDriver.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK(), f.kernel.maxThreads);
    v.put(CudaDriver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES(), f.dynamicLimit);
    Integer value = v.get(attribute);
    if (value == null) {
      return INVALID_VALUE;
    }
    put(out, value.intValue());
    return 0;
  }

  int cuFuncSetAttribute(MemorySegment function, int attribute, int value) {
    Function f = get(function, Function.class);
    if (f == null) {
      return INVALID_HANDLE;
    }
    if (attribute != CudaDriver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES()
        || value < 0
        || value + f.kernel.staticShared > SHARED_LIMIT) {
      return INVALID_VALUE;
    }
    f.dynamicLimit = value;
    return 0;
  }

  int cuOccupancyMaxActiveBlocksPerMultiprocessor(
      MemorySegment out, MemorySegment function, int threads, long shared) {
    Function f = get(function, Function.class);
    if (f == null) {
      return INVALID_HANDLE;
    }
    if (threads < 1 || threads > 1024) {
      return INVALID_VALUE;
    }
    long bytes = shared + f.kernel.staticShared + 1024;
    put(out, (int) Math.min(Math.min(8, 2048 / threads), (SHARED_LIMIT + 1024) / bytes));
    return 0;
  }

  // Launches.

  int cuLaunchKernelEx(
      MemorySegment config, MemorySegment function, MemorySegment pointers, MemorySegment extra) {
    Function f = get(function, Function.class);
    if (f == null) {
      return INVALID_HANDLE;
    }
    MemorySegment c = at(config, CUlaunchConfig_st.sizeof());
    boolean cooperative = false;
    boolean programmatic = false;
    int n = CUlaunchConfig_st.numAttrs(c);
    for (int i = 0; i < n; i++) {
      MemorySegment a =
          at(CUlaunchConfig_st.attrs(c), n * CUlaunchAttribute_st.sizeof())
              .asSlice(i * CUlaunchAttribute_st.sizeof(), CUlaunchAttribute_st.sizeof());
      int id = CUlaunchAttribute_st.id(a);
      if (id == CudaDriver.CU_LAUNCH_ATTRIBUTE_COOPERATIVE()) {
        cooperative = CUlaunchAttributeValue_union.cooperative(CUlaunchAttribute_st.value(a)) != 0;
      } else if (id == CudaDriver.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION()
          || id == CudaDriver.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION()) {
        if (capability < 90) {
          return INVALID_VALUE;
        }
        programmatic |=
            id == CudaDriver.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION()
                && CUlaunchAttributeValue_union.programmaticStreamSerializationAllowed(
                        CUlaunchAttribute_st.value(a))
                    != 0;
      } else {
        return INVALID_VALUE;
      }
    }
    int[] grid = {
      CUlaunchConfig_st.gridDimX(c), CUlaunchConfig_st.gridDimY(c), CUlaunchConfig_st.gridDimZ(c)
    };
    int[] block = {
      CUlaunchConfig_st.blockDimX(c), CUlaunchConfig_st.blockDimY(c), CUlaunchConfig_st.blockDimZ(c)
    };
    int shared = CUlaunchConfig_st.sharedMemBytes(c);
    long threads = (long) block[0] * block[1] * block[2];
    if (Arrays.stream(grid).anyMatch(g -> g < 1) || Arrays.stream(block).anyMatch(b -> b < 1)) {
      return INVALID_VALUE;
    }
    if (threads > f.kernel.maxThreads) {
      return OUT_OF_RESOURCES;
    }
    if (f.kernel.requiredThreads != null && !Arrays.equals(f.kernel.requiredThreads, block)
        || shared > f.dynamicLimit
        || shared + f.kernel.staticShared
            > Math.max(SHARED_DEFAULT, f.dynamicLimit + f.kernel.staticShared)) {
      return INVALID_VALUE;
    }
    if (cooperative && !Launch.fits(grid[0] * grid[1] * grid[2])) {
      return COOPERATIVE_TOO_LARGE;
    }
    byte[] parameters = new byte[f.kernel.parameterBytes];
    MemorySegment all = at(pointers, 8L * f.kernel.parameters.size());
    for (int i = 0; i < f.kernel.parameters.size(); i++) {
      PtxParser.Parameter p = f.kernel.parameters.get(i);
      long at = all.getAtIndex(JAVA_LONG, i);
      if (at == 0) {
        return INVALID_VALUE;
      }
      MemorySegment.copy(MemoryMap.ALL, JAVA_BYTE, at, parameters, p.offset(), p.size());
    }
    Launch launch =
        new Launch(
            f.kernel, memory, parameters, grid, block, shared, cooperative, programmatic, races);
    Stream s = stream(CUlaunchConfig_st.hStream(c));
    if (s != null && s.capturing == null) {
      kernelLaunches++;
    }
    int threadsOfHost = workers;
    boolean overlaps = programmatic;
    return submit(
        CUlaunchConfig_st.hStream(c),
        "kernel",
        () -> {
          kernelRuns.merge(f.kernel.name, 1, Integer::sum);
          races.begin(launch, overlaps && kernelBefore);
          overlapping += overlaps && kernelBefore ? 1 : 0;
          kernelBefore = true;
          launch.run(threadsOfHost);
          instructions += launch.instructions.getAndSet(0);
        });
  }

  // Graphs.

  int cuStreamBeginCapture_v2(MemorySegment stream, int mode) {
    Stream s = get(stream, Stream.class);
    if (s == null) {
      return INVALID_HANDLE;
    }
    if (s.capturing != null) {
      return ILLEGAL_STATE;
    }
    s.capturing = new Graph();
    s.origin = true;
    s.invalid = false;
    return 0;
  }

  int cuStreamEndCapture(MemorySegment stream, MemorySegment out) {
    Stream s = get(stream, Stream.class);
    if (s == null) {
      return INVALID_HANDLE;
    }
    if (s.capturing == null || !s.origin) {
      return ILLEGAL_STATE;
    }
    Graph g = s.capturing;
    boolean invalid = s.invalid;
    for (Object o : objects.values()) {
      if (o instanceof Stream other && other.capturing == g) {
        other.capturing = null;
        other.origin = false;
        other.invalid = false;
      }
      if (o instanceof Event e && e.captured == g) {
        e.captured = null;
      }
    }
    if (invalid) {
      put(out, 0L);
      return CAPTURE_INVALIDATED;
    }
    put(out, add(g));
    return 0;
  }

  int cuStreamIsCapturing(MemorySegment stream, MemorySegment out) {
    Stream s = stream(stream);
    if (s == null) {
      return INVALID_HANDLE;
    }
    put(
        out,
        s.capturing == null
            ? CudaDriver.CU_STREAM_CAPTURE_STATUS_NONE()
            : s.invalid
                ? CudaDriver.CU_STREAM_CAPTURE_STATUS_INVALIDATED()
                : CudaDriver.CU_STREAM_CAPTURE_STATUS_ACTIVE());
    return 0;
  }

  int cuGraphGetNodes(MemorySegment graph, MemorySegment nodes, MemorySegment count) {
    Graph g = get(graph, Graph.class);
    if (g == null) {
      return INVALID_HANDLE;
    }
    put(count, (long) g.nodes.size());
    return 0;
  }

  int cuGraphDestroy(MemorySegment graph) {
    if (get(graph, Graph.class) == null) {
      return INVALID_HANDLE;
    }
    objects.remove(graph.address());
    return 0;
  }

  int cuGraphInstantiateWithFlags(MemorySegment out, MemorySegment graph, long flags) {
    Graph g = get(graph, Graph.class);
    if (g == null) {
      return INVALID_HANDLE;
    }
    GraphExec e = new GraphExec();
    e.nodes = List.copyOf(g.nodes);
    put(out, add(e));
    return 0;
  }

  int cuGraphExecDestroy(MemorySegment exec) {
    if (get(exec, GraphExec.class) == null) {
      return INVALID_HANDLE;
    }
    objects.remove(exec.address());
    return 0;
  }

  int cuGraphUpload(MemorySegment exec, MemorySegment stream) {
    return get(exec, GraphExec.class) == null ? INVALID_HANDLE : 0;
  }

  int cuGraphExecUpdate_v2(MemorySegment exec, MemorySegment graph, MemorySegment result) {
    GraphExec e = get(exec, GraphExec.class);
    Graph g = get(graph, Graph.class);
    if (e == null || g == null) {
      return INVALID_HANDLE;
    }
    List<String> old = e.nodes.stream().map(Node::kind).toList();
    if (!Objects.equals(old, g.nodes.stream().map(Node::kind).toList())) {
      return UPDATE_FAILURE;
    }
    e.nodes = List.copyOf(g.nodes);
    return 0;
  }

  int cuGraphLaunch(MemorySegment exec, MemorySegment stream) {
    GraphExec e = get(exec, GraphExec.class);
    Stream s = stream(stream);
    if (e == null || s == null) {
      return INVALID_HANDLE;
    }
    if (s.capturing != null) {
      return CAPTURE_UNSUPPORTED;
    }
    graphLaunches++;
    List<Node> nodes = e.nodes;
    return submit(stream, "graph", () -> nodes.forEach(n -> n.work().run()));
  }
}
