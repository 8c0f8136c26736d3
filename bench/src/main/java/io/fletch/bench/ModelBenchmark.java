package io.fletch.bench;

import io.fletch.ffm.x86.ReadBandwidth;
import io.fletch.graph.KvCache;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.AuxCounters;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
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
 * How many tokens per second a model decodes behind a context, and how many it takes in as a
 * prompt, per model, threads, context and cache type. The counters say {@code tokens} per second
 * and, as {@code gigabytes}, the GB/s of weights, keys and values that this means: {@code percent}
 * of what a read loop reads in the same process, with as many threads.
 *
 * <p>A model is a file, or {@code SHAPE:MIX} for random weights of a real shape, which are written
 * once into the folder {@code FLETCH_BENCH_DIR} (default: {@code bench/target/models}). For the
 * demo model give its file. Prompts do not depend on the context parameter.
 *
 * <pre>
 *   java -jar bench/target/benchmarks.jar ModelBenchmark -p model=llama-3.2-1b:Q8_0 -p threads=1,2
 *   java -jar bench/target/benchmarks.jar ModelBenchmark \
 *       -p model=tools/src/main/resources/META-INF/fletch/demo/demo.gguf -p context=128
 * </pre>
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.Throughput)
@OutputTimeUnit(TimeUnit.SECONDS)
@Warmup(iterations = 3, time = 2)
@Measurement(iterations = 7, time = 2)
@Fork(
    value = 1,
    jvmArgsAppend = {
      "--add-modules=jdk.incubator.vector",
      "--enable-native-access=ALL-UNNAMED",
      "--sun-misc-unsafe-memory-access=allow",
      "-Xmx1g"
    })
public class ModelBenchmark {
  /** Tokens that are decoded before the cache is set back to the context. */
  private static final int RUN = 64;

  @Param({"llama-3.2-1b:Q4_0", "llama-3.2-1b:Q8_0", "llama-3.2-1b:Q4_K_M"})
  String model;

  @Param({"1", "2"})
  int threads;

  @Param({"0", "2048"})
  int context;

  @Param({"F16"})
  KvCache.Type kv;

  private BenchModel opened;
  private double bandwidth;
  private int length;

  /** What one second takes in. */
  @AuxCounters(AuxCounters.Type.OPERATIONS)
  @State(Scope.Thread)
  public static class Rates {
    public double tokens;
    public double gigabytes;
    public double percent;

    @Setup(Level.Iteration)
    public void clear() {
      tokens = 0;
      gigabytes = 0;
      percent = 0;
    }

    private void add(int rows, double bytes, double bandwidth) {
      tokens += rows;
      gigabytes += bytes * 1e-9;
      percent += 100 * bytes * 1e-9 / bandwidth;
    }
  }

  /** Where generated files are. */
  static Path folder() {
    return Path.of(System.getenv().getOrDefault("FLETCH_BENCH_DIR", "bench/target/models"));
  }

  @Setup
  public void open() {
    int capacity = Math.max(BenchModel.ROWS, context + RUN);
    opened = new BenchModel(BenchModel.file(model, folder()), threads, kv, capacity);
    bandwidth = ReadBandwidth.gigabytes(threads);
    length = context;
  }

  @TearDown
  public void close() {
    opened.close();
  }

  /** One token behind the context. */
  @Benchmark
  public int decode(Rates rates) {
    if (length >= context + RUN) {
      length = context;
    }
    opened.length(length++);
    double bytes = opened.weightBytes() + (double) length * opened.slotBytes();
    rates.add(1, bytes, bandwidth);
    return opened.decode();
  }

  /** A prompt of 128 tokens, from an empty cache. */
  @Benchmark
  public void prefill(Rates rates) {
    opened.prefill(BenchModel.ROWS);
    rates.add(BenchModel.ROWS, opened.weightBytes(), bandwidth);
  }
}
