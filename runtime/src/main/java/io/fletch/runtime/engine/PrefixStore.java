package io.fletch.runtime.engine;

import io.fletch.graph.Executable;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.locks.ReentrantReadWriteLock;

/**
 * Keys and values of prompts that sessions of a model have run, for other sessions with the same
 * beginning and adapters: immutable copies, from which a session copies the slots of the longest
 * common beginning instead of running the tokens. Least recently used copies go when the bytes are
 * used up.
 *
 * <p>A copy costs its bytes of memory once per different prompt and their transfer per use; a 1B
 * model (32 KiB per token in F16) copies 1000 tokens in about the time of one decode step.
 *
 * <p>Owned by the model; safe for use by its sessions' threads.
 */
final class PrefixStore implements AutoCloseable {
  /** Fewer tokens are not worth a copy. */
  static final int LEAST_TOKENS = 16;

  private record Entry(int[] tokens, List<LowRankAdapter.Term> terms, KvCache kv) {
    int common(int[] ids, GraphForward of) {
      // What other adapters have computed is something else.
      if (!terms.equals(of.terms())) {
        return 0;
      }
      int n = Arrays.mismatch(ids, tokens);
      return n < 0 ? ids.length : n;
    }
  }

  private final Executable executable;
  private final KvCache.Type type;
  private final long mostBytes;
  private final ReentrantReadWriteLock lock = new ReentrantReadWriteLock();

  /** Most recently stored or used last. */
  private final List<Entry> entries = new ArrayList<>();

  private long bytes;

  PrefixStore(Executable executable, KvCache.Type type, long mostBytes) {
    this.executable = executable;
    this.type = type;
    this.mostBytes = mostBytes;
  }

  /**
   * Fills the forward, which holds the first tokens of {@code ids} and nothing else, with further
   * ones from the store, if that saves enough.
   *
   * @param most tokens that it may hold then
   */
  void fill(GraphForward forward, int[] ids, int most) {
    if (mostBytes == 0) {
      return;
    }
    Entry used = null;
    lock.readLock().lock();
    try {
      int best = forward.length() + LEAST_TOKENS - 1;
      for (Entry e : entries) {
        int n = Math.min(e.common(ids, forward), most);
        if (n > best) {
          best = n;
          used = e;
        }
      }
      if (used != null) {
        forward.copyFrom(used.kv(), used.tokens(), best);
      }
    } finally {
      lock.readLock().unlock();
    }
    if (used != null) {
      lock.writeLock().lock();
      try {
        // Unless it was dropped in between.
        if (entries.remove(used)) {
          entries.add(used);
        }
      } finally {
        lock.writeLock().unlock();
      }
    }
  }

  /**
   * Keeps a copy of what a forward holds, unless most of it is there, or units rested when it was
   * computed.
   */
  void put(GraphForward forward, int[] ids) {
    if (mostBytes == 0 || ids.length < LEAST_TOKENS || forward.dense() < ids.length) {
      return;
    }
    lock.writeLock().lock();
    try {
      Entry shorter = null;
      for (Entry e : entries) {
        int n = e.common(ids, forward);
        if (n > ids.length - LEAST_TOKENS) {
          return;
        }
        if (n == e.tokens().length) {
          shorter = e;
        }
      }
      KvCache copy = executable.newKvCache(ids.length, type);
      try {
        if (copy.bytes() <= mostBytes) {
          copy.copy(forward.kv(), 0, 0, ids.length);
        }
      } catch (RuntimeException | Error e) {
        copy.close();
        throw e;
      }
      if (copy.bytes() > mostBytes) {
        copy.close();
        return;
      }
      if (shorter != null) {
        drop(shorter);
      }
      while (bytes + copy.bytes() > mostBytes) {
        drop(entries.getFirst());
      }
      entries.add(new Entry(ids.clone(), forward.terms(), copy));
      bytes += copy.bytes();
    } finally {
      lock.writeLock().unlock();
    }
  }

  /** Drops what was computed with an adapter that is about to be closed. */
  void forget(LowRankAdapter adapter) {
    lock.writeLock().lock();
    try {
      List.copyOf(entries).stream()
          .filter(e -> e.terms().stream().anyMatch(t -> t.adapter() == adapter))
          .forEach(this::drop);
    } finally {
      lock.writeLock().unlock();
    }
  }

  private void drop(Entry entry) {
    entries.remove(entry);
    bytes -= entry.kv().bytes();
    entry.kv().close();
  }

  /** Copies there are. */
  int size() {
    lock.readLock().lock();
    try {
      return entries.size();
    } finally {
      lock.readLock().unlock();
    }
  }

  @Override
  public void close() {
    lock.writeLock().lock();
    try {
      while (!entries.isEmpty()) {
        drop(entries.getLast());
      }
    } finally {
      lock.writeLock().unlock();
    }
  }
}
