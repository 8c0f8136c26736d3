package io.fletch.graph.cuda;

import io.fletch.ffm.device.DeviceMemory;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.support.AbstractKvCache;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;

/**
 * Keys and values in one block of device memory: for each layer the keys of all slots, then the
 * values of all slots. Slots never written are zero. Work on it is queued on its executable's
 * stream.
 */
final class CudaKvCache extends AbstractKvCache {
  private final CudaExecutable owner;
  private final long slotBytes;
  private final DeviceMemory memory;

  CudaKvCache(CudaExecutable owner, int capacity, Type type, DeviceMemory memory, long slotBytes) {
    super(owner, capacity, type);
    this.owner = owner;
    this.memory = memory;
    this.slotBytes = slotBytes;
  }

  long address() {
    return memory.address();
  }

  /** A use of the bytes of a layer's keys or values. */
  private interface Piece {
    /** {@code before}: bytes per slot of the pieces before; {@code row}: of this one. */
    void use(long before, int row) throws IOException;
  }

  private void pieces(Piece piece) throws IOException {
    long before = 0;
    for (AttentionSpec spec : owner.graph().kvLayers()) {
      for (int dim : new int[] {spec.keyDim(), spec.valueDim()}) {
        int row = Emitter.kvBytes(type(), spec.kvHeads() * dim);
        piece.use(before, row);
        before += row;
      }
    }
  }

  @Override
  public void copy(KvCache source, int sourceSlot, int slot, int count) {
    checkCopy(source, sourceSlot, slot, count);
    CudaKvCache from = (CudaKvCache) source;
    owner.locked(stream -> {
      try {
        pieces((before, row) ->
            stream.copy(
                from.memory,
                before * from.capacity() + (long) sourceSlot * row,
                memory,
                before * capacity() + (long) slot * row,
                (long) count * row));
      } catch (IOException e) {
        throw new AssertionError(e);
      }
    });
  }

  @Override
  public String layout() {
    return "cuda " + type();
  }

  @Override
  public long slotBytes() {
    return slotBytes;
  }

  @Override
  public void save(int count, WritableByteChannel to) throws IOException {
    checkCount(count);
    pieces((before, row) -> {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment host = arena.allocate(Math.max(1, (long) count * row));
        MemorySegment bytes = host.asSlice(0, (long) count * row);
        owner.locked(stream -> {
          stream.download(memory, before * capacity(), bytes);
          stream.synchronize();
        });
        KvCache.write(bytes.asByteBuffer(), to);
      }
    });
  }

  @Override
  public void load(int count, ReadableByteChannel from) throws IOException {
    checkCount(count);
    pieces((before, row) -> {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment host = arena.allocate(Math.max(1, (long) count * row));
        MemorySegment bytes = host.asSlice(0, (long) count * row);
        KvCache.read(bytes.asByteBuffer(), from);
        owner.locked(stream -> {
          stream.upload(bytes, memory, before * capacity());
          stream.synchronize();
        });
      }
    });
  }

  @Override
  public long bytes() {
    return closed() ? 0 : memory.bytes();
  }

  @Override
  public void close() {
    if (end()) {
      owner.release(memory);
    }
  }
}
