package io.fletch.bench;

import com.sun.management.OperatingSystemMXBean;
import de.kherud.llama.InferenceParameters;
import de.kherud.llama.LlamaModel;
import de.kherud.llama.LlamaOutput;
import de.kherud.llama.ModelParameters;
import de.kherud.llama.args.LogFormat;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import java.util.Locale;

/**
 * Question: how fast are Fletch and llama.cpp (through {@code de.kherud:llama}) on the same file
 * with the same number of threads?
 *
 * <p>Both engines live in this process and take turns, round by round, so that a noisy machine
 * disturbs both alike. A round prefills {@code pp} tokens and decodes {@code tg} more. Printed:
 * medians of tok/s by wall clock and by CPU time of the process (which leaves out what other
 * processes took), their spread, and the ratios. The first round of each is warm-up and not
 * counted.
 *
 * <p>Usage: {@code PeerBenchmark FILE THREADS PP TG ROUNDS [mapped|packed|auto] [f16|f32|q8_0]}
 */
public final class PeerBenchmark {
  private static final OperatingSystemMXBean OS =
      (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

  private PeerBenchmark() {}

  /** One round of one engine: nanoseconds by wall clock and by CPU. */
  private record Round(
      int prompt,
      int decoded,
      long prefillWall,
      long decodeWall,
      long prefillCpu,
      long decodeCpu) {}

  /** Runs the comparison. */
  public static void main(String[] args) {
    if (args.length < 5) {
      System.err.println("usage: PeerBenchmark FILE THREADS PP TG ROUNDS [mapped|packed|auto]");
      System.exit(2);
    }
    Path file = Path.of(args[0]);
    int threads = Integer.parseInt(args[1]);
    int pp = Integer.parseInt(args[2]);
    int tg = Integer.parseInt(args[3]);
    int rounds = Integer.parseInt(args[4]);
    String weights = args.length > 5 ? args[5] : "auto";
    int context = Math.max(512, pp + tg + 64);

    List<Round> ours = new ArrayList<>();
    List<Round> theirs = new ArrayList<>();
    LlamaModel.setLogger(LogFormat.TEXT, (level, message) -> {});
    ModelParameters parameters =
        new ModelParameters()
            .setModel(file.toString())
            .setThreads(threads)
            .setThreadsBatch(threads)
            .setCtxSize(context)
            .setBatchSize(512)
            .setUbatchSize(512);
    ModelOptions options =
        ModelOptions.defaults()
            .withThreads(threads)
            .withContextLength(context)
            .withWeights(ModelOptions.Weights.valueOf(weights.toUpperCase(Locale.ROOT)));
    long opened = System.nanoTime();
    try (Model model = Model.open(file, options);
        Session session = model.newSession()) {
      System.out.printf(
          Locale.ROOT,
          "fletch opened in %d ms: %s%n",
          (System.nanoTime() - opened) / 1_000_000,
          model.backendDescription());
      try (LlamaModel peer = new LlamaModel(parameters)) {
        for (int round = 0; round <= rounds; round++) {
          Round a = fletch(session, prompt(peer, pp, round), tg);
          Round b = peer(peer, prompt(peer, pp, round), tg);
          if (round > 0) {
            ours.add(a);
            theirs.add(b);
          }
        }
      }
      report(file, threads, ours, theirs, model.info().bytesPerToken());
    }
    System.exit(0); // the peer's native threads are not daemons
  }

  /**
   * A text of exactly {@code pp} tokens for the peer, different in every round so that no cache can
   * help.
   */
  private static int[] prompt(LlamaModel peer, int pp, int round) {
    StringBuilder text = new StringBuilder();
    for (int i = 0; peer.encode(text.toString()).length < pp; i++) {
      text.append((char) ('a' + (i * 7 + round) % 26)).append(i % 3 == 0 ? " house" : " and");
    }
    return peer.encode(text.toString());
  }

  private static Round fletch(Session session, int[] prompt, int tg) {
    session.truncate(0);
    GenerationOptions options =
        GenerationOptions.greedy().withMaxTokens(tg + 1).withIgnoreEnd(true);
    long wall = System.nanoTime();
    long cpu = OS.getProcessCpuTime();
    try (Generation generation = session.generate(prompt, options)) {
      int tokens = generation.next().ids().size();
      long firstWall = System.nanoTime();
      long firstCpu = OS.getProcessCpuTime();
      int first = tokens;
      while (generation.hasNext()) {
        tokens += generation.next().ids().size();
      }
      return new Round(
          prompt.length,
          tokens - first,
          firstWall - wall,
          System.nanoTime() - firstWall,
          firstCpu - cpu,
          OS.getProcessCpuTime() - firstCpu);
    }
  }

  private static Round peer(LlamaModel peer, int[] prompt, int tg) {
    InferenceParameters parameters =
        new InferenceParameters(peer.decode(prompt))
            .setTemperature(0)
            .setNPredict(tg + 1)
            .setIgnoreEos(true)
            .setCachePrompt(false);
    long wall = System.nanoTime();
    long cpu = OS.getProcessCpuTime();
    Iterator<LlamaOutput> outputs = peer.generate(parameters).iterator();
    outputs.next();
    long firstWall = System.nanoTime();
    long firstCpu = OS.getProcessCpuTime();
    int tokens = 0;
    while (outputs.hasNext()) {
      outputs.next();
      tokens++;
    }
    return new Round(
        prompt.length,
        tokens,
        firstWall - wall,
        System.nanoTime() - firstWall,
        firstCpu - cpu,
        OS.getProcessCpuTime() - firstCpu);
  }

  private static void report(
      Path file, int threads, List<Round> ours, List<Round> theirs, long bytesPerToken) {
    System.out.printf(
        Locale.ROOT,
        "%s, %d thread(s), pp%d tg%d, %d rounds%n",
        file.getFileName(),
        threads,
        ours.getFirst().prompt(),
        ours.getFirst().decoded(),
        ours.size());
    line("prefill wall", ours, theirs, r -> r.prompt() * 1e9 / r.prefillWall());
    line("decode  wall", ours, theirs, r -> r.decoded() * 1e9 / r.decodeWall());
    line("prefill cpu ", ours, theirs, r -> threads * r.prompt() * 1e9 / r.prefillCpu());
    double decode =
        line("decode  cpu ", ours, theirs, r -> threads * r.decoded() * 1e9 / r.decodeCpu());
    System.out.printf(
        Locale.ROOT,
        "fletch decode reads %.1f GB/s of weights (CPU time)%n",
        decode * bytesPerToken / 1e9);
  }

  private interface Rate {
    double of(Round round);
  }

  private static double line(String what, List<Round> ours, List<Round> theirs, Rate rate) {
    double[] a = ours.stream().mapToDouble(rate::of).sorted().toArray();
    double[] b = theirs.stream().mapToDouble(rate::of).sorted().toArray();
    double[] ratios = new double[a.length];
    for (int i = 0; i < ratios.length; i++) {
      ratios[i] = rate.of(ours.get(i)) / rate.of(theirs.get(i));
    }
    Arrays.sort(ratios);
    System.out.printf(
        Locale.ROOT,
        "%s  fletch %8.2f (%.2f-%.2f)  llama.cpp %8.2f (%.2f-%.2f) tok/s  ratio %.2f (%.2f-%.2f)%n",
        what,
        median(a),
        a[0],
        a[a.length - 1],
        median(b),
        b[0],
        b[b.length - 1],
        median(ratios),
        ratios[0],
        ratios[ratios.length - 1]);
    return median(a);
  }

  private static double median(double[] sorted) {
    int n = sorted.length;
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  }
}
