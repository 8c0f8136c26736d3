package io.fletch.tools;

import io.fletch.Model;
import io.fletch.Session;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;

/** {@code fletch perplexity}: how well a model predicts a text. */
final class PerplexityCommand implements Command {
  /**
   * A sum over predicted tokens.
   *
   * @param nats negative log-likelihood of all
   */
  record Result(double nats, long tokens, int windows) {
    double mean() {
      return nats / tokens;
    }

    double perplexity() {
      return Math.exp(mean());
    }
  }

  @Override
  public String usage() {
    return "--text FILE [options]";
  }

  @Override
  public String description() {
    return """
    Computes how likely a text is to an autoregressive model. The text is cut into
    windows that begin a stride apart; each token is counted once, in the first window
    that predicts it. Perplexity is exp of the mean of -ln p.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Text and output",
            List.of(
                Command.value("text", "FILE", "the text"),
                Command.value("window", "N", "tokens of a window (default: the context)"),
                Command.value(
                    "stride",
                    "N",
                    "tokens between the beginnings of windows (default: half of one)"),
                Command.value("tokens", "N", "only the first N tokens (default: all)"),
                Command.flag("json", "print one JSON object"))),
        UnitFlags.section(),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch perplexity --model demo --text held-out.txt",
        "fletch perplexity --model F --text T --window 512 --stride 256 --json");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    String text = Texts.readStrict(Path.of(arguments.required("text")));
    try (Model model = ModelFlags.open(arguments, io);
        Session session = model.newSession()) {
      int context = model.info().contextLength();
      int window = arguments.integer("window", context, 2, context);
      int stride = arguments.integer("stride", Math.max(1, window / 2), 1, window - 1);
      int[] ids = model.tokenizer().encode(text);
      int limit = arguments.integer("tokens", Integer.MAX_VALUE, 2, Integer.MAX_VALUE);
      int[] used = ids.length > limit ? Arrays.copyOf(ids, limit) : ids;
      if (used.length < 2) {
        throw new CommandException("text: expected=at least 2 tokens actual=" + used.length);
      }
      long start = System.nanoTime();
      AtomicLong done = new AtomicLong();
      Result result;
      try (Progress _ =
          Progress.show(io, () -> "scoring, token " + done.get() + " of " + used.length)) {
        result = score(session, used, window, stride, done);
      }
      report(arguments, io, result, window, stride, (System.nanoTime() - start) / 1e9);
    }
    return Cli.OK;
  }

  /** Scores in windows. */
  static Result score(Session session, int[] ids, int window, int stride, AtomicLong done) {
    double nats = 0;
    long tokens = 0;
    int windows = 0;
    // The first token is predicted by nothing.
    int counted = 1;
    for (int from = 0; counted < ids.length; from += stride) {
      int to = Math.min(ids.length, from + window);
      double[] scores = session.score(Arrays.copyOfRange(ids, from, to));
      for (int i = counted; i < to; i++) {
        nats -= scores[i - from - 1];
        tokens++;
      }
      counted = to;
      windows++;
      done.set(to);
    }
    return new Result(nats, tokens, windows);
  }

  private static void report(
      Arguments arguments, Io io, Result result, int window, int stride, double seconds) {
    if (arguments.has("json")) {
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("model", ModelFlags.name(arguments));
      report.put("nats_per_token", Json.finite(result.mean()));
      report.put("perplexity", Json.finite(result.perplexity()));
      report.put("tokens", result.tokens());
      report.put("windows", result.windows());
      report.put("window", window);
      report.put("stride", stride);
      report.put("seconds", Json.rounded(seconds));
      io.println(Json.line(report));
    } else {
      io.printf(
          "perplexity %.4f (%.4f nats per token), %d tokens in %d windows of %d, %.1f s",
          result.perplexity(), result.mean(), result.tokens(), result.windows(), window, seconds);
    }
  }
}
