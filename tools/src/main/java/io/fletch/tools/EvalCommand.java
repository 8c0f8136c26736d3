package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.tools.QuestionSet.Question;
import io.fletch.tools.QuestionSet.Score;
import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;

/** {@code fletch eval}: accuracy on questions with one right answer each. */
final class EvalCommand implements Command {
  @Override
  public String usage() {
    return "--set S.jsonl [options]";
  }

  @Override
  public String description() {
    return """
    Answers every question of a set greedily (chat template, one turn) and compares the
    whole answer, up to the end of the turn, with the one given. A set has one JSON
    object per line with the texts task, question and answer.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Questions and output",
            List.of(
                Command.value("s", "set", "FILE", "the questions"),
                Command.value(
                    "limit", "N", "only N questions, spread evenly over the set (default: all)"),
                Command.value(
                    "n",
                    "max-tokens",
                    "N",
                    "most tokens of an answer (default: up to the context)"),
                Command.flag("json", "print one JSON object"))),
        DiffusionFlags.section(),
        RoutingFlags.section(),
        UnitFlags.section(),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch eval --model demo --set eval.jsonl",
        "fletch eval --model F --set eval.jsonl --limit 100 --json",
        "fletch eval --model demo-diffusion --set eval.jsonl --technique freedave+freecache");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    Path set = Path.of(arguments.required("set"));
    int limit = arguments.integer("limit", 0, 0, Integer.MAX_VALUE);
    GenerationOptions greedy =
        GenerationOptions.greedy()
            .withMaxTokens(arguments.integer("max-tokens", 0, 0, Integer.MAX_VALUE));
    List<Question> questions = QuestionSet.thinned(QuestionSet.read(set), limit);
    boolean verbose = arguments.has("verbose");
    Map<String, Score> tasks = new LinkedHashMap<>();
    Score all = new Score();
    long promptTokens = 0;
    long completionTokens = 0;
    Counters counters = new Counters();
    long nanos;
    try (Model model = ModelFlags.open(arguments, io);
        Model guide = DiffusionFlags.openGuide(arguments, io);
        Model small = RoutingFlags.openSmall(arguments, io);
        Session session = model.newSession()) {
      GenerationOptions options =
          RoutingFlags.apply(
              arguments, model, small, DiffusionFlags.apply(arguments, model, guide, greedy));
      AtomicInteger done = new AtomicInteger();
      long start = System.nanoTime();
      try (Progress _ =
          verbose
              ? Progress.silent()
              : Progress.show(io, () -> done.get() + " of " + questions.size() + " questions")) {
        for (Question question : questions) {
          Generation.Result result;
          try (Generation generation =
              session.chat(List.of(Message.user(question.question())), options)) {
            result = generation.result();
          }
          boolean right = question.isAnsweredBy(result);
          all.add(right);
          tasks.computeIfAbsent(question.task(), _ -> new Score()).add(right);
          promptTokens += result.promptTokens();
          completionTokens += result.completionTokens();
          counters.add(result.counters());
          done.incrementAndGet();
          if (verbose && !right) {
            io.note(
                "fletch: wrong ("
                    + question.task()
                    + "): question="
                    + quoted(question.question())
                    + " expected="
                    + quoted(question.answer())
                    + " actual="
                    + quoted(result.text()));
          }
        }
      }
      nanos = System.nanoTime() - start;
    }
    double seconds = nanos / 1e9;
    if (arguments.has("json")) {
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("model", ModelFlags.name(arguments));
      report.put("set", set.toString());
      report.put("questions", all.total());
      report.put("correct", all.correct());
      report.put("accuracy", all.accuracy());
      Map<String, Object> perTask = new LinkedHashMap<>();
      tasks.forEach((task, score) -> perTask.put(task, score.json()));
      report.put("tasks", perTask);
      report.put("prompt_tokens", promptTokens);
      report.put("completion_tokens", completionTokens);
      report.put("tokens", promptTokens + completionTokens);
      arguments.string("technique").ifPresent(text -> report.put("technique", text));
      counters.put(report);
      if (arguments.has("small")) {
        Counters.putRouting(counters.sum(), report);
      }
      report.put("seconds", Json.rounded(seconds));
      io.println(Json.line(report));
    } else {
      tasks.forEach((task, score) -> io.printf("%-12s %s", task, score.line()));
      io.printf("%-12s %s", "all", all.line());
      io.printf(
          "%d prompt tokens, %d tokens answered, %d forwards, %.1f s",
          promptTokens, completionTokens, counters.forwards(), seconds);
      if (counters.sum().weights().tokens() > 0) {
        io.println(Counters.weights(counters.sum().weights()));
      }
      if (arguments.has("small")) {
        io.println(Counters.routing(counters.sum()));
      }
    }
    return Cli.OK;
  }

  private static String quoted(String text) {
    return "\"" + text.replace("\n", "\\n") + "\"";
  }
}
