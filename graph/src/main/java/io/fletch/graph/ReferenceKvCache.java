package io.fletch.graph;

import io.fletch.graph.support.AbstractKvCache;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;
import java.util.Arrays;

/**
 * Keys and values as floats that have been rounded to the cache's type, growing as slots are
 * written. Slots never written read as zero.
 */
final class ReferenceKvCache extends AbstractKvCache {
  private static final int BLOCK = 32;

  private final ReferenceExecutable owner;
  private final float[][] keys;
  private final float[][] values;

  ReferenceKvCache(ReferenceExecutable owner, int capacity, Type type) {
    super(owner, capacity, type);
    this.owner = owner;
    int layers = owner.graph().kvLayers().size();
    keys = new float[layers][0];
    values = new float[layers][0];
  }

  /** Rounds and stores one row's keys and values, all heads. */
  void store(AttentionSpec spec, int slot, float[] key, int keyAt, float[] value, int valueAt) {
    int k = spec.kvHeads() * spec.keyDim();
    int v = spec.kvHeads() * spec.valueDim();
    float[] to = room(keys, spec.layer(), (slot + 1) * k);
    for (int h = 0; h < spec.kvHeads(); h++) {
      int n = spec.keyDim();
      round(key, keyAt + h * n, to, slot * k + h * n, n);
    }
    to = room(values, spec.layer(), (slot + 1) * v);
    for (int h = 0; h < spec.kvHeads(); h++) {
      int n = spec.valueDim();
      round(value, valueAt + h * n, to, slot * v + h * n, n);
    }
  }

  float key(AttentionSpec spec, int slot, int head, int i) {
    int at = (slot * spec.kvHeads() + head) * spec.keyDim() + i;
    float[] from = keys[spec.layer()];
    return at < from.length ? from[at] : 0;
  }

  float value(AttentionSpec spec, int slot, int head, int i) {
    int at = (slot * spec.kvHeads() + head) * spec.valueDim() + i;
    float[] from = values[spec.layer()];
    return at < from.length ? from[at] : 0;
  }

  private static float[] room(float[][] layers, int layer, int size) {
    if (layers[layer].length < size) {
      layers[layer] = Arrays.copyOf(layers[layer], Math.max(size, 2 * layers[layer].length));
    }
    return layers[layer];
  }

  private void round(float[] from, int fromAt, float[] to, int toAt, int n) {
    switch (type()) {
      case F32 -> System.arraycopy(from, fromAt, to, toAt, n);
      case F16 -> {
        for (int i = 0; i < n; i++) {
          to[toAt + i] = Float.float16ToFloat(Float.floatToFloat16(from[fromAt + i]));
        }
      }
      case Q8_0 -> {
        for (int b = 0; b < n; b += BLOCK) {
          roundBlock(from, fromAt + b, to, toAt + b);
        }
      }
    }
  }

  private static void roundBlock(float[] from, int fromAt, float[] to, int toAt) {
    float amax = 0;
    for (int i = 0; i < BLOCK; i++) {
      amax = Math.max(amax, Math.abs(from[fromAt + i]));
    }
    float d = amax / 127;
    float inverse = d == 0 ? 0 : 1 / d;
    float stored = Float.float16ToFloat(Float.floatToFloat16(d));
    for (int i = 0; i < BLOCK; i++) {
      to[toAt + i] = (float) Math.rint(from[fromAt + i] * inverse) * stored;
    }
  }

  @Override
  public void copy(KvCache source, int sourceSlot, int slot, int count) {
    checkCopy(source, sourceSlot, slot, count);
    ReferenceKvCache from = (ReferenceKvCache) source;
    for (AttentionSpec spec : owner.graph().kvLayers()) {
      int l = spec.layer();
      copy(from.keys, keys, l, sourceSlot, slot, count, spec.kvHeads() * spec.keyDim());
      copy(from.values, values, l, sourceSlot, slot, count, spec.kvHeads() * spec.valueDim());
    }
  }

  /** Copies slots of {@code width} floats; what the source never wrote is zero. */
  private static void copy(
      float[][] from, float[][] to, int layer, int sourceSlot, int slot, int count, int width) {
    float[] target = room(to, layer, (slot + count) * width);
    int first = Math.min(sourceSlot * width, from[layer].length);
    int there = Math.min(count * width, from[layer].length - first);
    System.arraycopy(from[layer], first, target, slot * width, there);
    Arrays.fill(target, slot * width + there, (slot + count) * width, 0);
  }

  @Override
  public String layout() {
    return "reference " + type();
  }

  @Override
  public long slotBytes() {
    long floats = 0;
    for (AttentionSpec spec : owner.graph().kvLayers()) {
      floats += (long) spec.kvHeads() * (spec.keyDim() + spec.valueDim());
    }
    return floats * Float.BYTES;
  }

  @Override
  public void save(int count, WritableByteChannel to) throws IOException {
    checkCount(count);
    for (AttentionSpec spec : owner.graph().kvLayers()) {
      save(
          room(keys, spec.layer(), count * spec.kvHeads() * spec.keyDim()),
          spec.kvHeads() * spec.keyDim() * count,
          to);
      save(
          room(values, spec.layer(), count * spec.kvHeads() * spec.valueDim()),
          spec.kvHeads() * spec.valueDim() * count,
          to);
    }
  }

  private static void save(float[] from, int n, WritableByteChannel to) throws IOException {
    ByteBuffer bytes = ByteBuffer.allocate(n * Float.BYTES);
    bytes.asFloatBuffer().put(from, 0, n);
    KvCache.write(bytes, to);
  }

  @Override
  public void load(int count, ReadableByteChannel from) throws IOException {
    checkCount(count);
    for (AttentionSpec spec : owner.graph().kvLayers()) {
      load(keys, spec.layer(), spec.kvHeads() * spec.keyDim() * count, from);
      load(values, spec.layer(), spec.kvHeads() * spec.valueDim() * count, from);
    }
  }

  private static void load(float[][] layers, int layer, int n, ReadableByteChannel from)
      throws IOException {
    ByteBuffer bytes = ByteBuffer.allocate(n * Float.BYTES);
    KvCache.read(bytes, from);
    bytes.flip();
    bytes.asFloatBuffer().get(room(layers, layer, n), 0, n);
  }

  @Override
  public long bytes() {
    long floats = 0;
    for (int i = 0; i < keys.length; i++) {
      floats += keys[i].length + values[i].length;
    }
    return floats * Float.BYTES;
  }

  @Override
  public void close() {
    end();
    Arrays.fill(keys, new float[0]);
    Arrays.fill(values, new float[0]);
  }
}
