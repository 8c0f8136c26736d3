package io.fletch.bench;

import io.fletch.graph.cpu.KernelSets;
import io.fletch.graph.cpu.Kernels;
import io.fletch.quant.Quantizer;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;

/**
 * Times one matrix-vector product per encoding on one thread, in turns, and prints medians of
 * processor time: which density a sparse encoding needs to be faster than the dense one.
 *
 * <p>Arguments: rows, columns, rounds (default 8192 4096 15). The matrix should be larger than the
 * last cache.
 */
public final class SparseBreakEven {
  private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

  private SparseBreakEven() {}

  /**
   * What is timed.
   *
   * @param kept of the elements of its input, 1 for all
   */
  private record Candidate(
      String name, Kernels.Matmul kernel, MemorySegment data, long bytes, double kept) {
    Candidate(String name, Kernels.Matmul kernel, MemorySegment data, long bytes) {
      this(name, kernel, data, bytes, 1);
    }
  }

  /** Runs the comparison. */
  public static void main(String[] args) {
    int out = args.length > 0 ? Integer.parseInt(args[0]) : 8192;
    int in = args.length > 1 ? Integer.parseInt(args[1]) : 4096;
    int rounds = args.length > 2 ? Integer.parseInt(args[2]) : 15;
    Kernels kernels = KernelSets.best().kernels();
    System.out.printf("kernels %s, [%d, %d], 1 thread%n", kernels.name(), out, in);
    try (TensorStore store = TensorStore.create()) {
      List<Candidate> all = new ArrayList<>();
      SplittableRandom random = new SplittableRandom(1);
      Tensor dense = matrix(store, random, out, in, 1, false);
      for (TensorType type : new TensorType[] {TensorType.F16, TensorType.Q8_0, TensorType.Q4_0}) {
        all.add(dense(kernels, Quantizer.quantize(dense, type, store), store));
      }
      for (double density : new double[] {0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1}) {
        Tensor masked = matrix(store, random, out, in, density, false);
        for (TensorType type :
            density == 0.5
                ? new TensorType[] {TensorType.F16, TensorType.Q8_0, TensorType.Q4_0}
                : new TensorType[] {TensorType.F16}) {
          SparseMatrix.Bitmap m = SparseEncoder.bitmap(masked, type, store);
          String name = "bitmap " + type + " density " + density;
          all.add(new Candidate(name, kernels.bitmapMatmul(m), m.values().segment(), m.bytes()));
        }
      }
      Tensor half = matrix(store, random, out, in, 1, true);
      for (TensorType type : new TensorType[] {TensorType.F16, TensorType.Q8_0, TensorType.Q4_0}) {
        SparseMatrix.TwoOfFour m = SparseEncoder.twoOfFour(half, type, store);
        all.add(
            new Candidate(
                "2:4 " + type, kernels.twoOfFourMatmul(m), m.values().segment(), m.bytes()));
      }
      Tensor plain = Quantizer.quantize(dense, TensorType.F16, store);
      Kernels.Matmul columns = kernels.columnsMatmul(TensorType.F16, in);
      MemorySegment packed =
          store.allocate("columns", TensorType.I8, columns.packedBytes(out)).segment();
      columns.pack(plain.segment(), packed, out, 0, out);
      for (double kept : new double[] {1, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05}) {
        long bytes = Math.round(plain.bytes() * kept);
        String name = "F16, activations " + kept;
        all.add(new Candidate(name, columns, packed, bytes, kept));
      }
      measure(kernels, all, out, in, rounds, store);
    }
  }

  private static Tensor matrix(
      TensorStore store, SplittableRandom r, int out, int in, double density, boolean twoOfFour) {
    float[] x = new float[out * in];
    for (int i = 0; i < x.length; i++) {
      x[i] = r.nextDouble() < density ? (float) (r.nextDouble() - 0.5) : 0;
    }
    for (int g = 0; twoOfFour && g < x.length; g += 4) {
      int first = r.nextInt(4);
      x[g + first] = 0;
      x[g + (first + 1 + r.nextInt(3)) % 4] = 0;
    }
    return store.floats("w", x, out, in);
  }

  private static Candidate dense(Kernels kernels, Tensor t, TensorStore store) {
    Kernels.Matmul m = kernels.matmul(t.type(), Math.toIntExact(t.cols()));
    MemorySegment data = t.segment();
    if (m.packs()) {
      data = store.allocate("packed", TensorType.I8, m.packedBytes(t.rows())).segment();
      m.pack(t.segment(), data, t.rows(), 0, t.rows());
    }
    return new Candidate("dense " + t.type(), m, data, t.bytes());
  }

  private static void measure(
      Kernels kernels, List<Candidate> all, int out, int in, int rounds, TensorStore store) {
    long stride = kernels.activationBytes(Kernels.ActivationFormat.F32, in);
    MemorySegment x = store.allocate("x", TensorType.I8, stride).segment();
    SplittableRandom r = new SplittableRandom(2);
    for (int i = 0; i < in; i++) {
      x.set(ValueLayout.JAVA_FLOAT, 4L * i, (float) (r.nextDouble() - 0.5));
    }
    MemorySegment y = store.allocate("y", TensorType.F32, out).segment();
    double[][] times = new double[all.size()][rounds];
    MemorySegment[] inputs = new MemorySegment[all.size()];
    for (int c = 0; c < all.size(); c++) {
      Kernels.ActivationFormat format = all.get(c).kernel().activation();
      inputs[c] = x;
      if (all.get(c).kept() < 1) {
        inputs[c] = store.allocate("x", TensorType.I8, stride).segment();
        for (int i = 0; i < in; i++) {
          float v = r.nextDouble() < all.get(c).kept() ? x.get(ValueLayout.JAVA_FLOAT, 4L * i) : 0;
          inputs[c].set(ValueLayout.JAVA_FLOAT, 4L * i, v);
        }
      }
      if (format != Kernels.ActivationFormat.F32) {
        inputs[c] =
            store.allocate("q", TensorType.I8, kernels.activationBytes(format, in)).segment();
        kernels.quantize(format, x, 0, in, inputs[c], 0);
      }
    }
    for (int round = -3; round < rounds; round++) {
      for (int c = 0; c < all.size(); c++) {
        Candidate k = all.get(c);
        long start = THREADS.getCurrentThreadCpuTime();
        k.kernel().run(k.data(), out, 0, out, inputs[c], 0, 1, y, 0, out);
        long end = THREADS.getCurrentThreadCpuTime();
        if (round >= 0) {
          times[c][round] = (end - start) / 1e6;
        }
      }
    }
    double f16 = 0;
    System.out.println("| encoding | bits per weight | ms | GB/s | dense F16 / this |");
    System.out.println("|---|---|---|---|---|");
    for (int c = 0; c < all.size(); c++) {
      Arrays.sort(times[c]);
      double ms = times[c][rounds / 2];
      f16 = c == 0 ? ms : f16;
      double bits = 8.0 * all.get(c).bytes() / ((double) out * in);
      System.out.printf(
          "| %s | %.2f | %.2f | %.1f | %.2f |%n",
          all.get(c).name(), bits, ms, all.get(c).bytes() / ms / 1e6, f16 / ms);
    }
  }
}
