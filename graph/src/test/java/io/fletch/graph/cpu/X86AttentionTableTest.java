package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertSame;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

/** Entries are made once for each shape, however many threads ask for them at once. */
class X86AttentionTableTest {
  private record Made(int keyDim, KvCache.Type type, int heads) implements X86AttentionTable.Entry {
    @Override
    public boolean fits(AttentionSpec spec, KvCache.Type type, int heads) {
      return keyDim == spec.keyDim() && this.type == type && this.heads == heads;
    }
  }

  private static AttentionSpec spec(int layer, int keyDim) {
    return new AttentionSpec(layer, 4, 1, keyDim, 64, 0.125f, 0f, 0);
  }

  @Test
  void shapesThatDifferInWhatMattersHaveEntriesOfTheirOwn() {
    AtomicInteger made = new AtomicInteger();
    X86AttentionTable<Made> table =
        new X86AttentionTable<>((spec, type, heads) -> {
          made.incrementAndGet();
          return new Made(spec.keyDim(), type, heads);
        });
    Made first = table.get(spec(0, 64), KvCache.Type.F16, 4);
    assertNotSame(first, table.get(spec(0, 128), KvCache.Type.F16, 4));
    assertNotSame(first, table.get(spec(0, 64), KvCache.Type.F32, 4));
    assertNotSame(first, table.get(spec(0, 64), KvCache.Type.F16, 3));
    assertSame(first, table.get(spec(7, 64), KvCache.Type.F16, 4));
    assertEquals(4, made.get());
  }

  /** A thread that waits for the lock meanwhile finds what the other one has added. */
  @Test
  void whoWaitsForAnEntryDoesNotMakeItAgain() throws Exception {
    AtomicInteger made = new AtomicInteger();
    CountDownLatch making = new CountDownLatch(1);
    CountDownLatch go = new CountDownLatch(1);
    X86AttentionTable<Made> table =
        new X86AttentionTable<>((spec, type, heads) -> {
          made.incrementAndGet();
          making.countDown();
          await(go);
          return new Made(spec.keyDim(), type, heads);
        });
    FutureTask<Made> one = new FutureTask<>(() -> table.get(spec(0, 64), KvCache.Type.F16, 4));
    FutureTask<Made> two = new FutureTask<>(() -> table.get(spec(1, 64), KvCache.Type.F16, 4));
    Thread.ofPlatform().daemon().start(one);
    await(making);
    Thread second = Thread.ofPlatform().daemon().start(two);
    long patience = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
    while (second.getState() != Thread.State.BLOCKED && System.nanoTime() < patience) {
      Thread.onSpinWait();
    }
    assertEquals(Thread.State.BLOCKED, second.getState());
    go.countDown();
    assertSame(one.get(20, TimeUnit.SECONDS), two.get(20, TimeUnit.SECONDS));
    assertEquals(1, made.get());
  }

  @Test
  void manyThreadsMakeEachEntryOnce() throws Exception {
    ConcurrentHashMap<Made, AtomicInteger> made = new ConcurrentHashMap<>();
    X86AttentionTable<Made> table =
        new X86AttentionTable<>((spec, type, heads) -> {
          Made entry = new Made(spec.keyDim(), type, heads);
          made.computeIfAbsent(entry, e -> new AtomicInteger()).incrementAndGet();
          return entry;
        });
    CountDownLatch start = new CountDownLatch(1);
    List<FutureTask<Void>> threads = new ArrayList<>();
    for (int t = 0; t < 8; t++) {
      Random random = new Random(t);
      FutureTask<Void> task =
          new FutureTask<>(() -> {
            await(start);
            for (int i = 0; i < 2000; i++) {
              int keyDim = 1 + random.nextInt(20);
              KvCache.Type type = KvCache.Type.values()[random.nextInt(3)];
              int heads = 1 + random.nextInt(4);
              Made found = table.get(spec(i, keyDim), type, heads);
              assertEquals(new Made(keyDim, type, heads), found);
              assertSame(found, table.get(spec(i + 1, keyDim), type, heads));
            }
            return null;
          });
      threads.add(task);
      Thread.ofPlatform().daemon().start(task);
    }
    start.countDown();
    for (FutureTask<Void> t : threads) {
      t.get(20, TimeUnit.SECONDS);
    }
    assertEquals(20 * 3 * 4, made.size());
    made.forEach((entry, times) -> assertEquals(1, times.get(), entry::toString));
  }

  private static void await(CountDownLatch latch) {
    try {
      if (!latch.await(20, TimeUnit.SECONDS)) {
        throw new IllegalStateException("nobody counted down");
      }
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }
}
