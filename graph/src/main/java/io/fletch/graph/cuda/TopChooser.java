package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaLaunch;
import io.fletch.ffm.device.CudaModule;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.ffm.device.LaunchConfig;
import io.fletch.ffm.device.PinnedMemory;
import io.fletch.ffm.ptx.PtxKernel;
import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.HashMap;
import java.util.Map;

/**
 * Runs {@link TopKernel} for rows of logits: requests go up, results come down, in the order of a
 * stream. Owned by an executable and used under its lock; what it holds for a forward is valid
 * until the next {@link #reserve}.
 */
final class TopChooser {
  private static final int THREADS = TopKernel.kernel(4).threads();

  private final CudaContext context;
  private final CudaModule module;

  /** By their number of blocks, a power of two. */
  private final Map<Integer, CudaLaunch> launches = new HashMap<>();

  private DeviceMemory memory;
  private PinnedMemory host;
  private int blocks;
  private long resultBytes;

  /**
   * Loads the kernel.
   *
   * @param rowBytes bytes from a row of logits to the next
   */
  TopChooser(CudaContext context, ModuleCache modules, String name, long rowBytes) {
    this.context = context;
    PtxKernel kernel = TopKernel.kernel(Math.toIntExact(rowBytes));
    module = modules.load(context, name + ".top", PtxKernel.header() + kernel.text("top"));
  }

  /**
   * Makes room; nothing that is queued uses it.
   *
   * @param rows rows of logits, at least 1
   * @param bytes bytes of all results
   * @return where the requests of the rows are written; those past the rows want nothing
   */
  MemorySegment reserve(int rows, long bytes) {
    blocks = Integer.highestOneBit(2 * rows - 1);
    resultBytes = bytes;
    if (!launches.containsKey(blocks)) {
      launches.put(blocks, module.function("top").prepare(LaunchConfig.of(blocks, THREADS), 3));
    }
    long wanted = requestBytes() + bytes;
    if (memory == null || host == null || memory.bytes() < wanted) {
      free();
      // Room for a few more, so that it seldom grows.
      long room = 2 * wanted;
      memory = context.allocate(room);
      host = context.allocatePinned(room);
    }
    MemorySegment requests = host.segment().asSlice(0, requestBytes());
    requests.fill((byte) 0);
    return requests;
  }

  private long requestBytes() {
    return (long) TopKernel.REQUEST * blocks;
  }

  /**
   * Queues upload, choice and download.
   *
   * @param logits address of the first row
   */
  void queue(CudaStream stream, long logits) {
    stream.upload(host.segment().asSlice(0, requestBytes()), memory, 0);
    launches
        .get(blocks)
        .setLong(0, logits)
        .setMemory(1, memory)
        .setLong(2, memory.address() + requestBytes())
        .launch(stream);
    stream.download(memory, requestBytes(), results());
  }

  /** The results, once the stream has come that far. */
  MemorySegment results() {
    return host.segment().asSlice(requestBytes(), resultBytes);
  }

  private void free() {
    try {
      if (memory != null) {
        memory.close();
      }
    } finally {
      memory = null;
      if (host != null) {
        host.close();
      }
      host = null;
    }
  }

  /** Frees all; nothing that is queued uses it. */
  void close() {
    Deque<Runnable> owned = new ArrayDeque<>();
    owned.push(module::close);
    launches.values().forEach(l -> owned.push(l::close));
    owned.push(this::free);
    CudaExecutable.free(owned);
  }
}
