package io.fletch.bench;

import io.fletch.ffm.x86.ReadBandwidth;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.TensorStore;
import java.util.Optional;
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
 * How fast the workers of an executable take a context together: forwards of a graph of little but
 * attention, of one row or of the last rows of a prompt. For one row there are as many layers as it
 * takes that keys and values come from memory, up to 256. Counters: {@code gigabytes} of keys and
 * values per second (once per forward, as one row reads them), {@code percent} of what a read loop
 * reads with as many threads, {@code gigaops} (two operations per multiply-add).
 *
 * <pre>
 *   java -jar bench/target/benchmarks.jar SharedContextBenchmark -p kvHeads=1 -p threads=1,2
 *   java -jar bench/target/benchmarks.jar SharedContextBenchmark -p rows=512 -p context=2048
 * </pre>
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.Throughput)
@OutputTimeUnit(TimeUnit.SECONDS)
@Warmup(iterations = 5, time = 1)
@Measurement(iterations = 9, time = 1)
@Fork(
    value = 1,
    jvmArgsAppend = {
      "--add-modules=jdk.incubator.vector",
      "--enable-native-access=ALL-UNNAMED",
      "--sun-misc-unsafe-memory-access=allow",
      "-Xmx1g"
    })
public class SharedContextBenchmark {
  private static final int HEAD = 64;
  private static final int MOST_LAYERS = 256;
  private static final int VOCABULARY = 16;

  @Param({"1", "2"})
  int threads;

  @Param({"1", "8"})
  int kvHeads;

  /** Query heads that share a key/value head. */
  @Param({"4"})
  int group;

  /** Slots that the last row sees. */
  @Param({"8192", "32768"})
  int context;

  /** Rows of a forward, the last ones of the context. */
  @Param({"1"})
  int rows;

  @Param({"F16"})
  KvCache.Type type;

  private final TensorStore store = TensorStore.create();
  private Executable executable;
  private KvCache kv;
  private Batch batch;
  private int layers;
  private int[] tokens;
  private double bandwidth;

  @Setup
  public void open() {
    // As if all were halves: within a factor of two.
    long layerBytes = 4L * HEAD * kvHeads * context;
    layers = rows > 1 ? 1 : Math.clamp(ReadBandwidth.workingSet() / layerBytes, 1, MOST_LAYERS);
    CpuBackend.Options options = CpuBackend.Options.defaults().withThreads(threads);
    executable = new CpuBackend(options).compile(graph(), Math.max(rows, 8));
    kv = executable.newKvCache(context, type);
    batch = executable.newBatch(Math.max(rows, 8), 1);
    tokens = new int[Math.max(rows, 8)];
    for (int i = 0; i < tokens.length; i++) {
      tokens[i] = i % VOCABULARY;
    }
    forward(0, 8);
    for (int filled = 8; filled < context; ) {
      int n = Math.min(filled, context - filled);
      kv.copy(kv, 0, filled, n);
      filled += n;
    }
    bandwidth = ReadBandwidth.gigabytes(threads);
  }

  /** Queries of a layer are results of the one before, keys and values those of the tokens. */
  private Graph graph() {
    int width = group * kvHeads * HEAD;
    int keys = kvHeads * HEAD;
    Random random = new Random(1);
    Graph.Builder g = Graph.builder("attention");
    Value x =
        g.embedding(
            "tokens",
            store.floats(
                "tokens",
                gaussians(VOCABULARY, width + 2 * keys, random),
                VOCABULARY,
                width + 2 * keys),
            1);
    Value query = g.slice("query", x, 0, width);
    Value key = g.slice("key", x, width, keys);
    Value value = g.slice("value", x, width + keys, keys);
    for (int l = 0; l < layers; l++) {
      AttentionSpec spec = new AttentionSpec(l, group * kvHeads, kvHeads, HEAD, HEAD, 0.125f, 0, 0);
      query = g.attention("attention" + l, spec, query, key, value, Optional.empty());
    }
    LinearOp output =
        LinearOp.dense(
            store.floats("output", gaussians(VOCABULARY, width, random), VOCABULARY, width));
    return g.build(
        g.linear(
            "logits", g.selectRows("last", query), output, Optional.empty(), Optional.empty()));
  }

  private static float[] gaussians(int rows, int width, Random random) {
    float[] x = new float[rows * width];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextGaussian();
    }
    return x;
  }

  private int forward(int slot, int n) {
    kv.length(slot);
    batch.clear();
    batch.append(kv, tokens, 0, n);
    batch.wantLogits(n - 1);
    executable.forward(batch);
    return batch.argmax(0);
  }

  @TearDown
  public void close() {
    batch.close();
    kv.close();
    executable.close();
    store.close();
  }

  /** The last rows of the context. */
  @Benchmark
  public int attention(StreamRates rates) {
    double gigabytes = 1e-9 * kv.slotBytes() * context;
    rates.gigabytes += gigabytes;
    rates.percent += 100 * gigabytes / bandwidth;
    double visible = rows * (context - (rows - 1) / 2.0);
    rates.gigaops += 4e-9 * layers * group * kvHeads * HEAD * visible;
    return forward(context - rows, rows);
  }
}
