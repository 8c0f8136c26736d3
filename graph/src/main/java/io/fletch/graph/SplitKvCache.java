package io.fletch.graph;

import java.io.IOException;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;

/** Keys and values of the layers of both parts, each in a cache of its executable. */
final class SplitKvCache implements KvCache {
  private final SplitExecutable owner;
  private final KvCache front;
  private final KvCache back;
  private boolean closed;

  SplitKvCache(SplitExecutable owner, KvCache front, KvCache back) {
    this.owner = owner;
    this.front = front;
    this.back = back;
  }

  boolean isOf(SplitExecutable executable) {
    return owner == executable;
  }

  void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the cache is closed");
    }
  }

  KvCache front() {
    return front;
  }

  KvCache back() {
    return back;
  }

  @Override
  public Type type() {
    return front.type();
  }

  @Override
  public int capacity() {
    return front.capacity();
  }

  @Override
  public int length() {
    return front.length();
  }

  @Override
  public void length(int length) {
    front.length(length);
    back.length(length);
  }

  @Override
  public void copy(KvCache source, int sourceSlot, int slot, int count) {
    checkOpen();
    if (!(source instanceof SplitKvCache from) || from.owner != owner) {
      throw new IllegalArgumentException("the cache was made by another executable");
    }
    from.checkOpen();
    KvCache.checkCopy(source, sourceSlot, this, slot, count);
    front.copy(from.front, sourceSlot, slot, count);
    back.copy(from.back, sourceSlot, slot, count);
  }

  @Override
  public String layout() {
    return front.layout() + " of " + owner.front().graph().kvLayers().size() + ", " + back.layout();
  }

  @Override
  public long slotBytes() {
    return front.slotBytes() + back.slotBytes();
  }

  @Override
  public void save(int count, WritableByteChannel to) throws IOException {
    checkOpen();
    front.save(count, to);
    back.save(count, to);
  }

  @Override
  public void load(int count, ReadableByteChannel from) throws IOException {
    checkOpen();
    front.load(count, from);
    back.load(count, from);
  }

  @Override
  public long bytes() {
    return front.bytes() + back.bytes();
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      try {
        front.close();
      } finally {
        back.close();
      }
    }
  }
}
