package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.atomic.AtomicInteger;
import org.jetbrains.lincheck.datastructures.IntGen;
import org.jetbrains.lincheck.datastructures.ManagedStrategyGuaranteeKt;
import org.jetbrains.lincheck.datastructures.ModelCheckingOptions;
import org.jetbrains.lincheck.datastructures.Operation;
import org.jetbrains.lincheck.datastructures.Param;
import org.jetbrains.lincheck.datastructures.Validate;
import org.junit.jupiter.api.Test;

/**
 * {@link PrefixStore} with caches that hold token ids in place of keys and values: Lincheck makes
 * random scenarios of sessions that store, copy and forget, and its model checker the
 * interleavings. Fields of the caches that are neither volatile nor locked stand for what the store
 * protects: nobody copies from one that was closed, none is closed twice, and none is lost.
 */
class PrefixStoreInterleavingsTest {
  private static ModelCheckingOptions options() {
    return new ModelCheckingOptions()
        .iterations(4)
        .invocationsPerIteration(30)
        .threads(2)
        .actorsPerThread(1)
        .actorsBefore(1)
        .actorsAfter(1)
        .minimizeFailedScenario(false)
        .addGuarantee(
            ManagedStrategyGuaranteeKt.forClasses(GraphForward.class.getName())
                .methods("<init>", "adapt", "close")
                .ignore());
  }

  /** Room for all: what is found is what one thread after the other would find. */
  @Test
  void findsWhatWasStored() {
    options().sequentialSpecification(OneAfterTheOther.class).check(Roomy.class);
  }

  /** Room for one or two: what is found depends on what was used last, but is right. */
  @Test
  void nothingIsDroppedWhileItIsCopied() {
    options().sequentialSpecification(AlwaysRight.class).check(Narrow.class);
  }

  private static final int HALF = PrefixStore.LEAST_TOKENS;

  /** Short, long with that beginning, long with another end, and long with another beginning. */
  private static int[] prompt(int which) {
    int[] out = new int[which == 0 ? HALF : 2 * HALF];
    Arrays.fill(out, 0, HALF, which == 3 ? 7 : 5);
    Arrays.fill(out, HALF, out.length, which);
    return out;
  }

  private static final class Cache implements KvCache {
    private final int[] slots;
    private final AtomicInteger open;
    private int length;
    private boolean isClosed;

    Cache(int capacity, AtomicInteger open) {
      slots = new int[capacity];
      this.open = open;
      open.incrementAndGet();
    }

    private void checkOpen() {
      if (isClosed) {
        throw new AssertionError("a closed cache is used");
      }
    }

    @Override
    public Type type() {
      return Type.F32;
    }

    @Override
    public int capacity() {
      return slots.length;
    }

    @Override
    public int length() {
      return length;
    }

    @Override
    public void length(int value) {
      length = value;
    }

    @Override
    public void copy(KvCache source, int sourceSlot, int slot, int count) {
      checkOpen();
      Cache from = (Cache) source;
      from.checkOpen();
      System.arraycopy(from.slots, sourceSlot, slots, slot, count);
      from.checkOpen();
    }

    @Override
    public String layout() {
      return "test";
    }

    @Override
    public long slotBytes() {
      return 1;
    }

    @Override
    public void save(int count, WritableByteChannel to) {
      throw new AssertionError("the store copies, it does not write files");
    }

    @Override
    public void load(int count, ReadableByteChannel from) {
      throw new AssertionError("the store copies, it does not read files");
    }

    @Override
    public long bytes() {
      checkOpen();
      return slots.length;
    }

    @Override
    public void close() {
      checkOpen();
      isClosed = true;
      open.decrementAndGet();
    }
  }

  private record Added(String name) implements LowRankAdapter {
    @Override
    public long bytes() {
      return 0;
    }

    @Override
    public void close() {}
  }

  /** Sessions of one model, each of which lives for one operation. */
  private static final class Sessions {
    private final AtomicInteger open = new AtomicInteger();
    private final LowRankAdapter adapter = new Added("a");
    private final List<LowRankAdapter.Term> terms = List.of(new LowRankAdapter.Term(adapter, 1));
    private final Executable executable = executable(open);
    private final PrefixStore store;

    Sessions(long bytes) {
      store = new PrefixStore(executable, KvCache.Type.F32, bytes);
    }

    private GraphForward forward(int adapted) {
      GraphForward out =
          new GraphForward(
              executable, 2 * HALF, KvCache.Type.F32, 8, 1, 1, null, 1, null, new AtomicInteger());
      out.adapt(adapted > 0 ? terms : List.of());
      return out;
    }

    /** Runs a prompt and stores it. */
    void put(int which, int adapted) {
      int[] ids = prompt(which);
      try (GraphForward forward = forward(adapted);
          Cache ran = new Cache(ids.length, open)) {
        System.arraycopy(ids, 0, ran.slots, 0, ids.length);
        forward.copyFrom(ran, ids, ids.length);
        store.put(forward, ids);
      }
    }

    /** Fills a new session; gives the tokens that it found. */
    int fill(int which, int adapted) {
      int[] ids = prompt(which);
      try (GraphForward forward = forward(adapted)) {
        store.fill(forward, ids, ids.length - 1);
        int n = forward.length();
        Cache kv = (Cache) forward.kv();
        if (!Arrays.equals(ids, 0, n, kv.slots, 0, n)) {
          throw new AssertionError("keys of other tokens: prompt=" + which + " length=" + n);
        }
        return n;
      }
    }

    void forget() {
      store.forget(adapter);
    }

    /** At the end: nothing is open but the copies. */
    void check(long bytes) {
      if (open.get() != store.size()) {
        throw new AssertionError("caches: expected=" + store.size() + " actual=" + open.get());
      }
      if ((long) store.size() * HALF > bytes) {
        throw new AssertionError("too many copies: " + store.size());
      }
      store.close();
      if (open.get() != 0) {
        throw new AssertionError("caches that nobody closes: " + open.get());
      }
    }
  }

  /** With room for all copies, some with an adapter, and one without that it does not touch. */
  @Param(name = "prompt", gen = IntGen.class, conf = "0:2")
  public static class Roomy {
    private static final long BYTES = 1 << 20;
    private final Sessions sessions = new Sessions(BYTES);

    /** Stores the one. */
    public Roomy() {
      sessions.put(3, 0);
    }

    /** Stores a prompt. */
    @Operation
    public void put(@Param(name = "prompt") int which) {
      sessions.put(which, 1);
    }

    /** Gives the tokens of a prompt that were found. */
    @Operation
    public int fill(@Param(name = "prompt") int which) {
      return sessions.fill(which, 1);
    }

    /** Drops what was computed with the adapter. */
    @Operation
    public void forget() {
      sessions.forget();
    }

    /** Nothing is lost. */
    @Validate
    public void check() {
      if (sessions.fill(3, 0) != 2 * HALF - 1) {
        throw new AssertionError("the prompt without the adapter is gone");
      }
      sessions.check(BYTES);
    }
  }

  /** What {@link Roomy} does without threads. */
  public static class OneAfterTheOther {
    private final Set<Integer> stored = new TreeSet<>();

    /** As there: a prompt whose beginning is stored replaces that, most of one is enough. */
    public void put(int which) {
      if (which > 0) {
        stored.remove(0);
        stored.add(which);
      } else if (stored.isEmpty()) {
        stored.add(0);
      }
    }

    /**
     * As there: all but the last token, or the common half; of half a prompt that is too little.
     */
    public int fill(int which) {
      if (which == 0 || stored.isEmpty()) {
        return 0;
      }
      return stored.contains(which) ? 2 * HALF - 1 : HALF;
    }

    /** As there. */
    public void forget() {
      stored.clear();
    }
  }

  /** With room for two copies of half a prompt, of which one is there. */
  public static class Narrow {
    private static final long BYTES = 2L * HALF;
    private final Sessions sessions = new Sessions(BYTES);

    /** Stores half a prompt. */
    public Narrow() {
      sessions.put(0, 0);
    }

    /** Stores a prompt for which all others have to go. */
    @Operation
    public void put() {
      sessions.put(3, 0);
    }

    /** Stores half a prompt again. */
    @Operation
    public void putHalf() {
      sessions.put(0, 0);
    }

    /** Whether as many tokens were found as can be. */
    @Operation
    public boolean fill() {
      int n = sessions.fill(1, 0);
      return n == 0 || n == HALF;
    }

    /** Nothing is lost. */
    @Validate
    public void check() {
      sessions.check(BYTES);
    }
  }

  /** What {@link Narrow} answers, whatever it has dropped. */
  public static class AlwaysRight {
    /** As there. */
    public void put() {}

    /** As there. */
    public void putHalf() {}

    /** As there. */
    public boolean fill() {
      return true;
    }
  }

  private static Executable executable(AtomicInteger open) {
    Value logits = new Value(0, 8, Value.Rows.LOGITS, "logits");
    Graph graph =
        new Graph(
            "test", List.<Op>of(new Op.Input(0, logits)), logits, Optional.empty(), 8, List.of());
    Batch batch = Stubs.of(Batch.class, (_, _) -> null);
    return Stubs.of(
        Executable.class,
        (name, args) ->
            switch (name) {
              case "graph" -> graph;
              case "newKvCache" -> new Cache((int) args[0], open);
              case "newBatch" -> batch;
              default -> throw new UnsupportedOperationException(name);
            });
  }
}
