package io.fletch.bench;

import io.fletch.graph.Activation;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.cpu.KernelSets;
import io.fletch.graph.cpu.Kernels;
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
 * What one row takes on one thread, apart from products and attention, in the shapes of
 * Llama-3.2-1B: norm of 2048 elements, rotation of a head of 64, SwiGLU of 8192, quantization of
 * 2048 and storing of a key. Operations per second, GB/s of what they read and write, which lies in
 * a cache, and its share of what a read loop reads of 24 KiB ({@link CachedRates}).
 *
 * <pre>
 *   java -jar bench/target/benchmarks.jar RowBenchmark -p kernels=x86
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
public class RowBenchmark {
  private static final int WIDTH = 2048;
  private static final int FFN = 8192;
  private static final int HEAD = 64;

  /** About what an operation touches. */
  private static final int CACHED = 24 << 10;

  /** The start of a kernel set's name; the fastest one that matches is taken. */
  @Param({"scalar", "vector", "x86"})
  String kernels;

  private Kernels set;
  private Arena arena;
  private MemorySegment x;
  private MemorySegment y;
  private MemorySegment weight;
  private MemorySegment table;
  private MemorySegment out;
  private MemorySegment bytes;
  private double peak;

  @Setup
  public void prepare() {
    set =
        KernelSets.available().stream()
            .filter(k -> k.name().startsWith(kernels))
            .findFirst()
            .orElseThrow(() -> new IllegalStateException("not available here: " + kernels));
    arena = Arena.ofConfined();
    Random random = new Random(1);
    x = floats(random);
    y = floats(random);
    weight = floats(random);
    table = floats(random);
    out = arena.allocate(4L * FFN, 64);
    bytes = arena.allocate(4L * FFN, 64);
    peak = CachedRates.peak(CACHED);
  }

  private MemorySegment floats(Random random) {
    MemorySegment s = arena.allocate(4L * FFN, 64);
    for (int i = 0; i < FFN; i++) {
      s.setAtIndex(ValueLayout.JAVA_FLOAT, i, (float) random.nextGaussian());
    }
    return s;
  }

  @TearDown
  public void release() {
    arena.close();
  }

  /** A call with its checks that finds nothing to do: what every call of a kernel costs. */
  @Benchmark
  public void emptyCall() {
    set.scale(x, 0, 1, 0, out, 0);
  }

  @Benchmark
  public void rmsNorm(CachedRates rates) {
    set.rmsNorm(x, 0, weight, WIDTH, 1e-5f, 1, out, 0);
    rates.add(12L * WIDTH, peak);
  }

  @Benchmark
  public void rope(CachedRates rates) {
    set.rope(RopeSpec.Style.NEOX, x, 0, HEAD, table, 0, HEAD / 2, out, 0);
    rates.add(12L * HEAD, peak);
  }

  @Benchmark
  public void swiGlu(CachedRates rates) {
    set.activate(Activation.SILU, x, 0, y, 0, FFN, out, 0);
    rates.add(12L * FFN, peak);
  }

  @Benchmark
  public void add(CachedRates rates) {
    set.add(x, 0, y, 0, 1, WIDTH, out, 0);
    rates.add(12L * WIDTH, peak);
  }

  @Benchmark
  public void quantizeBlocksOf32(CachedRates rates) {
    set.quantize(Kernels.ActivationFormat.Q8_BLOCK32, x, 0, WIDTH, bytes, 0);
    rates.add(4L * WIDTH + set.activationBytes(Kernels.ActivationFormat.Q8_BLOCK32, WIDTH), peak);
  }

  @Benchmark
  public void quantizeBlocksOf256(CachedRates rates) {
    set.quantize(Kernels.ActivationFormat.Q8_BLOCK256, x, 0, WIDTH, bytes, 0);
    rates.add(4L * WIDTH + set.activationBytes(Kernels.ActivationFormat.Q8_BLOCK256, WIDTH), peak);
  }

  @Benchmark
  public void storeKeyF16(CachedRates rates) {
    set.kvStore(KvCache.Type.F16, x, 0, HEAD, bytes, 0);
    rates.add(4L * HEAD + set.kvBytes(KvCache.Type.F16, HEAD), peak);
  }

  @Benchmark
  public void storeKeyQ8(CachedRates rates) {
    set.kvStore(KvCache.Type.Q8_0, x, 0, HEAD, bytes, 0);
    rates.add(4L * HEAD + set.kvBytes(KvCache.Type.Q8_0, HEAD), peak);
  }
}
