package io.fletch.bench;

import io.fletch.graph.Batch.RowStatistics;
import io.fletch.graph.cpu.KernelSets;
import io.fletch.graph.cpu.Kernels;
import io.fletch.sampling.Sampler;
import io.fletch.sampling.SamplingOptions;
import io.fletch.sampling.TokenHistory;
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
 * What choosing a token out of a vocabulary takes: the statistics that decode schedules want of a
 * row of logits, the largest of them, and samplers. Rows per second, GB/s of logits, which lie in a
 * cache, and its share of what a read loop reads of as many bytes ({@link CachedRates}).
 *
 * <pre>
 *   java -jar bench/target/benchmarks.jar SamplingBenchmark -p vocabulary=128256
 * </pre>
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.Throughput)
@OutputTimeUnit(TimeUnit.SECONDS)
@Warmup(iterations = 5, time = 1)
@Measurement(iterations = 9, time = 1)
@Fork(
    value = 1,
    jvmArgsAppend = {"--enable-native-access=ALL-UNNAMED", "-Xmx1g"})
public class SamplingBenchmark {
  @Param({"32000", "128256"})
  int vocabulary;

  private final Kernels kernels = KernelSets.best().kernels();
  private final RowStatistics statistics = new RowStatistics();
  private Arena arena;
  private MemorySegment row;
  private float[] logits;
  private TokenHistory history;
  private Sampler usual;
  private Sampler nucleus;
  private double peak;

  @Setup
  public void prepare() {
    arena = Arena.ofConfined();
    row = arena.allocate(4L * vocabulary, 64);
    logits = new float[vocabulary];
    Random random = new Random(1);
    for (int i = 0; i < vocabulary; i++) {
      logits[i] = (float) (3 * random.nextGaussian());
    }
    MemorySegment.copy(logits, 0, row, ValueLayout.JAVA_FLOAT, 0, vocabulary);
    history = new TokenHistory(16);
    usual = Sampler.of(SamplingOptions.defaults(), vocabulary);
    nucleus = Sampler.of(SamplingOptions.defaults().withTopK(0).withMinP(0), vocabulary);
    peak = CachedRates.peak(4L * vocabulary);
  }

  @TearDown
  public void release() {
    arena.close();
  }

  @Benchmark
  public int argmax(CachedRates rates) {
    rates.add(4L * vocabulary, peak);
    return kernels.argmax(row, 0, vocabulary);
  }

  @Benchmark
  public double statistics(CachedRates rates) {
    rates.add(4L * vocabulary, peak);
    if (!kernels.statistics(row, 0, vocabulary, statistics)) {
      throw new IllegalStateException("no code for it: " + kernels.name());
    }
    return statistics.entropy;
  }

  /** Top-k 40, top-p 0.95, min-p 0.05, temperature 0.8. */
  @Benchmark
  public int usualSampler(CachedRates rates) {
    rates.add(4L * vocabulary, peak);
    return usual.sample(logits, history);
  }

  /** Top-p 0.95 over the whole vocabulary, temperature 0.8. */
  @Benchmark
  public int nucleusSampler(CachedRates rates) {
    rates.add(4L * vocabulary, peak);
    return nucleus.sample(logits, history);
  }
}
