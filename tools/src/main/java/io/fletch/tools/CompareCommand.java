package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.sampling.DiffusionPresets;
import io.fletch.tools.QuestionSet.Question;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * {@code fletch compare}: what techniques cost in accuracy, in time, and in forwards of a diffusion
 * model or bytes of an autoregressive one.
 *
 * <p>All techniques answer a question before the next one is asked, in an order that turns from
 * question to question, so that a machine that gets slower or faster meanwhile treats them alike; a
 * speed-up is the median over questions of the ratio of both times.
 */
final class CompareCommand implements Command {
  /** What the others are compared with, by the kind of model. */
  private static final String REFERENCE = "reference";

  private static final String DENSE = "dense";

  @Override
  public String usage() {
    return "--model M --set S.jsonl [options]";
  }

  @Override
  public String description() {
    return """
    Answers the questions of a set with many techniques and prints a table: accuracy,
    answers that are the same as the baseline's, tokens per second, and what they cost.
    Of a diffusion model that is forwards, rows and rows with logits per answer, share
    of drafts used, and how many times fewer forwards and less time than the static
    baseline (reference). Without --technique these are all presets that the model
    allows and the techniques behind them, each on its own. Of an autoregressive model
    it is bytes of weights read and parameters activated per token, share of tokens
    routed to the model, and how many times fewer bytes and less time than the model
    alone (dense). Without --technique these are, with --small, the small model alone
    (small) and token routing at several thresholds (r2r, entropy, logu); with --ffn-skip,
    --lff or --drop-ffn these and what they are to be compared with. Perplexity is that of
    the set's answers. Times are compared question by question, interleaved.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Questions and output",
            List.of(
                Command.value("s", "set", "FILE", "the questions, as for eval"),
                Command.value(
                    "limit", "N", "only N questions, spread evenly over the set (default: all)"),
                Command.value("markdown", "FILE", "write the table there too"),
                Command.value(
                    "svg", "FILE", "write a picture there: accuracy against cost and time"),
                Command.value(
                    "n",
                    "max-tokens",
                    "N",
                    "most tokens of an autoregressive answer (default: up to the context)"),
                Command.flag("json", "print one JSON object"))),
        new Section(
            "Techniques",
            List.of(
                Command.value("technique", "T", "compare this one; repeatable (default: all)"),
                DiffusionFlags.lengthOption(),
                DiffusionFlags.blockOption(),
                DiffusionFlags.guideOption())),
        RoutingFlags.section(),
        UnitFlags.section(),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch compare --model demo-diffusion --set eval.jsonl --limit 100 --block 16",
        "fletch compare --model demo-diffusion --set eval.jsonl --technique \"freedave(depth=4)\""
            + " --technique \"freedave(depth=8)\" --markdown table.md --svg picture.svg",
        "fletch compare --model demo --small demo-small --set eval.jsonl --svg picture.svg",
        "fletch compare --model demo --small demo-small --set eval.jsonl --technique small"
            + " --technique \"r2r(threshold=0.2)\"");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    Path set = Path.of(arguments.required("set"));
    int limit = arguments.integer("limit", 0, 0, Integer.MAX_VALUE);
    List<Question> questions = QuestionSet.thinned(QuestionSet.read(set), limit);
    try (Model model = ModelFlags.open(arguments, io);
        Model guide = DiffusionFlags.openGuide(arguments, io);
        Model small = RoutingFlags.openSmall(arguments, io)) {
      boolean diffusion = model.diffusion().isPresent();
      check(arguments, model, diffusion);
      CostKind kind = diffusion ? CostKind.DIFFUSION : CostKind.AUTOREGRESSIVE;
      List<Contender> rows =
          diffusion
              ? diffusion(arguments, model, guide)
              : autoregressive(arguments, new ComparedTechniques.Setting(arguments, model, small));
      AtomicInteger done = new AtomicInteger();
      try (Progress _ =
          Progress.show(io, () -> done.get() + " of " + questions.size() + " questions")) {
        measure(rows, questions, done, diffusion ? null : model);
      }
      Contender baseline = rows.getFirst();
      String table = table(kind, rows, baseline);
      if (arguments.has("markdown")) {
        Files.writeString(Path.of(arguments.required("markdown")), table, StandardCharsets.UTF_8);
      }
      if (arguments.has("svg")) {
        String title =
            model.name() + ", " + set.getFileName() + ", " + questions.size() + " questions";
        Files.writeString(
            Path.of(arguments.required("svg")),
            CostPicture.svg(title, kind, rows, baseline),
            StandardCharsets.UTF_8);
      }
      if (arguments.has("json")) {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("model", ModelFlags.name(arguments));
        report.put("set", set.toString());
        report.put("questions", questions.size());
        report.put("techniques", rows.stream().map(r -> r.json(kind, baseline)).toList());
        io.println(Json.line(report));
      } else {
        io.print(table);
      }
    }
    return Cli.OK;
  }

  /** Refuses options of the other kind of model: they would change nothing. */
  private static void check(Arguments arguments, Model model, boolean diffusion) {
    List<String> others =
        diffusion
            ? List.of("small", "router", "router-threshold", "router-hold", "max-tokens")
            : List.of("length", "block", "guide");
    for (String option : others) {
      if (arguments.has(option)) {
        throw new UsageException(
            "--"
                + option
                + " does not apply: "
                + model.name()
                + (diffusion ? " is a diffusion model" : " is autoregressive"));
      }
    }
  }

  /** The baseline, then what is compared with it. */
  private static List<Contender> diffusion(Arguments arguments, Model model, Model guide) {
    List<String> techniques = new ArrayList<>(List.of(REFERENCE));
    if (arguments.has("technique")) {
      techniques.addAll(arguments.strings("technique"));
    } else {
      techniques.addAll(DiffusionPresets.comparison(model.diffusion().orElseThrow()));
      Optional.ofNullable(guide).ifPresent(_ -> techniques.add("guided"));
    }
    return techniques.stream()
        .distinct()
        .map(t ->
            new Contender(
                t,
                model,
                DiffusionFlags.with(t, arguments, model, guide, GenerationOptions.greedy())))
        .toList();
  }

  /** The model alone, then what is compared with it. */
  private static List<Contender> autoregressive(
      Arguments arguments, ComparedTechniques.Setting setting) {
    GenerationOptions greedy =
        GenerationOptions.greedy()
            .withMaxTokens(arguments.integer("max-tokens", 0, 0, Integer.MAX_VALUE))
            .withUnits(List.of());
    List<String> techniques = new ArrayList<>();
    if (arguments.has("technique")) {
      techniques.addAll(arguments.strings("technique"));
    } else {
      ComparedTechniques.FAMILIES.forEach(family -> techniques.addAll(family.names(setting)));
    }
    if (techniques.isEmpty()) {
      throw new UsageException(
          "there is nothing to compare the model with: see --small, --ffn-skip and --lff");
    }
    List<Contender> rows = new ArrayList<>();
    rows.add(new Contender(DENSE, setting.model(), greedy));
    for (String technique : new LinkedHashSet<>(techniques)) {
      if (!technique.equals(DENSE)) {
        ComparedTechniques.Way way = way(technique, setting, greedy);
        rows.add(new Contender(technique, way.model(), way.options()));
      }
    }
    return rows;
  }

  private static ComparedTechniques.Way way(
      String technique, ComparedTechniques.Setting setting, GenerationOptions greedy) {
    for (ComparedTechniques family : ComparedTechniques.FAMILIES) {
      Optional<ComparedTechniques.Way> way = family.way(technique, setting, greedy);
      if (way.isPresent()) {
        return way.get();
      }
    }
    List<String> known = new ArrayList<>(List.of(DENSE));
    ComparedTechniques.FAMILIES.forEach(family -> known.addAll(family.names(setting)));
    throw new UsageException(
        "--technique: expected=one of " + String.join(", ", known) + " actual=" + technique);
  }

  /**
   * Lets all answer.
   *
   * @param causal whose tokens the answers of the set are made of, to say how likely they are; null
   *     of diffusion models
   */
  private static void measure(
      List<Contender> rows, List<Question> questions, AtomicInteger done, Model causal) {
    List<Session> sessions = new ArrayList<>();
    Map<Model, Session> small = new LinkedHashMap<>();
    try {
      for (Contender row : rows) {
        sessions.add(row.model().newSession());
        // The first answer makes room and warms up; it does not count.
        answer(sessions.getLast(), questions.getFirst(), row.options());
      }
      List<Integer> order = new ArrayList<>();
      for (int i = 0; i < rows.size(); i++) {
        order.add(i);
      }
      for (Question question : questions) {
        for (int i : order) {
          long start = System.nanoTime();
          Generation.Result result = answer(sessions.get(i), question, rows.get(i).options());
          rows.get(i).add(question, result, (System.nanoTime() - start) / 1e9);
        }
        rows.forEach(row -> row.match(rows.getFirst()));
        if (causal != null) {
          int[] prompt = prompt(sessions.getFirst(), rows.getFirst());
          int[] wanted = causal.tokenizer().encode(question.answer());
          for (int i = 0; i < rows.size(); i++) {
            GenerationOptions options = rows.get(i).options();
            Session ofSmall =
                options
                    .routing()
                    .map(r -> small.computeIfAbsent(r.small(), Model::newSession))
                    .orElse(null);
            rows.get(i).perplexity().add(sessions.get(i), ofSmall, options, prompt, wanted);
          }
        }
        Collections.rotate(order, 1);
        done.incrementAndGet();
      }
    } finally {
      sessions.forEach(Session::close);
      small.values().forEach(Session::close);
    }
  }

  /** The tokens before the answer that a session gave last. */
  private static int[] prompt(Session session, Contender row) {
    return session.tokens().stream().limit(row.promptTokens()).mapToInt(i -> i).toArray();
  }

  private static Generation.Result answer(
      Session session, Question question, GenerationOptions options) {
    try (Generation generation =
        session.chat(List.of(Message.user(question.question())), options)) {
      return generation.result();
    }
  }

  /** A Markdown table whose columns are aligned as text too. */
  private static String table(CostKind kind, List<Contender> rows, Contender baseline) {
    List<List<String>> cells = new ArrayList<>();
    cells.add(kind.headings());
    rows.forEach(r -> cells.add(kind.cells(r, baseline)));
    int[] widths = new int[kind.headings().size()];
    for (List<String> line : cells) {
      for (int c = 0; c < widths.length; c++) {
        widths[c] = Math.max(widths[c], line.get(c).length());
      }
    }
    StringBuilder text = new StringBuilder();
    for (int l = 0; l < cells.size(); l++) {
      for (int c = 0; c < widths.length; c++) {
        String cell = cells.get(l).get(c);
        String space = " ".repeat(widths[c] - cell.length());
        text.append("| ").append(c == 0 ? cell + space : space + cell).append(' ');
      }
      text.append("|\n");
      if (l == 0) {
        for (int c = 0; c < widths.length; c++) {
          String dashes = "-".repeat(widths[c] + 1);
          text.append('|').append(c == 0 ? dashes + "-" : dashes + ":");
        }
        text.append("|\n");
      }
    }
    return text.toString();
  }
}
