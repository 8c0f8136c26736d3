package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.ffm.Affinity;
import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.ffm.x86.ReadBandwidth;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.TokenRouter;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BrokenBarrierException;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.random.RandomGenerator;
import java.util.random.RandomGeneratorFactory;

/**
 * {@code fletch bench}: prefill and decode speed in the manner of llama-bench, with the memory
 * traffic that explains the latter.
 */
final class BenchCommand implements Command {
  /** Least time of warm-up: emitted kernels need none, but the code around them is compiled. */
  private static final long WARM_UP_NANOS = 1_000_000_000L;

  /** Rates of the repetitions, sorted. */
  private record Samples(double[] sorted) {
    static Samples of(List<Double> values) {
      return new Samples(values.stream().mapToDouble(Double::doubleValue).sorted().toArray());
    }

    double median() {
      int n = sorted.length;
      return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
    }

    double min() {
      return sorted[0];
    }

    double max() {
      return sorted[sorted.length - 1];
    }

    void put(Map<String, Object> report, String name) {
      report.put(name + "_tps", Json.rounded(median()));
      report.put(name + "_tps_min", Json.rounded(min()));
      report.put(name + "_tps_max", Json.rounded(max()));
      report.put(name + "_tps_samples", Arrays.stream(sorted).mapToObj(Json::rounded).toList());
    }

    String line() {
      return Texts.format("%10.1f tok/s  (%.1f to %.1f)", median(), min(), max());
    }
  }

  @Override
  public String usage() {
    return "[options]";
  }

  @Override
  public String description() {
    return """
    Measures prefill (a prompt of random ids, from an empty cache) and decode (greedy,
    after that prompt, its first token not counted): medians and ranges over the
    repetitions, after a warm-up of at least one run and one second. The share compares
    the weights that decoding reads with the read bandwidth of as many threads, measured
    in the same process over a buffer larger than the caches; with --device gpu with the
    bandwidth of a copy on the device, and every kernel of a decode step is timed by
    itself. Of a diffusion model whole
    answers are measured, with --technique, and what they cost is counted. With --small
    whole answers are measured too: with token routing, and of each model alone, in turn,
    and how much faster routing is next to how many fewer bytes it reads; with units that
    rest likewise, next to the model with all units. Weights are
    packed before anything is measured, unless --weights says otherwise.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Measurement",
            List.of(
                Command.value("p", "prompt-tokens", "N", "tokens of the prompt (default: 128)"),
                Command.value("n", "gen-tokens", "N", "tokens decoded after it (default: 64)"),
                Command.value("r", "repetitions", "N", "measured runs (default: 5)"),
                Command.value(
                    "sessions",
                    "N",
                    "also decode in N sessions at once, and say how much more that gives in all"),
                Command.value(
                    "routed-share",
                    "S",
                    "with --small: route this share of the tokens, evenly, whatever a router says"),
                Command.flag("json", "print one JSON object"))),
        DiffusionFlags.section(),
        UnitFlags.section(),
        RoutingFlags.section(),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of("fletch bench --model F -p 128 -n 64 -t 1 --json", "fletch bench -r 9");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    int promptTokens = arguments.integer("prompt-tokens", 128, 0, 1 << 24);
    int genTokens = arguments.integer("gen-tokens", 64, 0, 1 << 24);
    int repetitions = arguments.integer("repetitions", 5, 1, 10_000);
    if (promptTokens == 0 && genTokens == 0) {
      throw new UsageException("nothing to measure: -p and -n are both 0");
    }
    // Decoding needs something to start from, and its first token comes out of the prompt.
    int prompt = Math.max(1, promptTokens);
    ModelOptions options = ModelFlags.options(arguments);
    if (options.contextLength() == 0) {
      options = options.withContextLength(prompt + genTokens + 1);
    }
    if (!arguments.has("weights")) {
      // What a first start does while it packs is not the speed of the model.
      options = options.withWeights(ModelOptions.Weights.PACKED);
    }
    long loadStart = System.nanoTime();
    try (Model model = ModelFlags.open(arguments, io, options)) {
      long loadNanos = System.nanoTime() - loadStart;
      checkRouting(arguments, model);
      int[] ids = randomIds(model, prompt);
      if (model.diffusion().isPresent()) {
        if (genTokens == 0 || arguments.has("sessions")) {
          throw new UsageException(
              "a diffusion model is measured by whole answers: -n and no --sessions");
        }
        diffusion(arguments, io, model, loadNanos, ids, repetitions);
        return Cli.OK;
      }
      if (arguments.has("technique")) {
        throw new UsageException("--technique: " + model.name() + " is autoregressive");
      }
      if (arguments.has("small")) {
        routing(arguments, io, model, ids, genTokens, repetitions);
        return Cli.OK;
      }
      if (!options.units().isEmpty()) {
        resting(arguments, io, model, options, ids, genTokens, repetitions);
        return Cli.OK;
      }
      GenerationOptions generation =
          GenerationOptions.greedy().withMaxTokens(genTokens + 1).withIgnoreEnd(true);
      List<Double> prefill = new ArrayList<>();
      List<Double> decode = new ArrayList<>();
      try (Session session = model.newSession();
          Progress _ = Progress.show(io, "measuring")) {
        long start = System.nanoTime();
        do {
          once(session, ids, generation);
        } while (System.nanoTime() - start < WARM_UP_NANOS);
        for (int i = 0; i < repetitions; i++) {
          Generation.Result result = once(session, ids, generation);
          prefill.add(Speed.prefill(result));
          decode.add(Speed.decode(result));
        }
      }
      int sessions = arguments.integer("sessions", 1, 1, 256);
      List<Double> together = new ArrayList<>();
      if (sessions > 1 && genTokens > 0) {
        try (Progress _ = Progress.show(io, "measuring " + sessions + " sessions")) {
          for (int i = 0; i <= repetitions; i++) {
            double speed = together(model, sessions, ids, generation);
            if (i > 0) {
              together.add(speed);
            }
          }
        }
      }
      int threads = options.threads() > 0 ? options.threads() : Affinity.physicalCores();
      List<Model.KernelTime> kernels;
      try (Progress _ = Progress.show(io, "measuring the kernels")) {
        kernels = model.kernelTimes(Math.min(prompt + genTokens, model.info().contextLength()));
      }
      Bandwidth bandwidth;
      try (Progress _ = Progress.show(io, "measuring the bandwidth")) {
        bandwidth = kernels.isEmpty() ? Bandwidth.ofCpu(threads) : Bandwidth.ofGpu();
      }
      report(
          arguments.has("json"),
          io,
          model,
          arguments,
          threads,
          loadNanos,
          promptTokens == 0 ? null : Samples.of(prefill),
          promptTokens,
          genTokens == 0 ? null : Samples.of(decode),
          genTokens,
          together.isEmpty() ? null : Samples.of(together),
          sessions,
          bandwidth,
          kernels);
      return Cli.OK;
    }
  }

  /** Routes a share of the tokens, evenly: what routing costs does not depend on why it does. */
  private static final class EvenRouter implements TokenRouter {
    private final double share;
    private double due;

    EvenRouter(double share) {
      this.share = share;
    }

    @Override
    public double score(float[] logits, int vocabulary, int candidate) {
      due += share;
      if (due < 1) {
        return 0;
      }
      due -= 1;
      return 1;
    }

    @Override
    public String name() {
      return "even";
    }

    @Override
    public TokenRouter copy() {
      return new EvenRouter(share);
    }
  }

  /** Who answers in turn with others, how, and what it took. */
  private record Way(
      String name,
      Session session,
      GenerationOptions options,
      List<Double> seconds,
      Counters counters) {
    Way(String name, Session session, GenerationOptions options) {
      this(name, session, options, new ArrayList<>(), new Counters());
    }

    double bytes() {
      return counters.sum().weights().bytesPerToken();
    }
  }

  /**
   * Whole answers with token routing, of the model alone and of the small one alone, in turn: how
   * fast, and how much faster by the bytes of weights that they read.
   */
  private static void routing(
      Arguments arguments, Io io, Model model, int[] ids, int genTokens, int repetitions) {
    checkWholeAnswers(arguments, genTokens, "token routing");
    GenerationOptions greedy =
        GenerationOptions.greedy().withMaxTokens(genTokens).withIgnoreEnd(true);
    try (Model small = RoutingFlags.openSmall(arguments, io)) {
      GenerationOptions routed = greedy.withRouting(benched(arguments, model, small));
      try (Session dense = model.newSession();
          Session little = small.newSession();
          Session both = model.newSession()) {
        List<Way> ways =
            List.of(
                new Way("dense", dense, greedy),
                new Way("small", little, greedy),
                new Way("routed", both, routed));
        inTurn(io, ways, ids, repetitions);
        compare(arguments, io, model, ways, ids, genTokens);
      }
    }
  }

  /**
   * Whole answers with units that rest, and of all units by a model of its own, whose graph decides
   * nothing, in turn.
   */
  private static void resting(
      Arguments arguments,
      Io io,
      Model model,
      ModelOptions options,
      int[] ids,
      int genTokens,
      int repetitions) {
    checkWholeAnswers(arguments, genTokens, "what resting units save");
    GenerationOptions greedy =
        GenerationOptions.greedy().withMaxTokens(genTokens).withIgnoreEnd(true);
    try (Model plain = ModelFlags.open(arguments, io, options.withUnits(List.of()));
        Session dense = plain.newSession();
        Session rests = model.newSession()) {
      List<Way> ways = List.of(new Way("dense", dense, greedy), new Way("resting", rests, greedy));
      inTurn(io, ways, ids, repetitions);
      compare(arguments, io, model, ways, ids, genTokens);
    }
  }

  private static void checkWholeAnswers(Arguments arguments, int genTokens, String what) {
    if (genTokens == 0 || arguments.has("sessions")) {
      throw new UsageException(what + " is measured by whole answers: -n and no --sessions");
    }
  }

  private static void inTurn(Io io, List<Way> ways, int[] ids, int repetitions) {
    try (Progress _ = Progress.show(io, "measuring")) {
      for (int i = -1; i < repetitions; i++) {
        // Another first token, so that the prompt runs anew in the small model of a pair too.
        int[] prompt = ids.clone();
        prompt[0] = ids[(i + 2) % ids.length];
        for (Way way : ways) {
          long start = System.nanoTime();
          Generation.Result result = once(way.session(), prompt, way.options());
          double seconds = (System.nanoTime() - start) / 1e9;
          // The first answers warm up.
          if (i >= 0) {
            way.seconds().add(seconds);
            way.counters().add(result.counters());
          }
        }
      }
    }
  }

  /** Reports the last of the ways next to the first one. */
  private static void compare(
      Arguments arguments, Io io, Model model, List<Way> ways, int[] ids, int genTokens) {
    Way first = ways.getFirst();
    Way last = ways.getLast();
    List<Double> ratios = new ArrayList<>();
    for (int i = 0; i < first.seconds().size(); i++) {
      ratios.add(first.seconds().get(i) / last.seconds().get(i));
    }
    double faster = Samples.of(ratios).median();
    double fewer = first.bytes() / last.bytes();
    boolean json = arguments.has("json");
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("model", ModelFlags.name(arguments));
    arguments.string("small").ifPresent(small -> report.put("small", small));
    report.put("backend", model.backendDescription());
    report.put("prompt_tokens", ids.length);
    report.put("gen_tokens", genTokens);
    for (Way way : ways) {
      Samples samples = Samples.of(way.seconds().stream().map(t -> genTokens / t).toList());
      samples.put(report, way.name());
      report.put(way.name() + "_weight_bytes_per_token", Json.rounded(way.bytes()));
      if (!json) {
        io.printf(
            "%-7s %s, %s of weights per token",
            way.name(), samples.line(), Texts.bytes(Math.round(way.bytes())));
      }
    }
    DecodeCounters sum = last.counters().sum();
    boolean units = sum.units().units() > 0;
    if (units) {
      report.put("units", sum.units().units());
      report.put("units_skipped", sum.units().skipped());
      report.put("units_approximated", sum.units().approximated());
    } else {
      Counters.putRouting(sum, report);
    }
    report.put("fewer_bytes", Json.rounded(fewer));
    report.put("speed_up", Json.rounded(faster));
    if (json) {
      io.println(Json.line(report));
      return;
    }
    io.println(
        units
            ? Texts.format(
                "%.1f %% of all units skipped, %.1f %% approximated",
                100.0 * sum.units().skipped() / sum.units().units(),
                100.0 * sum.units().approximated() / sum.units().units())
            : Counters.routing(sum));
    io.printf(
        "%.2f times fewer bytes than the model alone, %.2f times faster (answers of %d tokens after"
            + " a prompt of %d)",
        fewer, faster, genTokens, ids.length);
  }

  private static Routing benched(Arguments arguments, Model model, Model small) {
    if (!arguments.has("routed-share")) {
      return RoutingFlags.routing(arguments, model, small);
    }
    if (arguments.has("router")
        || arguments.has("router-threshold")
        || arguments.has("router-hold")) {
      throw new UsageException(
          "--routed-share leaves --router, --router-threshold and --router-hold out");
    }
    return new Routing(small, new EvenRouter(arguments.real("routed-share", 1, 0, 1)), 0.5);
  }

  /** Refuses options that would change nothing. */
  private static void checkRouting(Arguments arguments, Model model) {
    for (String option :
        List.of(
            "small",
            "router",
            "router-threshold",
            "router-hold",
            "small-device",
            "small-threads",
            "small-kv",
            "routed-share")) {
      if (arguments.has(option) && model.diffusion().isPresent()) {
        throw new UsageException("--" + option + ": " + model.name() + " is a diffusion model");
      }
      if (arguments.has(option) && !arguments.has("small")) {
        throw new UsageException("--" + option + " needs --small");
      }
    }
  }

  /** Whole answers of a diffusion model: how fast, and what they cost. */
  private static void diffusion(
      Arguments arguments, Io io, Model model, long loadNanos, int[] ids, int repetitions) {
    String technique = arguments.string("technique").orElse("reference");
    Counters counters = new Counters();
    List<Double> rates = new ArrayList<>();
    int tokens = DiffusionFlags.length(arguments);
    try (Model guide = DiffusionFlags.openGuide(arguments, io);
        Session session = model.newSession();
        Progress _ = Progress.show(io, "measuring")) {
      GenerationOptions options =
          DiffusionFlags.with(
              technique,
              arguments,
              model,
              guide,
              GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(tokens));
      once(session, ids, options);
      for (int i = 0; i < repetitions; i++) {
        long start = System.nanoTime();
        Generation.Result result = once(session, ids, options);
        rates.add(tokens * 1e9 / (System.nanoTime() - start));
        counters.add(result.counters());
      }
    }
    Samples samples = Samples.of(rates);
    if (arguments.has("json")) {
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("model", ModelFlags.name(arguments));
      report.put("architecture", model.info().architecture());
      report.put("type", model.info().mainType());
      report.put("backend", model.backendDescription());
      report.put("load_seconds", Json.rounded(loadNanos / 1e9));
      report.put("technique", technique);
      report.put("prompt_tokens", ids.length);
      report.put("gen_tokens", tokens);
      report.put("answers", repetitions);
      samples.put(report, "answer");
      counters.put(report);
      io.println(Json.line(report));
      return;
    }
    io.println(model.backendDescription());
    io.printf("%s: answers of %d tokens %s", technique, tokens, samples.line());
    io.printf(
        "per answer: %.1f forwards, %.1f rows, %.1f rows with logits, %s read",
        counters.perAnswer(counters.sum().forwards()),
        counters.perAnswer(counters.sum().rows()),
        counters.perAnswer(counters.sum().headRows()),
        Texts.bytes((long) counters.perAnswer(counters.sum().bytesRead())));
    if (counters.sum().drafted() > 0) {
      io.printf(
          "drafts: %d proposed, %d accepted", counters.sum().drafted(), counters.sum().accepted());
    }
  }

  /** Tokens per second of all sessions, from the moment that all have their first token. */
  private static double together(Model model, int sessions, int[] ids, GenerationOptions options) {
    CyclicBarrier start = new CyclicBarrier(sessions + 1);
    List<Future<Integer>> running = new ArrayList<>();
    try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
      for (int i = 0; i < sessions; i++) {
        running.add(
            threads.submit(() -> {
              try (Session session = model.newSession();
                  Generation generation = session.generate(ids, options)) {
                generation.next();
                start.await();
                return generation.result().completionTokens() - 1;
              }
            }));
      }
      start.await();
      long begin = System.nanoTime();
      int tokens = 0;
      for (Future<Integer> one : running) {
        tokens += one.get();
      }
      return tokens * 1e9 / (System.nanoTime() - begin);
    } catch (InterruptedException | BrokenBarrierException e) {
      throw new CommandException("interrupted: " + e);
    } catch (ExecutionException e) {
      throw new CommandException("a session failed: " + e.getCause());
    }
  }

  private static Generation.Result once(Session session, int[] ids, GenerationOptions options) {
    session.truncate(0);
    try (Generation generation = session.generate(ids, options)) {
      return generation.result();
    }
  }

  /** Ordinary tokens: special ones could be treated specially. */
  private static int[] randomIds(Model model, int count) {
    RandomGenerator random = RandomGeneratorFactory.of("L64X128MixRandom").create(1);
    int[] ids = new int[count];
    for (int i = 0; i < count; i++) {
      do {
        ids[i] = random.nextInt(model.info().vocabularySize());
      } while (ids[i] < model.tokenizer().vocabularySize() && model.tokenizer().isSpecial(ids[i]));
    }
    return ids;
  }

  private static void report(
      boolean json,
      Io io,
      Model model,
      Arguments arguments,
      int threads,
      long loadNanos,
      Samples prefill,
      int promptTokens,
      Samples decode,
      int genTokens,
      Samples together,
      int sessions,
      Bandwidth bandwidth,
      List<Model.KernelTime> kernels) {
    Model.Info info = model.info();
    double gbps = decode == null ? Double.NaN : decode.median() * info.bytesPerToken() / 1e9;
    double share = gbps / bandwidth.gigabytesPerSecond();
    if (json) {
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("model", ModelFlags.name(arguments));
      report.put("architecture", info.architecture());
      report.put("type", info.mainType());
      report.put("parameters", info.parameters());
      report.put("model_bytes", info.weightBytes());
      report.put("model_bytes_per_token", info.bytesPerToken());
      report.put("backend", model.backendDescription());
      report.put("threads", threads);
      report.put("load_seconds", Json.rounded(loadNanos / 1e9));
      if (prefill != null) {
        report.put("prompt_tokens", promptTokens);
        prefill.put(report, "prefill");
      }
      if (decode != null) {
        report.put("gen_tokens", genTokens);
        decode.put(report, "decode");
        report.put("decode_gbps", Json.rounded(gbps));
        if (together != null) {
          report.put("sessions", sessions);
          together.put(report, "together");
          report.put("together_ratio", Json.rounded(together.median() / decode.median()));
        }
      }
      report.put(bandwidth.key(), Json.rounded(bandwidth.gigabytesPerSecond()));
      if (decode != null) {
        report.put("bandwidth_share", Json.rounded(share));
      }
      putKernels(kernels, report);
      io.println(Json.line(report));
      return;
    }
    io.printf(
        "%s: %s, %s parameters, %s %s, %s read per token",
        ModelFlags.name(arguments),
        info.architecture(),
        Texts.count(info.parameters()),
        Texts.bytes(info.weightBytes()),
        info.mainType(),
        Texts.bytes(info.bytesPerToken()));
    io.println(model.backendDescription());
    if (prefill != null) {
      io.printf("prefill %6d %s", promptTokens, prefill.line());
    }
    if (decode != null) {
      io.printf("decode  %6d %s", genTokens, decode.line());
      if (together != null) {
        io.printf(
            "sessions %5d %s, %.2f times one session",
            sessions, together.line(), together.median() / decode.median());
      }
      io.printf(
          "weights %6.2f GB/s, %.0f %% of the %.1f GB/s that %s",
          gbps, 100 * share, bandwidth.gigabytesPerSecond(), bandwidth.whose());
      if (info.bytesPerToken() < bandwidth.cacheBytes()) {
        io.printf(
            "        (these weights fit into the %s of cache, so memory is not the limit)",
            Texts.bytes(bandwidth.cacheBytes()));
      }
    }
    if (!kernels.isEmpty()) {
      io.printf(
          "a token is one graph launch of %d kernels; each kernel by itself:", launches(kernels));
      io.println("   launches         us      share       GB/s  kernel");
      double all = micros(kernels);
      for (Model.KernelTime k : byKind(kernels)) {
        io.printf(
            "%11d %10.1f %8.1f %% %10s  %s",
            k.launches(),
            k.micros(),
            100 * k.micros() / all,
            k.weightBytes() == 0 ? "-" : Texts.format("%.1f", k.weightBytes() / k.micros() / 1e3),
            k.kernel());
      }
      io.printf("%11d %10.1f %8.1f %%", launches(kernels), all, 100.0);
    }
  }

  /** What decoding is compared with: the memory of the processor or that of the GPU. */
  private record Bandwidth(double gigabytesPerSecond, long cacheBytes, String key, String whose) {
    private static final long COPY = 256L << 20;

    /** Several, because a shared machine is not quiet. */
    private static final int PASSES = 12;

    static Bandwidth ofCpu(int threads) {
      String whose = threads == 1 ? "1 thread reads here" : threads + " threads read here";
      try (ReadBandwidth read = new ReadBandwidth(threads, ReadBandwidth.workingSet(4))) {
        return new Bandwidth(
            read.gigabytesPerSecond(PASSES),
            CpuFeatures.host().l3Bytes(),
            "read_bandwidth_gbps",
            whose);
      }
    }

    static Bandwidth ofGpu() {
      DeviceCopy copy = DeviceCopy.measure(CudaDevices.find().first(), COPY);
      return new Bandwidth(
          copy.gigabytesPerSecond(), 0, "device_copy_gbps", "a copy on the device moves");
    }
  }

  /** Kernels that differ in shapes alone, added up; their names end in a number. */
  private static List<Model.KernelTime> byKind(List<Model.KernelTime> kernels) {
    Map<String, Model.KernelTime> kinds = new LinkedHashMap<>();
    for (Model.KernelTime k : kernels) {
      String kind = k.kernel().replaceFirst("_\\d+$", "");
      kinds.merge(
          kind,
          new Model.KernelTime(kind, k.launches(), k.micros(), k.weightBytes()),
          (a, b) ->
              new Model.KernelTime(
                  kind,
                  a.launches() + b.launches(),
                  a.micros() + b.micros(),
                  a.weightBytes() + b.weightBytes()));
    }
    return kinds.values().stream()
        .sorted(Comparator.comparingDouble(Model.KernelTime::micros).reversed())
        .toList();
  }

  private static int launches(List<Model.KernelTime> kernels) {
    return kernels.stream().mapToInt(Model.KernelTime::launches).sum();
  }

  private static double micros(List<Model.KernelTime> kernels) {
    return kernels.stream().mapToDouble(Model.KernelTime::micros).sum();
  }

  private static void putKernels(List<Model.KernelTime> kernels, Map<String, Object> report) {
    if (kernels.isEmpty()) {
      return;
    }
    report.put("graph_launches_per_token", 1);
    report.put("kernels_per_token", launches(kernels));
    report.put("kernel_micros", Json.rounded(micros(kernels)));
    List<Object> list = new ArrayList<>();
    for (Model.KernelTime k : kernels) {
      Map<String, Object> one = new LinkedHashMap<>();
      one.put("kernel", k.kernel());
      one.put("launches", k.launches());
      one.put("micros", Json.rounded(k.micros()));
      one.put("weight_bytes", k.weightBytes());
      list.add(one);
    }
    report.put("kernels", list);
  }
}
