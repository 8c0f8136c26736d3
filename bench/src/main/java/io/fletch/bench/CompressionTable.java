package io.fletch.bench;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * Makes a model in every compressed form and measures all of them: size, perplexity, accuracy, and
 * tokens per second in interleaved rounds. Files that are there are not made again, so that an
 * interrupted run goes on. Prints a table, and one line of JSON per measurement before it.
 *
 * <p>Arguments: F16 model (GGUF), calibration text, held-out text, question set, folder for the
 * files, rounds (default 3); {@code -} instead of a text or the questions leaves their column out.
 * Commands run in processes of their own: with the class path of this one where that has the
 * command line, else by {@code ./fletch}.
 */
public final class CompressionTable {
  private record Row(String label, String file, List<String> make) {}

  private final Path model;
  private final String calibration;
  private final Path folder;

  private CompressionTable(Path model, String calibration, Path folder) {
    this.model = model;
    this.calibration = calibration;
    this.folder = folder;
  }

  /** Runs it. */
  public static void main(String[] args) throws IOException, InterruptedException {
    if (args.length < 5) {
      System.err.println("arguments: MODEL CALIBRATION|- HELD_OUT|- QUESTIONS|- FOLDER [ROUNDS]");
      System.exit(2);
    }
    Path folder = Files.createDirectories(Path.of(args[4]));
    int rounds = args.length > 5 ? Integer.parseInt(args[5]) : 3;
    new CompressionTable(Path.of(args[0]), args[1], folder).run(args[2], args[3], rounds);
  }

  private List<Row> rows() {
    List<Row> all = new ArrayList<>();
    all.add(new Row("F16, dense", "f16.gguf", List.of("convert")));
    all.add(new Row("Q8_0, dense", "q8.gguf", List.of("quantize", "--type", "Q8_0")));
    all.add(new Row("Q4_0, dense", "q4.gguf", List.of("quantize", "--type", "Q4_0")));
    all.add(new Row("Q4_K_M, dense", "q4km.gguf", List.of("quantize", "--type", "Q4_K_M")));
    for (String type : List.of("F16", "Q8_0", "Q4_0")) {
      String name = "Wanda 50 %, bitmap " + type;
      all.add(pruned(name, "wanda50" + type, "wanda", "--sparsity 0.5 --sparse bitmap", type));
    }
    all.add(
        pruned(
            "SparseGPT 50 %, bitmap F16",
            "sgpt50", "sparsegpt", "--sparsity 0.5 --sparse bitmap", "F16"));
    for (String type : List.of("F16", "Q8_0", "Q4_0")) {
      String name = "SparseGPT 2:4, " + type + " values";
      all.add(pruned(name, "sgpt24" + type, "sparsegpt", "--pattern 2:4 --sparse 2:4", type));
    }
    for (String method : List.of("wanda", "sparsegpt")) {
      for (String ratios : List.of("uniform", "owl")) {
        String how = "--sparsity 0.7 --sparse bitmap --ratios " + ratios;
        String name = method.equals("wanda") ? "Wanda" : "SparseGPT";
        String label = name + " 70 %, " + ratios + ", bitmap F16";
        all.add(pruned(label, method + "70" + ratios, method, how, "F16"));
      }
    }
    all.add(lowRank("0.8", "columns:0.1"));
    all.add(lowRank("0.6", "bitmap:0.2"));
    all.add(lowRank("0.6", "columns:0.1"));
    return all;
  }

  private Row pruned(String label, String file, String method, String how, String type) {
    List<String> words = new ArrayList<>(List.of("prune", "--method", method));
    words.addAll(List.of(how.split(" ")));
    words.addAll(List.of("--sparse-type", type.toLowerCase(Locale.ROOT)));
    calibrate(words);
    return new Row(label, file + ".arrow", words);
  }

  private Row lowRank(String ratio, String residual) {
    List<String> words = new ArrayList<>(List.of("prune", "--method", "lowrank"));
    words.addAll(List.of("--rank-ratio", ratio, "--residual", residual));
    calibrate(words);
    String file = "lowrank" + ratio + residual.replace(":", "") + ".arrow";
    return new Row("low rank, ratio " + ratio + ", and " + residual + " of the rest", file, words);
  }

  private void calibrate(List<String> words) {
    words.addAll(List.of("--calibrate", calibration, "--samples", "64", "--sample-length", "256"));
  }

  private void run(String heldOut, String questions, int rounds)
      throws IOException, InterruptedException {
    List<Row> rows = rows();
    for (Row row : rows) {
      Path file = folder.resolve(row.file());
      if (!Files.exists(file)) {
        List<String> words = new ArrayList<>(row.make());
        words.addAll(List.of("-m", model.toString(), "-o", file.toString(), "--json"));
        fletch(words);
      }
    }
    Map<Row, List<Double>> speeds = new LinkedHashMap<>();
    for (int round = 0; round < rounds; round++) {
      for (Row row : rows) {
        String file = folder.resolve(row.file()).toString();
        Map<String, Object> bench =
            fletch(
                List.of(
                    "bench",
                    "-m",
                    file,
                    "-t",
                    "1",
                    "-p",
                    "64",
                    "-n",
                    "64",
                    "-r",
                    "5",
                    "--pack-cache",
                    "off",
                    "--json"));
        List<Double> samples = speeds.computeIfAbsent(row, r -> new ArrayList<>());
        for (Object tps : (List<?>) bench.get("decode_tps_samples")) {
          samples.add(((Number) tps).doubleValue());
        }
      }
    }
    StringBuilder table =
        new StringBuilder(
            "| model | size, MB | perplexity | accuracy, % | decode, tokens/s |\n"
                + "|---|---|---|---|---|\n");
    for (Row row : rows) {
      Path file = folder.resolve(row.file());
      String perplexity = "-";
      if (!heldOut.equals("-")) {
        Map<String, Object> got =
            fletch(
                List.of(
                    "perplexity",
                    "-m",
                    file.toString(),
                    "--text",
                    heldOut,
                    "--window",
                    "256",
                    "--stride",
                    "192",
                    "--tokens",
                    "8000",
                    "--json"));
        perplexity =
            String.format(Locale.ROOT, "%.3f", ((Number) got.get("perplexity")).doubleValue());
      }
      String accuracy = "-";
      if (!questions.equals("-")) {
        Map<String, Object> got =
            fletch(List.of("eval", "-m", file.toString(), "--set", questions, "--json"));
        accuracy =
            String.format(Locale.ROOT, "%.1f", 100 * ((Number) got.get("accuracy")).doubleValue());
      }
      List<Double> sorted = new ArrayList<>(speeds.get(row));
      Collections.sort(sorted);
      table.append(
          String.format(
              Locale.ROOT,
              "| %s | %.1f | %s | %s | %.0f |%n",
              row.label(),
              Files.size(file) / 1e6,
              perplexity,
              accuracy,
              sorted.get(sorted.size() / 2)));
    }
    System.out.print(table);
  }

  /** Runs a command of {@code fletch}; what it prints is one JSON object. */
  private static Map<String, Object> fletch(List<String> words)
      throws IOException, InterruptedException {
    List<String> command = new ArrayList<>(List.of("./fletch"));
    if (CompressionTable.class.getResource("/io/fletch/tools/Main.class") != null) {
      command.set(0, Path.of(System.getProperty("java.home"), "bin", "java").toString());
      command.addAll(List.of("--add-modules", "jdk.incubator.vector"));
      command.addAll(List.of("--enable-native-access=ALL-UNNAMED"));
      command.addAll(List.of("--sun-misc-unsafe-memory-access=allow", "-XX:+UseSerialGC"));
      command.addAll(List.of("-cp", System.getProperty("java.class.path")));
      command.add("io.fletch.tools.Main");
    }
    command.addAll(words);
    Process process =
        new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
    String out = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    int status = process.waitFor();
    if (status != 0) {
      throw new IOException("fletch " + String.join(" ", words) + ": status " + status);
    }
    System.out.println(out.strip());
    return JSON.std.mapFrom(out);
  }
}
