package io.fletch.bench;

import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadLoop;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.QuantizedCheckpoint;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;

/**
 * Question: does decoding slow down with the context as the bytes of keys and values predict, and
 * does anything but weights matter before?
 *
 * <p>Keys and values of a short prompt are copied until the cache is as long as asked: their
 * contents do not matter for the speed. Lengths take turns. Printed per length: milliseconds per
 * token, the bytes of weights and of keys and values that it reads, both as GB/s, and the time
 * beyond that of an empty cache per byte of keys and values. As Markdown.
 *
 * <p>Usage: {@code ContextBenchmark FILE THREADS f16|q8_0 LENGTH,LENGTH... [ROUNDS]}
 */
public final class ContextBenchmark {
  private static final int SEED_ROWS = 128;
  private static final int TOKENS = 8;

  private ContextBenchmark() {}

  /** Runs the comparison. */
  public static void main(String[] args) {
    if (args.length < 4) {
      System.err.println("usage: ContextBenchmark FILE THREADS f16|q8_0 LENGTH,LENGTH... [ROUNDS]");
      System.exit(2);
    }
    Path path = Path.of(args[0]);
    int threads = Integer.parseInt(args[1]);
    KvCache.Type type = KvCache.Type.valueOf(args[2].toUpperCase(Locale.ROOT));
    int[] lengths = Arrays.stream(args[3].split(",")).mapToInt(Integer::parseInt).toArray();
    int rounds = args.length > 4 ? Integer.parseInt(args[4]) : 5;
    int longest = Arrays.stream(lengths).max().orElseThrow() + TOKENS + SEED_ROWS;
    try (WeightFile file = WeightFile.open(path);
        TensorStore derived = TensorStore.create()) {
      HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
      WeightTensors weights =
          WeightTensors.of(
              file.format(),
              QuantizedCheckpoint.tensors(file, derived),
              declared.architecture(),
              derived);
      HyperParameters hp = weights.fit(declared);
      Graph graph = ModelGraph.build(hp, weights, longest, path.getFileName().toString());
      CpuBackend.Options options =
          CpuBackend.Options.defaults().withThreads(threads).withLayout(CpuBackend.Layout.PACKED);
      try (Executable executable = new CpuBackend(options).compile(graph, SEED_ROWS);
          KvCache kv = executable.newKvCache(longest, type);
          Batch batch = executable.newBatch(SEED_ROWS, 1)) {
        fill(executable, kv, batch);
        double bandwidth = bandwidth();
        System.out.println("- " + executable.description() + ", " + type + " keys and values");
        System.out.printf(
            Locale.ROOT, "- read loop, one thread, huge pages: %.1f GB/s%n", bandwidth);
        List<List<Double>> samples = new ArrayList<>();
        for (int ignored : lengths) {
          samples.add(new ArrayList<>());
        }
        for (int round = -1; round < rounds; round++) {
          for (int i = 0; i < lengths.length; i++) {
            double nanos = decode(executable, kv, batch, lengths[i]);
            if (round >= 0) {
              samples.get(i).add(nanos);
            }
          }
        }
        print(lengths, samples, executable.plans().getFirst().weightBytes(), kv);
      }
    }
  }

  /** Fills the cache with copies of a prompt's keys and values. */
  private static void fill(Executable executable, KvCache kv, Batch batch) {
    int[] tokens = new int[SEED_ROWS];
    for (int i = 0; i < tokens.length; i++) {
      tokens[i] = 1000 + 7 * i;
    }
    batch.clear();
    batch.append(kv, tokens, 0, SEED_ROWS);
    batch.wantLogits(SEED_ROWS - 1);
    executable.forward(batch);
    for (int filled = SEED_ROWS; filled < kv.capacity(); ) {
      int n = Math.min(filled, kv.capacity() - filled);
      kv.copy(kv, 0, filled, n);
      filled += n;
    }
  }

  /** Nanoseconds per token at a length. */
  private static double decode(Executable executable, KvCache kv, Batch batch, int length) {
    int[] token = {1234};
    kv.length(length);
    long start = System.nanoTime();
    for (int t = 0; t < TOKENS; t++) {
      batch.clear();
      batch.append(kv, token, 0, 1);
      batch.wantLogits(0);
      executable.forward(batch);
      kv.length(kv.length() + 1);
    }
    return (System.nanoTime() - start) / (double) TOKENS;
  }

  private static double bandwidth() {
    long bytes = 256L << 20;
    ReadLoop loop = ReadLoop.best();
    double best = 0;
    try (NativeMemory memory = NativeMemory.allocate(bytes)) {
      memory.segment().fill((byte) 1);
      for (int i = 0; i < 5; i++) {
        long start = System.nanoTime();
        loop.sum(memory.segment());
        best = Math.max(best, (double) bytes / (System.nanoTime() - start));
      }
    }
    return best;
  }

  private static void print(
      int[] lengths, List<List<Double>> samples, long weightBytes, KvCache kv) {
    System.out.println();
    System.out.println(
        "| context | ms per token | weights MB | keys and values MB | GB/s of both | GB/s of keys"
            + " and values beyond the shortest |");
    System.out.println("|---|---|---|---|---|---|");
    double base = median(samples.getFirst());
    long baseKv = lengths[0] * kv.slotBytes();
    for (int i = 0; i < lengths.length; i++) {
      double nanos = median(samples.get(i));
      long kvBytes = lengths[i] * kv.slotBytes();
      System.out.printf(
          Locale.ROOT,
          "| %d | %.2f | %.0f | %.1f | %.1f | %s |%n",
          lengths[i],
          nanos / 1e6,
          weightBytes / 1e6,
          kvBytes / 1e6,
          (weightBytes + kvBytes) / nanos,
          i == 0 ? "" : String.format(Locale.ROOT, "%.1f", (kvBytes - baseKv) / (nanos - base)));
    }
  }

  private static double median(List<Double> values) {
    return values.stream().sorted().skip(values.size() / 2).findFirst().orElseThrow();
  }
}
