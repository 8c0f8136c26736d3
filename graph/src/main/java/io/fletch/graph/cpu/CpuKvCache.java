package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.support.AbstractKvCache;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;
import java.util.List;
import java.util.Optional;

/**
 * Keys and values in one block of native memory, layer after layer ({@link KvBlocks}). Memory is
 * reserved at once and taken from the system as slots are written, in long caches in huge pages
 * ({@link HugeSlots}).
 */
final class CpuKvCache extends AbstractKvCache {
  /** Largest piece that is handed to a channel at once. */
  private static final long MOST_BYTES = 1 << 24;

  private final NativeMemory memory;
  private final MemorySegment segment;
  private final KvBlocks blocks;
  private final long[] keyBytes;
  private final long[] valueBytes;
  private final int[] heads;
  private final Optional<HugeSlots> huge;

  CpuKvCache(
      CpuExecutable owner,
      Kernels kernels,
      List<AttentionSpec> layers,
      int capacity,
      Type type,
      boolean hugePages) {
    super(owner, capacity, type);
    int n = layers.size();
    keyBytes = new long[n];
    valueBytes = new long[n];
    heads = new int[n];
    for (int l = 0; l < n; l++) {
      AttentionSpec spec = layers.get(l);
      AttentionStage.checkType(spec, type);
      heads[l] = spec.kvHeads();
      keyBytes[l] = kernels.kvBytes(type, spec.keyDim());
      valueBytes[l] = kernels.kvBytes(type, spec.valueDim());
    }
    blocks = new KvBlocks(capacity, heads, keyBytes, valueBytes);
    memory = NativeMemory.allocateSparse(Math.max(blocks.bytes(), 64));
    segment = memory.segment();
    huge = hugePages ? Optional.of(new HugeSlots(memory, blocks)) : Optional.empty();
  }

  MemorySegment segment() {
    return segment;
  }

  /** Bytes of one key of a layer. */
  long keyBytes(int layer) {
    return keyBytes[layer];
  }

  /** Bytes of one value of a layer. */
  long valueBytes(int layer) {
    return valueBytes[layer];
  }

  long keyOffset(int layer, int head, int slot) {
    return blocks.key(layer, head, slot);
  }

  long valueOffset(int layer, int head, int slot) {
    return blocks.value(layer, head, slot);
  }

  /** How many slots lie side by side from a slot on, it included. */
  int run(int slot) {
    return blocks.run(slot);
  }

  @Override
  public void length(int newLength) {
    super.length(newLength);
    if (huge.isPresent()) {
      huge.get().filled(newLength);
    }
  }

  @Override
  public void copy(KvCache source, int sourceSlot, int slot, int count) {
    checkCopy(source, sourceSlot, slot, count);
    CpuKvCache from = (CpuKvCache) source;
    huge.ifPresent(h -> h.expect(slot + count));
    for (int done = 0; done < count; ) {
      int n = Math.min(from.run(sourceSlot + done), run(slot + done));
      n = Math.min(n, count - done);
      copyRun(from, sourceSlot + done, slot + done, n);
      done += n;
    }
  }

  /** Copies slots that lie side by side in both caches. */
  private void copyRun(CpuKvCache from, int sourceSlot, int slot, int count) {
    for (int l = 0; l < heads.length; l++) {
      for (int h = 0; h < heads[l]; h++) {
        MemorySegment.copy(
            from.segment,
            from.keyOffset(l, h, sourceSlot),
            segment,
            keyOffset(l, h, slot),
            count * keyBytes[l]);
        MemorySegment.copy(
            from.segment,
            from.valueOffset(l, h, sourceSlot),
            segment,
            valueOffset(l, h, slot),
            count * valueBytes[l]);
      }
    }
  }

  @Override
  public String layout() {
    return "cpu " + type();
  }

  @Override
  public long slotBytes() {
    long sum = 0;
    for (int l = 0; l < heads.length; l++) {
      sum += heads[l] * (keyBytes[l] + valueBytes[l]);
    }
    return sum;
  }

  /** Takes a contiguous piece of the cache. */
  private interface Piece {
    void accept(ByteBuffer bytes) throws IOException;
  }

  /** Goes through the first slots, layer by layer and head by head, keys before values. */
  private void pieces(int count, Piece piece) throws IOException {
    checkCount(count);
    for (int l = 0; l < heads.length; l++) {
      for (int h = 0; h < heads[l]; h++) {
        for (int slot = 0; slot < count; slot += run(slot)) {
          long bytes = Math.min(run(slot), count - slot) * keyBytes[l];
          piece(keyOffset(l, h, slot), bytes, piece);
        }
        for (int slot = 0; slot < count; slot += run(slot)) {
          long bytes = Math.min(run(slot), count - slot) * valueBytes[l];
          piece(valueOffset(l, h, slot), bytes, piece);
        }
      }
    }
  }

  private void piece(long from, long bytes, Piece piece) throws IOException {
    for (long done = 0; done < bytes; done += MOST_BYTES) {
      piece.accept(segment.asSlice(from + done, Math.min(MOST_BYTES, bytes - done)).asByteBuffer());
    }
  }

  @Override
  public void save(int count, WritableByteChannel to) throws IOException {
    pieces(count, bytes -> KvCache.write(bytes, to));
  }

  @Override
  public void load(int count, ReadableByteChannel from) throws IOException {
    checkCount(count);
    huge.ifPresent(h -> h.expect(count));
    pieces(count, bytes -> KvCache.read(bytes, from));
  }

  @Override
  public long bytes() {
    return segment.byteSize();
  }

  @Override
  public void close() {
    if (end()) {
      memory.close();
    }
  }
}
