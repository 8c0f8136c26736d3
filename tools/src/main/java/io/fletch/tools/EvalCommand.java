package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;

/** {@code fletch eval}: accuracy on questions with one right answer each. */
final class EvalCommand implements Command {
  /** A line of a question set. */
  private record Question(String task, String question, String answer) {}

  private static final class Score {
    private int correct;
    private int total;

    void add(boolean right) {
      correct += right ? 1 : 0;
      total++;
    }

    Map<String, Object> json() {
      Map<String, Object> json = new LinkedHashMap<>();
      json.put("correct", correct);
      json.put("total", total);
      json.put("accuracy", (double) correct / total);
      return json;
    }

    String line() {
      return Texts.format("%5.1f %%  (%d of %d)", 100.0 * correct / total, correct, total);
    }
  }

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
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch eval --model demo --set eval.jsonl",
        "fletch eval --model F --set eval.jsonl --limit 100 --json");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    Path set = Path.of(arguments.required("set"));
    int limit = arguments.integer("limit", 0, 0, Integer.MAX_VALUE);
    GenerationOptions options =
        GenerationOptions.greedy()
            .withMaxTokens(arguments.integer("max-tokens", 0, 0, Integer.MAX_VALUE));
    List<Question> questions = thinned(read(set), limit);
    boolean verbose = arguments.has("verbose");
    Map<String, Score> tasks = new LinkedHashMap<>();
    Score all = new Score();
    long promptTokens = 0;
    long completionTokens = 0;
    long forwards = 0;
    long nanos;
    try (Model model = ModelFlags.open(arguments, io);
        Session session = model.newSession()) {
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
          boolean right =
              result.finishReason() == Generation.FinishReason.STOP
                  && result.text().equals(question.answer());
          all.add(right);
          tasks.computeIfAbsent(question.task(), _ -> new Score()).add(right);
          promptTokens += result.promptTokens();
          completionTokens += result.completionTokens();
          forwards += result.forwards();
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
      report.put("questions", all.total);
      report.put("correct", all.correct);
      report.put("accuracy", (double) all.correct / all.total);
      Map<String, Object> perTask = new LinkedHashMap<>();
      tasks.forEach((task, score) -> perTask.put(task, score.json()));
      report.put("tasks", perTask);
      report.put("prompt_tokens", promptTokens);
      report.put("completion_tokens", completionTokens);
      report.put("tokens", promptTokens + completionTokens);
      report.put("forwards", forwards);
      report.put("seconds", Json.rounded(seconds));
      io.println(Json.line(report));
    } else {
      tasks.forEach((task, score) -> io.printf("%-12s %s", task, score.line()));
      io.printf("%-12s %s", "all", all.line());
      io.printf(
          "%d prompt tokens, %d tokens answered, %d forwards, %.1f s",
          promptTokens, completionTokens, forwards, seconds);
    }
    return Cli.OK;
  }

  private static String quoted(String text) {
    return "\"" + text.replace("\n", "\\n") + "\"";
  }

  /** Every k-th question, as the evaluator of the demo models chooses them. */
  private static List<Question> thinned(List<Question> questions, int limit) {
    if (limit == 0 || limit >= questions.size()) {
      return questions;
    }
    int stride = questions.size() / limit;
    List<Question> chosen = new ArrayList<>(limit);
    for (int i = 0; i < limit; i++) {
      chosen.add(questions.get(i * stride));
    }
    return chosen;
  }

  private static List<Question> read(Path set) throws IOException {
    List<Question> questions = new ArrayList<>();
    int number = 0;
    for (String line : Texts.readStrict(set).lines().toList()) {
      number++;
      if (line.isBlank()) {
        continue;
      }
      String place = set + ":" + number;
      Map<String, Object> object;
      try {
        object = JSON.std.mapFrom(line);
      } catch (IOException e) {
        throw new CommandException(place + ": not a JSON object: " + e.getMessage(), e);
      }
      questions.add(
          new Question(
              text(object, "task", place),
              text(object, "question", place),
              text(object, "answer", place)));
    }
    if (questions.isEmpty()) {
      throw new CommandException(set + ": no questions");
    }
    return questions;
  }

  private static String text(Map<String, Object> object, String key, String place) {
    if (object.get(key) instanceof String text) {
      return text;
    }
    throw new CommandException(place + ": " + key + ": expected=a text actual=" + object.get(key));
  }
}
