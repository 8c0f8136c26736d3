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
import io.fletch.ffm.x86.ReadBandwidth;
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
 * disturbs both alike. A round prefills {@code pp} tokens and decodes {@code tg} more, then reads
 * memory with as many threads as fast as they can ({@link ReadBandwidth}). Printed: medians of
 * tok/s by wall clock and by CPU time of the process (which leaves out what other processes took),
 * their spread, the ratios, the share of the read bandwidth that decoding uses, and a row of a
 * Markdown table. Rounds before weights have taken their final place are warm-up and not counted;
 * there is at least one.
 *
 * <p>Usage: {@code PeerBenchmark FILE THREADS PP TG ROUNDS [mapped|packed|auto]}
 */
public final class PeerBenchmark {
  private static final OperatingSystemMXBean OS =
      (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

  /** Rounds that weights may take to be packed and copied. */
  private static final int MOST_WARM_UPS = 5;

  private PeerBenchmark() {}

  /** One round of one engine: nanoseconds by wall clock and by CPU. */
  private record Round(
      int prompt, int decoded, long prefillWall, long decodeWall, long prefillCpu, long decodeCpu) {
    double prefillRate() {
      return prompt * 1e9 / prefillWall;
    }

    double decodeRate() {
      return decoded * 1e9 / decodeWall;
    }
  }

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
      List<Double> reads = new ArrayList<>();
      try (LlamaModel peer = new LlamaModel(parameters);
          ReadBandwidth reader = new ReadBandwidth(threads)) {
        warmUp(model, session, peer, pp, tg);
        for (int round = 1; round <= rounds; round++) {
          ours.add(fletch(session, prompt(peer, pp, round), tg));
          theirs.add(peer(peer, prompt(peer, pp, round), tg));
          reads.add(reader.gigabytesPerSecond());
        }
        System.out.println(model.backendDescription());
      }
      report(file, threads, ours, theirs, reads, model.info().bytesPerToken());
    }
    System.exit(0); // the peer's native threads are not daemons
  }

  /** Rounds that do not count, until the weights lie where they will stay. */
  private static void warmUp(Model model, Session session, LlamaModel peer, int pp, int tg) {
    String before;
    int round = 0;
    do {
      before = model.backendDescription();
      fletch(session, prompt(peer, pp, 0), tg);
      peer(peer, prompt(peer, pp, 0), tg);
    } while (++round < MOST_WARM_UPS && !before.equals(model.backendDescription()));
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
      Path file,
      int threads,
      List<Round> ours,
      List<Round> theirs,
      List<Double> reads,
      long bytesPerToken) {
    System.out.printf(
        Locale.ROOT,
        "%s, %d thread(s), pp%d tg%d, %d rounds%n",
        file.getFileName(),
        threads,
        ours.getFirst().prompt(),
        ours.getFirst().decoded(),
        ours.size());
    line("prefill wall", ours, theirs, Round::prefillRate);
    line("decode  wall", ours, theirs, Round::decodeRate);
    line("prefill cpu ", ours, theirs, r -> threads * r.prompt() * 1e9 / r.prefillCpu());
    line("decode  cpu ", ours, theirs, r -> threads * r.decoded() * 1e9 / r.decodeCpu());
    double gigabytes = median(ours, Round::decodeRate) * bytesPerToken / 1e9;
    double[] shares = new double[ours.size()];
    for (int i = 0; i < shares.length; i++) {
      shares[i] = ours.get(i).decodeRate() * bytesPerToken / 1e9 / reads.get(i);
    }
    Arrays.sort(shares);
    double read = median(reads.stream().mapToDouble(Double::doubleValue).sorted().toArray());
    System.out.printf(
        Locale.ROOT,
        "fletch decode reads %.1f GB/s of weights, the read loop %.1f: %.0f %% (%.0f-%.0f)%n",
        gigabytes,
        read,
        100 * median(shares),
        100 * shares[0],
        100 * shares[shares.length - 1]);
    System.out.printf(
        Locale.ROOT,
        "| %s | %d | %d | %.1f / %.1f | %s | %.1f / %.1f | %s | %.1f of %.1f GB/s, %.0f %% |%n",
        file.getFileName().toString().replaceAll("llama-3.2-1b-|\\.gguf", ""),
        threads,
        ours.getFirst().prompt(),
        median(ours, Round::prefillRate),
        median(theirs, Round::prefillRate),
        spread(ratios(ours, theirs, Round::prefillRate)),
        median(ours, Round::decodeRate),
        median(theirs, Round::decodeRate),
        spread(ratios(ours, theirs, Round::decodeRate)),
        gigabytes,
        read,
        100 * median(shares));
  }

  /** Ratios of the rounds, sorted. */
  private static double[] ratios(List<Round> ours, List<Round> theirs, Rate rate) {
    double[] ratios = new double[ours.size()];
    for (int i = 0; i < ratios.length; i++) {
      ratios[i] = rate.of(ours.get(i)) / rate.of(theirs.get(i));
    }
    Arrays.sort(ratios);
    return ratios;
  }

  private static String spread(double[] sorted) {
    return String.format(
        Locale.ROOT, "%.2f (%.2f-%.2f)", median(sorted), sorted[0], sorted[sorted.length - 1]);
  }

  private static double median(List<Round> rounds, Rate rate) {
    return median(rounds.stream().mapToDouble(rate::of).sorted().toArray());
  }

  private interface Rate {
    double of(Round round);
  }

  private static void line(String what, List<Round> ours, List<Round> theirs, Rate rate) {
    double[] a = ours.stream().mapToDouble(rate::of).sorted().toArray();
    double[] b = theirs.stream().mapToDouble(rate::of).sorted().toArray();
    System.out.printf(
        Locale.ROOT,
        "%s  fletch %8.2f (%.2f-%.2f)  llama.cpp %8.2f (%.2f-%.2f) tok/s  ratio %s%n",
        what,
        median(a),
        a[0],
        a[a.length - 1],
        median(b),
        b[0],
        b[b.length - 1],
        spread(ratios(ours, theirs, rate)));
  }

  private static double median(double[] sorted) {
    int n = sorted.length;
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  }
}
