package io.fletch.bench;

import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadBandwidth;
import io.fletch.graph.cpu.KernelSets;
import io.fletch.graph.cpu.Kernels;
import io.fletch.quant.TensorType;
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
 * How many bytes of weights per second one thread multiplies, per kernel set, type, layout and rows
 * of activations: the counters {@code gigabytes} and {@code gigaops} are GB/s and Gop/s (two
 * operations per multiply-add), {@code percent} the share of what a read loop reads in the same
 * process.
 *
 * <p>Matrices are {@value #OUT} x {@value #IN}; several take turns, so that weights come from
 * memory and not from a cache. Random weights: the speed is right, the output is noise, but it is
 * compared with the scalar kernels before anything is timed. Rates are wall time: run on a quiet
 * machine, or compare only what ran interleaved. The Vector API needs the long warm-up.
 *
 * <pre>
 *   java -jar bench/target/benchmarks.jar KernelBenchmark -p kernels=vector -p type=Q4_0,Q8_0 -p rows=1
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
public class KernelBenchmark {
  static final int IN = 2048;
  static final int OUT = 8192;

  /** The start of a kernel set's name; the fastest one that matches is taken. */
  @Param({"scalar", "vector", "x86"})
  String kernels;

  @Param({"Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"})
  TensorType type;

  /** {@code packed}: the layout that the set prefers; {@code mapped}: the bytes of the file. */
  @Param({"packed", "mapped"})
  String layout;

  @Param({"1", "8", "128"})
  int rows;

  private Arena arena;
  private Kernels.Matmul matmul;
  private NativeMemory memory;
  private MemorySegment[] weights;
  private MemorySegment x;
  private MemorySegment y;
  private int next;
  private double bandwidth;

  @Setup
  public void prepare() {
    arena = Arena.ofConfined();
    Kernels set =
        KernelSets.available().stream()
            .filter(k -> k.name().startsWith(kernels))
            .findFirst()
            .orElseThrow(() -> new IllegalStateException("not available here: " + kernels));
    boolean mapped = layout.equals("mapped");
    matmul = mapped ? set.matmulMapped(type, IN) : set.matmul(type, IN);
    if (!mapped && !matmul.packs()) {
      throw new IllegalStateException(set.name() + " has no packed layout for " + type);
    }
    MemorySegment rowMajor = arena.allocate(type.bytes((long) OUT * IN), 64);
    RandomWeights.fill(type, rowMajor, new Random(1));
    long bytes = matmul.packs() ? matmul.packedBytes(OUT) : rowMajor.byteSize();
    weights = new MemorySegment[(int) Math.max(2, ReadBandwidth.workingSet() / bytes)];
    // In huge pages, as what the read loop reads.
    long apart = bytes + 63 & -64;
    memory = NativeMemory.allocate(weights.length * apart);
    for (int i = 0; i < weights.length; i++) {
      weights[i] = memory.segment().asSlice(i * apart, bytes);
      if (i > 0) {
        weights[i].copyFrom(weights[0]);
      } else if (matmul.packs()) {
        matmul.pack(rowMajor, weights[i], OUT, 0, OUT);
      } else {
        weights[i].copyFrom(rowMajor);
      }
    }
    y = arena.allocate(4L * OUT * rows, 64);
    x = activations(set);
    check(rowMajor);
    bandwidth = ReadBandwidth.gigabytes(1);
  }

  private MemorySegment activations(Kernels set) {
    Kernels.ActivationFormat format = matmul.activation();
    Random random = new Random(2);
    MemorySegment floats = arena.allocate(4L * IN * rows, 64);
    for (int i = 0; i < IN * rows; i++) {
      floats.setAtIndex(ValueLayout.JAVA_FLOAT, i, (float) random.nextGaussian());
    }
    long stride = set.activationBytes(format, IN);
    MemorySegment quantized = arena.allocate(stride * rows, 64);
    for (int r = 0; r < rows; r++) {
      if (format == Kernels.ActivationFormat.F32) {
        MemorySegment.copy(floats, 4L * r * IN, quantized, r * stride, 4L * IN);
      } else {
        set.quantize(format, floats, (long) r * IN, IN, quantized, r * stride);
      }
    }
    return quantized;
  }

  /** The scalar kernels read the same form of activations. */
  private void check(MemorySegment rowMajor) {
    int outs = 64;
    matmul.run(weights[0], OUT, 0, OUT, x, 0, rows, y, 0, OUT);
    MemorySegment expected = arena.allocate(4L * OUT, 64);
    KernelSets.scalar().matmul(type, IN).run(rowMajor, OUT, 0, outs, x, 0, 1, expected, 0, OUT);
    for (int o = 0; o < outs; o++) {
      float e = expected.getAtIndex(ValueLayout.JAVA_FLOAT, o);
      float a = y.getAtIndex(ValueLayout.JAVA_FLOAT, o);
      if (!(Math.abs(e - a) <= 1e-3f + 1e-4f * Math.abs(e))) {
        throw new IllegalStateException("output " + o + ": expected=" + e + " actual=" + a);
      }
    }
  }

  @TearDown
  public void release() {
    memory.close();
    arena.close();
  }

  @Benchmark
  public void product(StreamRates rates) {
    MemorySegment weight = weights[next];
    next = next + 1 == weights.length ? 0 : next + 1;
    matmul.run(weight, OUT, 0, OUT, x, 0, rows, y, 0, OUT);
    double gigabytes = weight.byteSize() * 1e-9;
    rates.gigabytes += gigabytes;
    rates.percent += 100 * gigabytes / bandwidth;
    rates.gigaops += 2e-9 * IN * OUT * rows;
  }
}
