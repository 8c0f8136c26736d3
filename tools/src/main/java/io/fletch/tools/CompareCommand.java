package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.DiffusionModel;
import io.fletch.sampling.DiffusionPresets;
import io.fletch.tools.QuestionSet.Question;
import io.fletch.tools.QuestionSet.Score;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * {@code fletch compare}: what techniques of a diffusion model cost, in forwards, time and
 * accuracy.
 *
 * <p>All techniques answer a question before the next one is asked, in an order that turns from
 * question to question, so that a machine that gets slower or faster meanwhile treats them alike; a
 * speed-up is the median over questions of the ratio of both times.
 */
final class CompareCommand implements Command {
  /** What the others are compared with. */
  private static final String BASELINE = "reference";

  /** A technique with what it has done so far. */
  static final class Row {
    private final String technique;
    private final GenerationOptions options;
    private final Score score = new Score();
    private final Counters counters = new Counters();
    private final List<Double> seconds = new ArrayList<>();
    private long tokens;
    private int same;
    private Generation.Result latest;

    Row(String technique, GenerationOptions options) {
      this.technique = technique;
      this.options = options;
    }

    void add(Question question, Generation.Result result, double time) {
      latest = result;
      score.add(question.isAnsweredBy(result));
      counters.add(result.counters());
      tokens += result.completionTokens();
      seconds.add(time);
    }

    String technique() {
      return technique;
    }

    double accuracy() {
      return score.accuracy();
    }

    double forwards() {
      return counters.perAnswer(counters.forwards());
    }

    double tokensPerSecond() {
      return tokens / seconds.stream().mapToDouble(Double::doubleValue).sum();
    }

    /** Forwards of the baseline per own forward. */
    double fewerForwards(Row baseline) {
      return baseline.forwards() / forwards();
    }

    /** Median over questions of the baseline's time per own time. */
    double speedUp(Row baseline) {
      double[] ratios = new double[seconds.size()];
      for (int i = 0; i < ratios.length; i++) {
        ratios[i] = baseline.seconds.get(i) / seconds.get(i);
      }
      Arrays.sort(ratios);
      int n = ratios.length;
      return (ratios[(n - 1) / 2] + ratios[n / 2]) / 2;
    }

    Map<String, Object> json(Row baseline) {
      Map<String, Object> json = new LinkedHashMap<>();
      json.put("technique", technique);
      json.put("correct", score.correct());
      json.put("accuracy", accuracy());
      json.put("same_as_baseline", same);
      counters.put(json);
      json.put("tokens", tokens);
      json.put("tokens_per_second", Json.rounded(tokensPerSecond()));
      json.put("fewer_forwards", Json.rounded(fewerForwards(baseline)));
      json.put("speed_up", Json.rounded(speedUp(baseline)));
      return json;
    }

    List<String> cells(Row baseline) {
      DecodeCounters sum = counters.sum();
      return List.of(
          "`" + technique + "`",
          Texts.format("%.1f", 100 * accuracy()),
          Texts.format("%d of %d", same, score.total()),
          Texts.format("%.1f", forwards()),
          Texts.format("%.0f", counters.perAnswer(sum.rows())),
          Texts.format("%.0f", counters.perAnswer(sum.headRows())),
          sum.drafted() == 0
              ? "-"
              : Texts.format("%.0f %%", 100.0 * sum.accepted() / sum.drafted()),
          Texts.format("%.1f", tokensPerSecond()),
          Texts.format("%.2f", fewerForwards(baseline)),
          Texts.format("%.2f", speedUp(baseline)));
    }
  }

  private static final List<String> HEADINGS =
      List.of(
          "technique",
          "accuracy %",
          "same answer",
          "forwards",
          "rows",
          "head rows",
          "drafts used",
          "tokens/s",
          "fewer forwards",
          "speed-up");

  @Override
  public String usage() {
    return "--model M --set S.jsonl [options]";
  }

  @Override
  public String description() {
    return """
    Answers the questions of a set with many techniques of a diffusion model and prints
    a table: accuracy, answers that are the same as the baseline's, forwards, rows and
    rows with logits per answer, share of drafts used, tokens per second, and how many
    times fewer forwards and less time than the static baseline (reference). Without
    --technique these are all presets that the model allows and the techniques behind
    them, each on its own. Times are compared question by question, interleaved.\
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
                    "svg", "FILE", "write a picture there: accuracy against forwards and time"),
                Command.flag("json", "print one JSON object"))),
        new Section(
            "Techniques",
            List.of(
                Command.value("technique", "T", "compare this one; repeatable (default: all)"),
                DiffusionFlags.lengthOption(),
                DiffusionFlags.blockOption(),
                DiffusionFlags.guideOption())),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch compare --model demo-diffusion --set eval.jsonl --limit 100 --block 16",
        "fletch compare --model demo-diffusion --set eval.jsonl --technique \"freedave(depth=4)\""
            + " --technique \"freedave(depth=8)\" --markdown table.md --svg picture.svg");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    Path set = Path.of(arguments.required("set"));
    int limit = arguments.integer("limit", 0, 0, Integer.MAX_VALUE);
    List<Question> questions = QuestionSet.thinned(QuestionSet.read(set), limit);
    try (Model model = ModelFlags.open(arguments, io);
        Model guide = DiffusionFlags.openGuide(arguments, io)) {
      List<Row> rows = rows(arguments, model, guide);
      AtomicInteger done = new AtomicInteger();
      try (Progress _ =
          Progress.show(io, () -> done.get() + " of " + questions.size() + " questions")) {
        measure(model, rows, questions, done);
      }
      Row baseline = rows.getFirst();
      String table = table(rows, baseline);
      if (arguments.has("markdown")) {
        Files.writeString(Path.of(arguments.required("markdown")), table, StandardCharsets.UTF_8);
      }
      if (arguments.has("svg")) {
        String title =
            model.name() + ", " + set.getFileName() + ", " + questions.size() + " questions";
        Files.writeString(
            Path.of(arguments.required("svg")),
            CostPicture.svg(title, rows, baseline),
            StandardCharsets.UTF_8);
      }
      if (arguments.has("json")) {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("model", ModelFlags.name(arguments));
        report.put("set", set.toString());
        report.put("questions", questions.size());
        report.put("techniques", rows.stream().map(r -> r.json(baseline)).toList());
        io.println(Json.line(report));
      } else {
        io.print(table);
      }
    }
    return Cli.OK;
  }

  /** The baseline, then what is compared with it. */
  private static List<Row> rows(Arguments arguments, Model model, Model guide) {
    DiffusionModel facts =
        model
            .diffusion()
            .orElseThrow(() ->
                new CommandException(
                    "model " + model.name() + " is autoregressive: there is nothing to compare"));
    List<String> techniques = new ArrayList<>(List.of(BASELINE));
    if (arguments.has("technique")) {
      techniques.addAll(arguments.strings("technique"));
    } else {
      techniques.addAll(DiffusionPresets.comparison(facts));
      Optional.ofNullable(guide).ifPresent(_ -> techniques.add("guided"));
    }
    return techniques.stream()
        .distinct()
        .map(t ->
            new Row(t, DiffusionFlags.with(t, arguments, model, guide, GenerationOptions.greedy())))
        .toList();
  }

  private static void measure(
      Model model, List<Row> rows, List<Question> questions, AtomicInteger done) {
    List<Session> sessions = new ArrayList<>();
    try {
      for (Row row : rows) {
        sessions.add(model.newSession());
        // The first answer makes room and warms up; it does not count.
        answer(sessions.getLast(), questions.getFirst(), row.options);
      }
      List<Integer> order = new ArrayList<>();
      for (int i = 0; i < rows.size(); i++) {
        order.add(i);
      }
      for (Question question : questions) {
        for (int i : order) {
          long start = System.nanoTime();
          Generation.Result result = answer(sessions.get(i), question, rows.get(i).options);
          rows.get(i).add(question, result, (System.nanoTime() - start) / 1e9);
        }
        String expected = rows.getFirst().latest.text();
        for (Row row : rows) {
          row.same += row.latest.text().equals(expected) ? 1 : 0;
        }
        Collections.rotate(order, 1);
        done.incrementAndGet();
      }
    } finally {
      sessions.forEach(Session::close);
    }
  }

  private static Generation.Result answer(
      Session session, Question question, GenerationOptions options) {
    try (Generation generation =
        session.chat(List.of(Message.user(question.question())), options)) {
      return generation.result();
    }
  }

  /** A Markdown table whose columns are aligned as text too. */
  private static String table(List<Row> rows, Row baseline) {
    List<List<String>> cells = new ArrayList<>();
    cells.add(HEADINGS);
    rows.forEach(r -> cells.add(r.cells(baseline)));
    int[] widths = new int[HEADINGS.size()];
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
