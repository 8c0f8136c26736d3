package io.fletch.bench;

import io.fletch.ffm.x86.ReadBandwidth;
import io.fletch.graph.KvCache;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;

/**
 * Question: does decoding slow down with the context as the bytes of keys and values predict, and
 * does anything but weights matter before?
 *
 * <p>Lengths take turns. Printed per length: milliseconds per token; the milliseconds that are
 * predicted, those of the shortest context and the further bytes at the rate of a read loop with as
 * many threads, which is measured between the rounds; those that all bytes, weights and keys and
 * values, predict at the rate of the shortest context; and the GB/s at which keys and values were
 * read beyond the shortest context. As Markdown, medians.
 *
 * <p>Usage: {@code ContextBenchmark FILE|SHAPE:MIX THREADS f16|q8_0 LENGTH,LENGTH... [ROUNDS]}; see
 * {@link ModelBenchmark} for names of models
 */
public final class ContextBenchmark {
  private static final int TOKENS = 8;

  private ContextBenchmark() {}

  /** Runs the comparison. */
  public static void main(String[] args) {
    if (args.length < 4) {
      System.err.println(
          "usage: ContextBenchmark FILE|SHAPE:MIX THREADS f16|q8_0 LENGTH,LENGTH... [ROUNDS]");
      System.exit(2);
    }
    int threads = Integer.parseInt(args[1]);
    KvCache.Type type = KvCache.Type.valueOf(args[2].toUpperCase(Locale.ROOT));
    int[] lengths = Arrays.stream(args[3].split(",")).mapToInt(Integer::parseInt).toArray();
    int rounds = args.length > 4 ? Integer.parseInt(args[4]) : 5;
    int longest = Arrays.stream(lengths).max().orElseThrow() + TOKENS + BenchModel.ROWS;
    Path file = BenchModel.file(args[0], ModelBenchmark.folder());
    try (BenchModel model = new BenchModel(file, threads, type, longest);
        ReadBandwidth reader = new ReadBandwidth(threads)) {
      List<List<Double>> samples = new ArrayList<>();
      for (int ignored : lengths) {
        samples.add(new ArrayList<>());
      }
      List<Double> bandwidth = new ArrayList<>();
      for (int round = -1; round < rounds; round++) {
        bandwidth.add(reader.gigabytesPerSecond());
        for (int i = 0; i < lengths.length; i++) {
          double nanos = decode(model, lengths[i]);
          if (round >= 0) {
            samples.get(i).add(nanos);
          }
        }
      }
      System.out.println("- " + model.description() + ", " + type + " keys and values");
      System.out.printf(
          Locale.ROOT, "- read loop, %d threads: %.1f GB/s%n", threads, median(bandwidth));
      print(lengths, samples, model, median(bandwidth));
    }
  }

  /** Nanoseconds per token at a length. */
  private static double decode(BenchModel model, int length) {
    model.length(length);
    long start = System.nanoTime();
    for (int t = 0; t < TOKENS; t++) {
      model.decode();
    }
    return (System.nanoTime() - start) / (double) TOKENS;
  }

  private static void print(
      int[] lengths, List<List<Double>> samples, BenchModel model, double bandwidth) {
    System.out.printf(Locale.ROOT, "- weights: %.0f MB per token%n%n", model.weightBytes() / 1e6);
    System.out.println(
        "| context | keys and values MB | ms per token predicted | in proportion to bytes |"
            + " measured (range) | GB/s of keys and values |");
    System.out.println("|---|---|---|---|---|---|");
    double base = median(samples.getFirst());
    long baseKv = lengths[0] * model.slotBytes();
    for (int i = 0; i < lengths.length; i++) {
      double nanos = median(samples.get(i));
      long more = lengths[i] * model.slotBytes() - baseKv;
      System.out.printf(
          Locale.ROOT,
          "| %d | %.1f | %.1f | %.1f | %.1f (%.1f-%.1f) | %s |%n",
          lengths[i],
          lengths[i] * model.slotBytes() / 1e6,
          (base + more / bandwidth) / 1e6,
          base * (1 + more / (double) (model.weightBytes() + baseKv)) / 1e6,
          nanos / 1e6,
          samples.get(i).stream().min(Double::compare).orElseThrow() / 1e6,
          samples.get(i).stream().max(Double::compare).orElseThrow() / 1e6,
          nanos <= base ? "" : String.format(Locale.ROOT, "%.1f", more / (nanos - base)));
    }
  }

  private static double median(List<Double> values) {
    return values.stream().sorted().skip(values.size() / 2).findFirst().orElseThrow();
  }
}
