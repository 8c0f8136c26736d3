package io.fletch.bench;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadBandwidth;
import io.fletch.ffm.x86.ReadLoop;
import io.fletch.graph.cpu.KernelSets;
import io.fletch.graph.cpu.Kernels;
import io.fletch.quant.TensorType;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.ZoneOffset;
import java.time.ZonedDateTime;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.stream.Stream;

/**
 * The matrix-vector product rung by rung, from plain Java to AVX-512 machine code, on one thread:
 * GB/s of weights, Gop/s (two per multiply-add) and the share of the read bandwidth of the same
 * minutes, as Markdown.
 *
 * <p>Rungs take turns, so a busy neighbour troubles all of them; rates are per second of CPU time
 * of the thread, medians with the 10th and 90th percentile. One row of activations (decode) and few
 * (small batches) walk through a matrix of more than twice the last-level cache; many rows
 * (prefill) go over a smaller one. Every rung is checked before it is timed: against the scalar
 * kernels with the same activations, the float rung against dequantized weights. Weights are
 * random: speed is right, output is noise.
 *
 * <pre>
 *   java --add-modules jdk.incubator.vector --enable-native-access=ALL-UNNAMED \
 *     -cp bench/target/benchmarks.jar io.fletch.bench.KernelLadder [ROUNDS [TYPE,TYPE... [ROWS,ROWS...]]]
 * </pre>
 */
public final class KernelLadder {
  private static final int IN = 2048;
  private static final int PREFILL_OUT = 8192;

  /** Rows of activations from which weights need not come from memory. */
  private static final int PREFILL_ROWS = 32;

  /** CPU time of one sample, about. */
  private static final long SAMPLE_NANOS = 30_000_000;

  /** CPU time that a rung runs before samples count: C2 compiles meanwhile. */
  private static final long WARM_UP_NANOS = 1_000_000_000;

  private static final int CHECKED_OUTPUTS = 64;

  /** Rows that all granules divide. */
  private static final int STEP = 64;

  private static final String FLOAT_WAY = "Vector API, float dequantise + FMA";

  private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

  private KernelLadder() {}

  /** Something that can be run for rows {@code [from, to)} of the matrix. */
  private interface Product {
    void run(long from, long to);
  }

  /** One rung: what is run, how far it has come, and its samples in rows per nanosecond. */
  private static final class Rung {
    final String name;
    final long out;
    final double bytesPerRow;
    final Product product;
    final List<Double> samples = new ArrayList<>();
    long chunk = STEP;
    long next;

    Rung(String name, long out, double bytesPerRow, Product product) {
      this.name = name;
      this.out = out;
      this.bytesPerRow = bytesPerRow;
      this.product = product;
    }

    /** Runs about {@link #SAMPLE_NANOS}; returns rows per nanosecond. */
    double sample() {
      long rows = 0;
      long start = THREADS.getCurrentThreadCpuTime();
      long nanos;
      do {
        long to = Math.min(out, next + chunk);
        product.run(next, to);
        rows += to - next;
        next = to == out ? 0 : to;
        nanos = THREADS.getCurrentThreadCpuTime() - start;
      } while (nanos < SAMPLE_NANOS);
      return (double) rows / nanos;
    }

    /** Compiles the product and finds a chunk of a quarter of a sample. */
    void warmUp() {
      long end = THREADS.getCurrentThreadCpuTime() + WARM_UP_NANOS;
      do {
        double rate = sample();
        long wanted = (long) (rate * SAMPLE_NANOS / 4) / STEP * STEP;
        chunk = Math.clamp(wanted, STEP, out);
      } while (THREADS.getCurrentThreadCpuTime() < end);
      next = 0;
    }

    /** The quantile of GB/s of weights. */
    double gigabytes(double quantile) {
      double[] sorted = samples.stream().mapToDouble(Double::doubleValue).sorted().toArray();
      return sorted[(int) Math.round(quantile * (sorted.length - 1))] * bytesPerRow;
    }
  }

  /** Prints the tables. */
  public static void main(String[] args) throws IOException {
    int rounds = args.length > 0 ? Integer.parseInt(args[0]) : 15;
    if (rounds < 1) {
      throw new IllegalArgumentException("rounds: expected=positive actual=" + rounds);
    }
    String types = args.length > 1 ? args[1] : "Q8_0,Q4_0,Q4_K";
    int[] rows =
        Stream.of((args.length > 2 ? args[2] : "1,128").split(","))
            .mapToInt(Integer::parseInt)
            .toArray();
    System.out.println(
        "Kernel ladder, " + ZonedDateTime.now(ZoneOffset.UTC).truncatedTo(ChronoUnit.SECONDS));
    System.out.println("- CPU: " + cpu() + "; " + CpuFeatures.host());
    System.out.println(
        "- JVM: "
            + Runtime.version()
            + ", "
            + Runtime.getRuntime().availableProcessors()
            + " CPUs");
    System.out.println("- load before: " + load());
    System.out.println(
        "- matrices of rows of " + IN + ", one thread, CPU time, " + rounds + " rounds in turns");
    for (String name : types.split(",")) {
      TensorType type = TensorType.valueOf(name);
      for (int n : rows) {
        table(type, n, rounds);
      }
    }
    System.out.println();
    System.out.println("- load after: " + load());
  }

  private static void table(TensorType type, int rows, int rounds) {
    List<NativeMemory> held = new ArrayList<>();
    try (Arena arena = Arena.ofConfined()) {
      List<Rung> rungs = rungs(type, rows, arena, held);
      rungs.forEach(Rung::warmUp);
      for (int round = 0; round < rounds; round++) {
        for (Rung rung : rungs) {
          rung.samples.add(rung.sample());
        }
      }
      print(type, rows, rungs);
    } finally {
      held.forEach(NativeMemory::close);
    }
  }

  private static void print(TensorType type, int rows, List<Rung> rungs) {
    double peak = rungs.getLast().gigabytes(0.5);
    double base =
        rungs.stream()
            .filter(r -> r.name.equals(FLOAT_WAY))
            .mapToDouble(r -> r.gigabytes(0.5) / r.bytesPerRow)
            .findFirst()
            .orElse(Double.NaN);
    System.out.printf("%n%s, %d row%s of activations%n%n", type, rows, rows == 1 ? "" : "s");
    System.out.println(
        "| rung | kernel | GB/s (p10-p90) | Gop/s | share of read bandwidth | ratio to the float"
            + " way |");
    System.out.println("|---|---|---|---|---|---|");
    int number = 0;
    for (Rung rung : rungs) {
      double rate = rung.gigabytes(0.5);
      boolean reads = rung == rungs.getLast();
      System.out.printf(
          Locale.ROOT,
          "| %s | %s | %.3f (%.3f-%.3f) | %s | %.1f %% | %s |%n",
          reads ? "" : ++number,
          rung.name,
          rate,
          rung.gigabytes(0.1),
          rung.gigabytes(0.9),
          reads ? "" : round(rate / rung.bytesPerRow * 2 * IN * rows),
          100 * rate / peak,
          reads || Double.isNaN(base) ? "" : round(rate / rung.bytesPerRow / base));
    }
  }

  private static String round(double value) {
    return String.format(Locale.ROOT, "%.2f", value);
  }

  // ---- the rungs

  private static List<Rung> rungs(TensorType type, int rows, Arena arena, List<NativeMemory> held) {
    long rowBytes = type.bytes(IN);
    long working = ReadBandwidth.workingSet();
    long out = rows < PREFILL_ROWS ? working / rowBytes / STEP * STEP : PREFILL_OUT;
    MemorySegment weights = matrix(type, out, held);
    MemorySegment y = allocate(4L * out * rows, held);
    float[] x = new float[IN * rows];
    Random random = new Random(2);
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextGaussian();
    }
    MemorySegment floats = allocate(4L * x.length, held);
    MemorySegment.copy(x, 0, floats, ValueLayout.JAVA_FLOAT, 0, x.length);

    Kernels scalar = KernelSets.scalar();
    float[] expected = reference(scalar, type, weights, out, rows, floats, arena);
    List<Rung> rungs = new ArrayList<>();
    rungs.add(rung("scalar", scalar, false, type, rows, weights, out, floats, y, expected, held));
    if (KernelSets.vector().isPresent() && FloatDot.supports(type)) {
      Product product =
          (from, to) -> FloatDot.product(type, weights, IN, from, to, x, rows, y, out);
      checkFloatWay(type, scalar, weights, x, out, rows, product, y, arena);
      rungs.add(new Rung(FLOAT_WAY, out, rowBytes, product));
    }
    KernelSets.vector()
        .ifPresent(set ->
            rungs.add(
                rung(
                    "Vector API, " + set.name(),
                    set,
                    false,
                    type,
                    rows,
                    weights,
                    out,
                    floats,
                    y,
                    expected,
                    held)));
    // From the plainest instruction set up; the mapped form of the plainest and of the best.
    List<Kernels> code =
        KernelSets.available().stream()
            .filter(k -> k.name().startsWith("x86-"))
            .toList()
            .reversed();
    for (Kernels set : code) {
      boolean packs = set.matmul(type, IN).packs();
      if (packs && (set == code.getFirst() || set == code.getLast())) {
        rungs.add(
            rung(
                "emitted, mapped, " + set.name(),
                set,
                true,
                type,
                rows,
                weights,
                out,
                floats,
                y,
                expected,
                held));
      }
    }
    for (Kernels set : code) {
      rungs.add(
          rung(
              "emitted, " + (set.matmul(type, IN).packs() ? "packed, " : "") + set.name(),
              set,
              false,
              type,
              rows,
              weights,
              out,
              floats,
              y,
              expected,
              held));
    }
    rungs.add(reads(working, held));
    return rungs;
  }

  private static Rung reads(long working, List<NativeMemory> held) {
    ReadLoop loop = ReadLoop.best();
    int unit = 1 << 16;
    MemorySegment memory = allocate(working / unit * unit, held);
    // Written, or all pages would be the one page of zeros.
    memory.fill((byte) 1);
    return new Rung(
        "emitted read loop, 4 streams",
        memory.byteSize() / unit,
        unit,
        (from, to) -> loop.sum(memory.asSlice(from * unit, (to - from) * unit)));
  }

  private static Rung rung(
      String name,
      Kernels set,
      boolean mapped,
      TensorType type,
      int rows,
      MemorySegment weights,
      long out,
      MemorySegment floats,
      MemorySegment y,
      float[] expected,
      List<NativeMemory> held) {
    Kernels.Matmul matmul = mapped ? set.matmulMapped(type, IN) : set.matmul(type, IN);
    MemorySegment own = weights;
    if (matmul.packs()) {
      own = allocate(matmul.packedBytes(out), held);
      matmul.pack(weights, own, out, 0, out);
    }
    MemorySegment matrix = own;
    MemorySegment x = activations(set, matmul.activation(), floats, rows, held);
    Product product = (from, to) -> matmul.run(matrix, out, from, to, x, 0, rows, y, 0, out);
    product.run(0, CHECKED_OUTPUTS);
    for (int r = 0; r < rows; r++) {
      for (int o = 0; o < CHECKED_OUTPUTS; o++) {
        float e = expected[r * CHECKED_OUTPUTS + o];
        check(name, r, o, e, y.getAtIndex(ValueLayout.JAVA_FLOAT, r * out + o), 1e-4);
      }
    }
    return new Rung(name, out, type.bytes(IN), product);
  }

  private static MemorySegment activations(
      Kernels set,
      Kernels.ActivationFormat format,
      MemorySegment floats,
      int rows,
      List<NativeMemory> held) {
    long stride = set.activationBytes(format, IN);
    MemorySegment x = allocate(stride * rows, held);
    for (int r = 0; r < rows; r++) {
      quantize(set, format, floats, r, x, r * stride);
    }
    return x;
  }

  private static void quantize(
      Kernels set,
      Kernels.ActivationFormat format,
      MemorySegment floats,
      int row,
      MemorySegment to,
      long at) {
    if (format == Kernels.ActivationFormat.F32) {
      MemorySegment.copy(floats, 4L * row * IN, to, at, 4L * IN);
    } else {
      set.quantize(format, floats, (long) row * IN, IN, to, at);
    }
  }

  // ---- what is expected

  private static float[] reference(
      Kernels scalar,
      TensorType type,
      MemorySegment weights,
      long out,
      int rows,
      MemorySegment floats,
      Arena arena) {
    Kernels.Matmul matmul = scalar.matmul(type, IN);
    long stride = scalar.activationBytes(matmul.activation(), IN);
    MemorySegment x = arena.allocate(stride * rows, 64);
    for (int r = 0; r < rows; r++) {
      quantize(scalar, matmul.activation(), floats, r, x, r * stride);
    }
    MemorySegment y = arena.allocate(4L * CHECKED_OUTPUTS * rows, 64);
    matmul.run(weights, out, 0, CHECKED_OUTPUTS, x, 0, rows, y, 0, CHECKED_OUTPUTS);
    return y.toArray(ValueLayout.JAVA_FLOAT);
  }

  /** Activations of this rung are not quantized: weights alone are dequantized for comparison. */
  private static void checkFloatWay(
      TensorType type,
      Kernels scalar,
      MemorySegment weights,
      float[] x,
      long out,
      int rows,
      Product product,
      MemorySegment y,
      Arena arena) {
    product.run(0, CHECKED_OUTPUTS);
    MemorySegment row = arena.allocate(4L * IN, 64);
    for (int o = 0; o < CHECKED_OUTPUTS; o++) {
      scalar.dequantize(type, weights, o * type.bytes(IN), IN, 1, row, 0);
      for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int i = 0; i < IN; i++) {
          sum += (double) row.getAtIndex(ValueLayout.JAVA_FLOAT, i) * x[r * IN + i];
        }
        check(FLOAT_WAY, r, o, sum, y.getAtIndex(ValueLayout.JAVA_FLOAT, r * out + o), 1e-3);
      }
    }
  }

  private static void check(
      String name, int row, int o, double expected, double actual, double tolerance) {
    if (!(Math.abs(expected - actual) <= 1e-3 + tolerance * Math.abs(expected))) {
      throw new IllegalStateException(
          name + ": row " + row + " output " + o + ": expected=" + expected + " actual=" + actual);
    }
  }

  // ---- memory and machine

  /** Random rows, repeated: contents do not matter for the speed. */
  private static MemorySegment matrix(TensorType type, long out, List<NativeMemory> held) {
    long rowBytes = type.bytes(IN);
    MemorySegment matrix = allocate(rowBytes * out, held);
    long seed = Math.min(out, 1024) * rowBytes;
    RandomWeights.fill(type, matrix.asSlice(0, seed), new Random(1));
    for (long o = seed; o < matrix.byteSize(); o += seed) {
      MemorySegment.copy(matrix, 0, matrix, o, Math.min(seed, matrix.byteSize() - o));
    }
    return matrix;
  }

  private static MemorySegment allocate(long bytes, List<NativeMemory> held) {
    NativeMemory memory = NativeMemory.allocate(bytes);
    held.add(memory);
    return memory.segment();
  }

  private static String cpu() throws IOException {
    Path info = Path.of("/proc/cpuinfo");
    return Files.isReadable(info)
        ? Files.readAllLines(info).stream()
            .filter(l -> l.startsWith("model name"))
            .findFirst()
            .map(l -> l.substring(l.indexOf(':') + 1).strip())
            .orElse("unknown")
        : System.getProperty("os.arch");
  }

  private static String load() {
    return String.format(
        Locale.ROOT, "%.1f", ManagementFactory.getOperatingSystemMXBean().getSystemLoadAverage());
  }
}
