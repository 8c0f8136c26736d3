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
import java.util.Optional;
import java.util.SplittableRandom;

/**
 * Times one matrix-vector product per encoding on one thread, in turns, and prints medians of
 * processor time: which density a sparse encoding needs to be faster than the dense one.
 *
 * <p>Arguments: rows, columns, rounds, products per sample (default 8192 4096 15 1). For what
 * memory gives, the matrix should be larger than the last cache; for what the kernels could do
 * without it, a small matrix takes several products per sample.
 */
public final class SparseBreakEven {
  private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

  private SparseBreakEven() {}

  private static final TensorType[] TYPES = {TensorType.F16, TensorType.Q8_0, TensorType.Q4_0};

  /** Types whose zeros are multiplied, to compare with. */
  private static final TensorType[] DENSE_ALONE = {
    TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K
  };

  private record Candidate(
      String kind,
      TensorType type,
      double density,
      Kernels.Matmul kernel,
      MemorySegment data,
      long bytes) {
    String name() {
      return kind + " " + type + (hasDensity() ? " density " + density : "");
    }

    /** Bitmaps are of any density; so are activations, of which the product skips zeros. */
    boolean hasDensity() {
      return kind.equals("bitmap") || kind.equals("activations");
    }

    /** Elements of the input that are not zero, of all. */
    double kept() {
      return kind.equals("activations") ? density : 1;
    }
  }

  /** Runs the comparison. */
  public static void main(String[] args) {
    int out = args.length > 0 ? Integer.parseInt(args[0]) : 8192;
    int in = args.length > 1 ? Integer.parseInt(args[1]) : 4096;
    int rounds = args.length > 2 ? Integer.parseInt(args[2]) : 15;
    int repeats = args.length > 3 ? Integer.parseInt(args[3]) : 1;
    Kernels kernels = KernelSets.best().kernels();
    System.out.printf("kernels %s, [%d, %d], 1 thread%n", kernels.name(), out, in);
    try (TensorStore store = TensorStore.create()) {
      List<Candidate> all = new ArrayList<>();
      SplittableRandom random = new SplittableRandom(1);
      Tensor dense = matrix(store, random, out, in, 1, false);
      for (TensorType type : TYPES) {
        Tensor t = Quantizer.quantize(dense, type, store);
        Kernels.Matmul m = kernels.matmul(t.type(), Math.toIntExact(t.cols()));
        all.add(candidate("dense", type, 1, m, t, t.bytes(), store));
      }
      for (TensorType type : DENSE_ALONE) {
        if (in % type.blockSize() == 0) {
          Tensor t = Quantizer.quantize(dense, type, store);
          all.add(candidate("dense", type, 1, kernels.matmul(type, in), t, t.bytes(), store));
        }
      }
      Tensor half = matrix(store, random, out, in, 1, true);
      for (TensorType type : TYPES) {
        SparseMatrix.TwoOfFour m = SparseEncoder.twoOfFour(half, type, store);
        Kernels.Matmul kernel = kernels.twoOfFourMatmul(m);
        all.add(candidate("2:4", type, 0.5, kernel, m.values(), m.bytes(), store));
      }
      for (double density : new double[] {0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1}) {
        Tensor masked = matrix(store, random, out, in, density, false);
        for (TensorType type : TYPES) {
          SparseMatrix m = SparseEncoder.anyBitmap(masked, type, store);
          Kernels.Matmul kernel =
              m instanceof SparseMatrix.BitmapCodes c
                  ? kernels.bitmapMatmul(c)
                  : kernels.bitmapMatmul((SparseMatrix.Bitmap) m);
          all.add(candidate("bitmap", type, density, kernel, m.values(), m.bytes(), store));
        }
      }
      List<Candidate> skipping = new ArrayList<>();
      for (TensorType type : TYPES) {
        Tensor plain = Quantizer.quantize(dense, type, store);
        Optional<Kernels.Matmul> columns =
            type == TensorType.F16
                ? Optional.of(kernels.columnsMatmul(type, in))
                : kernels.codeColumnsMatmul(plain);
        if (columns.isEmpty()) {
          continue;
        }
        skipping.add(candidate("activations", type, 1, columns.get(), plain, plain.bytes(), store));
      }
      // A matrix does not follow itself, or caches would have what of it was just read.
      for (double kept : new double[] {1, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05}) {
        for (Candidate c : skipping) {
          // Of blocks that are read at all the scales are, too: this counts columns alone.
          long bytes = Math.round(c.bytes() * kept);
          all.add(new Candidate("activations", c.type(), kept, c.kernel(), c.data(), bytes));
        }
      }
      measure(kernels, all, out, in, rounds, repeats, store);
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

  private static Candidate candidate(
      String kind,
      TensorType type,
      double density,
      Kernels.Matmul m,
      Tensor values,
      long bytes,
      TensorStore store) {
    MemorySegment data = values.segment();
    if (m.packs()) {
      long rows = values.rows();
      data = store.allocate("packed", TensorType.I8, m.packedBytes(rows)).segment();
      double[] ms = new double[5];
      for (int i = 0; i < ms.length; i++) {
        long start = THREADS.getCurrentThreadCpuTime();
        m.pack(values.segment(), data, rows, 0, rows);
        ms[i] = (THREADS.getCurrentThreadCpuTime() - start) / 1e6;
      }
      double first = ms[0];
      Arrays.sort(ms);
      System.out.printf("packed %s %s: first %.1f, then %.1f ms%n", kind, type, first, ms[2]);
    }
    return new Candidate(kind, type, density, m, data, bytes);
  }

  private static void measure(
      Kernels kernels,
      List<Candidate> all,
      int out,
      int in,
      int rounds,
      int repeats,
      TensorStore store) {
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
        MemorySegment codes =
            store.allocate("q", TensorType.I8, kernels.activationBytes(format, in)).segment();
        kernels.quantize(format, inputs[c], 0, in, codes, 0);
        inputs[c] = codes;
      }
    }
    for (int round = -3; round < rounds; round++) {
      for (int c = 0; c < all.size(); c++) {
        Candidate k = all.get(c);
        long start = THREADS.getCurrentThreadCpuTime();
        for (int i = 0; i < repeats; i++) {
          k.kernel().run(k.data(), out, 0, out, inputs[c], 0, 1, y, 0, out);
        }
        long end = THREADS.getCurrentThreadCpuTime();
        if (round >= 0) {
          times[c][round] = (end - start) / 1e6 / repeats;
        }
      }
    }
    double[] ms = new double[all.size()];
    for (int c = 0; c < all.size(); c++) {
      Arrays.sort(times[c]);
      ms[c] = times[c][rounds / 2];
    }
    System.out.println(
        "| encoding | kernel | bits per weight | ms | GB/s | dense of the type / this |");
    System.out.println("|---|---|---|---|---|---|");
    for (int c = 0; c < all.size(); c++) {
      Candidate k = all.get(c);
      System.out.printf(
          "| %s | %s | %.2f | %.4f | %.1f | %.2f |%n",
          k.name(),
          k.kernel().name(),
          8.0 * k.bytes() / ((double) out * in),
          ms[c],
          k.bytes() / ms[c] / 1e6,
          dense(all, ms, k.type()) / ms[c]);
    }
    for (TensorType type : TYPES) {
      System.out.printf(
          "bitmap %s: as fast as dense at density %s%n", type, breakEven(all, ms, type));
    }
  }

  private static double dense(List<Candidate> all, double[] ms, TensorType type) {
    for (int c = 0; c < ms.length; c++) {
      if (all.get(c).kind().equals("dense") && all.get(c).type() == type) {
        return ms[c];
      }
    }
    throw new IllegalStateException("not measured: dense " + type);
  }

  /** The largest density from which on bitmaps are as fast, between the measured ones. */
  private static String breakEven(List<Candidate> all, double[] ms, TensorType type) {
    double dense = dense(all, ms, type);
    double above = Double.NaN;
    double aboveMs = 0;
    for (int c = 0; c < ms.length; c++) {
      Candidate k = all.get(c);
      if (!k.kind().equals("bitmap") || k.type() != type) {
        continue;
      }
      if (ms[c] <= dense) {
        double share = Double.isNaN(above) ? 0 : (dense - ms[c]) / (aboveMs - ms[c]);
        return "%.2f".formatted(k.density() + (share == 0 ? 0 : share * (above - k.density())));
      }
      above = k.density();
      aboveMs = ms[c];
    }
    return "none that was measured";
  }
}
