package io.fletch.graph;

import io.fletch.graph.support.AbstractKvCache;
import java.io.IOException;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;

/** Keys and values of the layers of both parts, each in a cache of its executable. */
final class SplitKvCache extends AbstractKvCache {
  private final SplitExecutable owner;
  private final KvCache front;
  private final KvCache back;

  SplitKvCache(SplitExecutable owner, KvCache front, KvCache back) {
    super(owner, front.capacity(), front.type());
    this.owner = owner;
    this.front = front;
    this.back = back;
  }

  KvCache front() {
    return front;
  }

  KvCache back() {
    return back;
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
    checkCopy(source, sourceSlot, slot, count);
    SplitKvCache from = (SplitKvCache) source;
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
    if (end()) {
      try {
        front.close();
      } finally {
        back.close();
      }
    }
  }
}
