package io.fletch.bench;

import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadBandwidth;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.AttentionRows;
import io.fletch.graph.cpu.KernelSets;
import io.fletch.graph.cpu.Kernels;
import io.fletch.graph.cpu.KvRun;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * How many bytes of keys and values per second one thread takes into attention, one row or a tile
 * of rows of the heads that share a key/value head, per kernel set, cache type and context: the
 * counters {@code gigabytes} and {@code gigaops} are GB/s and Gop/s (two operations per
 * multiply-add), {@code percent} the share of what a read loop reads in the same process.
 *
 * <p>At 512 slots keys and values come from the level-2 cache: what the computation takes. At 32768
 * several heads take turns, so that they come from memory.
 *
 * <pre>
 *   java -jar bench/target/benchmarks.jar AttentionBenchmark -p kernels=x86 -p type=F16 -p context=2048
 * </pre>
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.Throughput)
@OutputTimeUnit(TimeUnit.SECONDS)
@Warmup(iterations = 5, time = 1)
@Measurement(iterations = 9, time = 1)
@Fork(
    value = 1,
    jvmArgsAppend = {
      "--add-modules=jdk.incubator.vector",
      "--enable-native-access=ALL-UNNAMED",
      "-Xmx1g"
    })
public class AttentionBenchmark {
  /** The start of a kernel set's name; the fastest one that matches is taken. */
  @Param({"scalar", "vector", "x86"})
  String kernels;

  @Param({"F16", "Q8_0", "F32"})
  KvCache.Type type;

  @Param({"512", "2048", "32768"})
  int context;

  /** Query heads that share a key/value head. */
  @Param({"4"})
  int group;

  @Param({"64"})
  int headDim;

  /** Rows that are taken together: one as in decoding, several as in a prompt. */
  @Param({"1", "16"})
  int rows;

  /** Deviation of the queries' elements, and of the scores. */
  @Param({"1"})
  float spread;

  private Kernels set;
  private AttentionSpec spec;
  private Arena arena;
  private final KvRun run = new KvRun();
  private AttentionRows tile;
  private NativeMemory kv;
  private MemorySegment query;
  private MemorySegment out;
  private long slotBytes;
  private int heads;
  private int next;
  private double bandwidth;

  @Setup
  public void prepare() {
    set =
        KernelSets.available().stream()
            .filter(k -> k.name().startsWith(kernels))
            .findFirst()
            .orElseThrow(() -> new IllegalStateException("not available here: " + kernels));
    arena = Arena.ofConfined();
    Random random = new Random(1);
    spec = new AttentionSpec(0, group, 1, headDim, headDim, 0.125f, 0, 0);
    slotBytes = set.kvBytes(type, headDim);
    long headBytes = 2 * context * slotBytes;
    heads = context <= 512 ? 1 : (int) Math.max(1, ReadBandwidth.workingSet() / headBytes);
    kv = NativeMemory.allocateSparse(heads * headBytes);
    MemorySegment row = arena.allocate(4L * headDim, 64);
    for (long slot = 0; slot < 2L * context; slot++) {
      for (int i = 0; i < headDim; i++) {
        row.setAtIndex(ValueLayout.JAVA_FLOAT, i, (float) random.nextGaussian());
      }
      set.kvStore(type, row, 0, headDim, kv.segment(), slot * slotBytes);
    }
    for (int head = 1; head < heads; head++) {
      MemorySegment.copy(kv.segment(), 0, kv.segment(), head * headBytes, headBytes);
    }
    query = arena.allocate(4L * rows * headDim * group, 64);
    for (int i = 0; i < rows * headDim * group; i++) {
      query.setAtIndex(ValueLayout.JAVA_FLOAT, i, spread * (float) random.nextGaussian());
    }
    tile = new AttentionRows(arena.allocate(4L * AttentionRows.floats(set, spec), 64));
    out = arena.allocate(4L * rows * headDim * group, 64);
    next = 0;
    bandwidth = ReadBandwidth.gigabytes(1);
  }

  @TearDown
  public void release() {
    kv.close();
    arena.close();
  }

  /** All rows, the last ones of the context. */
  @Benchmark
  public float attention(StreamRates rates) {
    long keys = 2L * next * context * slotBytes;
    next = next + 1 == heads ? 0 : next + 1;
    tile.begin(set, spec, query, out);
    long width = (long) headDim * group;
    for (int r = 0; r < rows; r++) {
      tile.add(r * width, 0, context - rows + 1 + r, r * width);
    }
    tile.run(run.set(type, kv.segment(), keys, keys + context * slotBytes));
    double gigabytes = 2e-9 * context * slotBytes;
    rates.gigabytes += gigabytes;
    rates.percent += 100 * gigabytes / bandwidth;
    double visible = rows * (context - (rows - 1) / 2.0);
    rates.gigaops += 4e-9 * visible * headDim * group;
    return out.get(ValueLayout.JAVA_FLOAT, 0);
  }
}
