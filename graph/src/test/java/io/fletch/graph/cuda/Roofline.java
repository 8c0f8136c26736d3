package io.fletch.graph.cuda;

import io.fletch.quant.TensorType;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.regex.Matcher;

/**
 * What products that stream a matrix can reach on an H200 by the count of their instructions and of
 * the bytes that they have on the way: a prediction, nothing is run. Both bounds are upper ones.
 *
 * <p>The count is of the loop over chunks of 128 columns of 16 outputs, with its rare paths, so it
 * is a little too high. A multiprocessor begins four instructions of warps per clock. By Little's
 * law the bytes on the way, divided by the way's time, are the rate: each warp has the next chunk
 * on its way. The way is that to memory, or to the second cache, where the first 8 KiB of a warp's
 * run of a tile are asked for while it is at the tile before.
 */
final class Roofline {
  static final List<TensorType> TYPES =
      List.of(
          TensorType.Q8_0,
          TensorType.BF16,
          TensorType.F16,
          TensorType.Q4_0,
          TensorType.Q4_K,
          TensorType.Q5_K,
          TensorType.Q6_K);

  /** NVIDIA's data sheet of the H200: bytes per second; multiprocessors of the SXM module. */
  private static final double BANDWIDTH = 4.8e12;

  private static final int PROCESSORS = 132;

  /**
   * Clocks per second under load, below the highest of 1.98e9; of these a share begins something.
   */
  private static final double CLOCK = 1.7e9;

  private static final double BUSY = 0.8;

  /** Seconds from a load to its data with the memory under load; unloaded it is about 0.65e-6. */
  private static final double LATENCY = 0.9e-6;

  /** The same from the second cache, under load. */
  private static final double CACHE_LATENCY = 0.4e-6;

  /** A copy on the device reaches this share of the data sheet's rate. */
  private static final double COPY = 0.9;

  private Roofline() {}

  /** A kernel over a matrix of a type. */
  record Kernel(TensorType type, int rows, int threads) {}

  /**
   * What is predicted.
   *
   * @param instructions per chunk of a tile
   * @param bytes of the matrix per chunk
   * @param registers of a thread
   * @param loading bytes that the loads of a multiprocessor have on the way
   * @param issue share of the bandwidth that the instructions allow
   * @param memory share of the bandwidth that the bytes on the way allow if they come from memory
   * @param cache the same if they come from the second cache
   */
  record Row(
      Kernel kernel,
      int instructions,
      int bytes,
      int registers,
      int loading,
      double issue,
      double memory,
      double cache) {
    /** Share of a copy's rate that can be reached. */
    double share() {
      return Math.min(1, Math.min(issue, cache) / COPY);
    }

    /** What the project wants of a decode step; of several rows at once it wants nothing. */
    double wanted() {
      return kernel.rows > 1
          ? 0
          : switch (kernel.type) {
            case Q8_0, BF16, F16 -> 0.75;
            default -> 0.6;
          };
    }
  }

  static List<Row> of(Map<String, Kernel> kernels, String log, Path cubin) throws IOException {
    Map<String, Integer> registers = new HashMap<>();
    String name = "";
    for (String line : log.lines().toList()) {
      Matcher function = ProductsTest.FUNCTION.matcher(line);
      name = function.find() ? function.group(1) : name;
      Matcher used = ProductsTest.REGISTERS.matcher(line);
      if (used.find()) {
        registers.put(name, Integer.parseInt(used.group(1)));
      }
    }
    Map<String, ByteBuffer> code = Sass.kernels(cubin);
    List<Row> rows = new ArrayList<>();
    for (Map.Entry<String, Kernel> e : kernels.entrySet()) {
      Kernel k = e.getValue();
      Sass.Loop loop = Sass.productLoop(code.get(e.getKey())).orElseThrow();
      // Two products of two parts for each of four groups.
      int instructions = loop.instructions() * 16 / loop.products();
      PackedMatrix m = PackedMatrix.of(k.type, 16, 4096);
      int bytes = m.tileBytes() / m.chunks();
      int used = registers.get(e.getKey());
      int blocks = (1 << 16) / ((used + 7) / 8 * 8 * k.threads);
      int loading = blocks * (k.threads / 32) * bytes;
      double issue = 4 * CLOCK * BUSY * PROCESSORS * bytes / instructions / BANDWIDTH;
      double rate = loading * PROCESSORS / BANDWIDTH;
      rows.add(
          new Row(
              k, instructions, bytes, used, loading, issue, rate / LATENCY, rate / CACHE_LATENCY));
    }
    return rows;
  }

  static String text(List<Row> rows) {
    StringBuilder s =
        new StringBuilder(
            "| type | rows | instructions a chunk | bytes a chunk | registers | issue | loading KiB"
                + " | memory | cache | of a copy |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (Row r : rows) {
      s.append(
          String.format(
              Locale.ROOT,
              "| %s | %d | %d | %d | %d | %.2f | %.0f | %.2f | %.2f | %.2f |%n",
              r.kernel.type,
              r.kernel.rows,
              r.instructions,
              r.bytes,
              r.registers,
              r.issue,
              r.loading / 1024.0,
              r.memory,
              r.cache,
              r.share()));
    }
    return s.toString();
  }
}
