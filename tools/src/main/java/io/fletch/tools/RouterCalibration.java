package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.sampling.LearnedRouter;
import io.fletch.sampling.RouterTraining;
import io.fletch.tools.QuestionSet.Question;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.commons.cli.Option;

/**
 * {@code fletch calibrate r2r}: trains the router of a pair of models (specs/autoregressive.md 4).
 * The large model answers questions, or reads a text; the small one reads the same, and where its
 * choice differs from the large model's, the large model is the judge of whether that matters:
 *
 * <ul>
 *   <li>{@code proxy}: it matters if the large model gives the choice less than a tenth of the
 *       probability of its own best.
 *   <li>{@code ending}: the large model goes on behind the small one's choice, greedily; it matters
 *       if the last line of the answer becomes another one. Needs questions.
 * </ul>
 *
 * <p>Every fifth question or window trains nothing; the threshold is chosen, and precision and
 * recall are told, on these.
 */
final class RouterCalibration {
  /** Share of the best probability below which another choice diverges. */
  private static final double DIVERGES = 0.1;

  /** One question or window of so many is held back. */
  private static final int FOLDS = 5;

  private final RouterTraining training = new RouterTraining();
  private final RouterTraining validation = new RouterTraining();
  private final boolean byEnding;
  private final GenerationOptions greedy;
  private final MessageDigest corpus;
  private int items;

  private RouterCalibration(boolean byEnding, int most) {
    this.byEnding = byEnding;
    this.greedy = GenerationOptions.greedy().withMaxTokens(most);
    try {
      corpus = MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Options besides those that all of {@code fletch calibrate} has. */
  static List<Option> options() {
    return List.of(
        Command.value("small", "A", "the small model, a file or a demo model"),
        Command.value(
            "text", "FILE", "a text that both models read, instead of questions or besides"),
        Command.value("tokens", "N", "only the first N tokens of the text (default: all)"),
        Command.value(
            "labels",
            "L",
            "what counts as divergent: proxy, a token that the large model gives less than a tenth"
                + " of its best token's probability; ending, one behind which it ends the answer"
                + " with another line (default: proxy)"),
        Command.value(
            "recall",
            "R",
            "choose the threshold that routes least and finds this share of the divergent tokens"
                + " (default: 0.95)"),
        Command.value("share", "S", "choose the threshold that routes at most this share instead"),
        Command.value("recall-factor", "X", "weight of divergent tokens (default: 1)"));
  }

  static void run(Arguments arguments, Io io) throws IOException {
    Path output = Path.of(arguments.required("output"));
    String labels = arguments.string("labels").orElse("proxy");
    if (!List.of("proxy", "ending").contains(labels)) {
      throw new UsageException("--labels: expected=proxy or ending actual=" + labels);
    }
    if (!arguments.has("set") && !arguments.has("text")) {
      throw new UsageException("there is nothing to learn from: --set, --text or both");
    }
    if (labels.equals("ending") && arguments.has("text")) {
      throw new UsageException("--labels ending needs answers with an end: --set, no --text");
    }
    for (String option : List.of("limit", "max-tokens")) {
      if (arguments.has(option) && !arguments.has("set")) {
        throw new UsageException("--" + option + " needs --set");
      }
    }
    if (arguments.has("tokens") && !arguments.has("text")) {
      throw new UsageException("--tokens needs --text");
    }
    RouterCalibration calibration =
        new RouterCalibration(
            labels.equals("ending"), arguments.integer("max-tokens", 256, 1, Integer.MAX_VALUE));
    List<Question> questions = new ArrayList<>();
    if (arguments.has("set")) {
      Path set = Path.of(arguments.required("set"));
      questions.addAll(
          QuestionSet.thinned(
              QuestionSet.read(set), arguments.integer("limit", 0, 0, Integer.MAX_VALUE)));
      questions.forEach(q -> calibration.count(q.question()));
    }
    double recall = arguments.real("recall", 0.95f, 0, 1);
    boolean byShare = arguments.has("share");
    double share = arguments.real("share", 1, 0, 1);
    try (Model large = ModelFlags.open(arguments, io);
        Model small = ModelFlags.openNamed(arguments.required("small"), arguments)) {
      checkSameTokens(large, small);
      List<int[]> windows = calibration.windows(arguments, large, small);
      AtomicInteger done = new AtomicInteger();
      int all = questions.size() + windows.size();
      try (Progress _ =
              Progress.show(io, () -> done.get() + " of " + all + " questions and windows");
          Session ofLarge = large.newSession();
          Session ofSmall = small.newSession()) {
        for (Question question : questions) {
          calibration.answer(ofLarge, ofSmall, question);
          done.incrementAndGet();
        }
        for (int[] window : windows) {
          calibration.label(ofLarge, ofSmall, window, 0, "");
          done.incrementAndGet();
        }
      }
      calibration.finish(arguments, io, small, large, labels, output, byShare, share, recall);
    }
  }

  private static void checkSameTokens(Model large, Model small) {
    int tokens = large.tokenizer().vocabularySize();
    boolean same =
        small.tokenizer().vocabularySize() == tokens
            && small.info().vocabularySize() == large.info().vocabularySize();
    for (int id = 0; same && id < tokens; id++) {
      same = large.tokenizer().token(id).equals(small.tokenizer().token(id));
    }
    if (!same) {
      throw new CommandException(
          "models "
              + large.name()
              + " and "
              + small.name()
              + " do not have the same tokens, so none can be routed between them");
    }
  }

  private void count(String text) {
    corpus.update(text.getBytes(StandardCharsets.UTF_8));
    corpus.update((byte) 0);
  }

  /** The text in pieces that fit both contexts. */
  private List<int[]> windows(Arguments arguments, Model large, Model small) throws IOException {
    List<int[]> windows = new ArrayList<>();
    if (!arguments.has("text")) {
      return windows;
    }
    String text = Texts.readStrict(Path.of(arguments.required("text")));
    count(text);
    int[] ids = large.tokenizer().encode(text);
    int limit = Math.min(ids.length, arguments.integer("tokens", ids.length, 0, Integer.MAX_VALUE));
    int size = Math.min(512, Math.min(large.info().contextLength(), small.info().contextLength()));
    for (int from = 0; from + 1 < limit; from += size) {
      windows.add(Arrays.copyOfRange(ids, from, Math.min(limit, from + size)));
    }
    return windows;
  }

  private void finish(
      Arguments arguments,
      Io io,
      Model small,
      Model large,
      String labels,
      Path output,
      boolean byShare,
      double share,
      double recall) {
    LearnedRouter router;
    try {
      router = training.fit(arguments.real("recall-factor", 1, Float.MIN_VALUE, 1e6f));
    } catch (IllegalArgumentException e) {
      throw new CommandException("nothing to learn: " + e.getMessage());
    }
    if (validation.divergent() == 0) {
      throw new CommandException(
          "no divergent token in the held-back fifth, so that no threshold can be chosen: more"
              + " questions or text are needed: held back="
              + validation.size()
              + " tokens");
    }
    List<RouterTraining.Point> curve = validation.curve(router);
    RouterTraining.Point chosen = choose(curve, byShare, share, recall);
    Map<String, Object> facts = new LinkedHashMap<>();
    facts.put("labels", labels);
    facts.put("examples", training.size());
    facts.put("corpus", HexFormat.of().formatHex(corpus.digest()));
    facts.put("expected_routed", chosen.routed());
    facts.put("expected_recall", chosen.recall());
    new Routing(small, router, chosen.threshold()).save(output, large, facts);
    report(arguments, io, labels, curve, chosen);
  }

  /** Every token of the large model's answer becomes an example. */
  private void answer(Session large, Session small, Question question) {
    Generation.Result result;
    try (Generation generation = large.chat(List.of(Message.user(question.question())), greedy)) {
      result = generation.result();
    }
    int prompt = result.promptTokens();
    // The cache holds the prompt and all of the answer but its end.
    List<Integer> held = large.tokens();
    int[] ids = new int[prompt + result.ids().size()];
    for (int i = 0; i < ids.length; i++) {
      ids[i] = i < prompt ? held.get(i) : result.ids().get(i - prompt);
    }
    label(large, small, ids, prompt - 1, result.text());
  }

  /**
   * Makes examples of the rows from {@code first} on; the last one says what follows the ids.
   *
   * @param answer text of the ids behind {@code first}, for labels by the ending
   */
  private void label(Session large, Session small, int[] ids, int first, String answer) {
    RouterTraining into = items++ % FOLDS == FOLDS - 1 ? validation : training;
    float[][] theirs = large.logits(ids);
    float[][] ours = small.logits(ids);
    for (int row = first; row < ids.length; row++) {
      int candidate = best(ours[row]);
      int wanted = best(theirs[row]);
      boolean diverges =
          candidate != wanted
              && (byEnding
                  ? endsOtherwise(large, ids, row, first, candidate, answer)
                  : Math.exp((double) theirs[row][candidate] - theirs[row][wanted]) < DIVERGES);
      into.add(ours[row], ours[row].length, candidate, diverges);
    }
  }

  /** Whether the answer has another last line if the large model goes on behind the choice. */
  private boolean endsOtherwise(
      Session large, int[] ids, int row, int first, int candidate, String answer) {
    int prompt = first + 1;
    int kept = row + 1 - prompt;
    int[] whole = Arrays.copyOf(ids, row + 2);
    whole[row + 1] = candidate;
    List<Integer> tokens = new ArrayList<>();
    for (int i = prompt; i <= row; i++) {
      tokens.add(ids[i]);
    }
    if (!large.model().tokenizer().endOfGeneration().contains(candidate)) {
      tokens.add(candidate);
      int left = greedy.maxTokens() - kept - 1;
      if (left > 0 && whole.length < large.model().info().contextLength()) {
        try (Generation generation = large.generate(whole, greedy.withMaxTokens(left))) {
          tokens.addAll(generation.result().ids());
        }
      }
    }
    int[] all = tokens.stream().mapToInt(Integer::intValue).toArray();
    return !lastLine(large.model().tokenizer().decode(all)).equals(lastLine(answer));
  }

  static String lastLine(String text) {
    String stripped = text.strip();
    return stripped.substring(stripped.lastIndexOf('\n') + 1).strip();
  }

  private static int best(float[] logits) {
    int best = 0;
    for (int i = 1; i < logits.length; i++) {
      if (logits[i] > logits[best]) {
        best = i;
      }
    }
    return best;
  }

  private static RouterTraining.Point choose(
      List<RouterTraining.Point> curve, boolean byShare, double share, double recall) {
    RouterTraining.Point chosen = byShare ? curve.getLast() : curve.getFirst();
    for (RouterTraining.Point p : curve) {
      if (byShare && p.routed() <= share) {
        return p;
      }
      if (!byShare && p.recall() >= recall) {
        chosen = p;
      }
    }
    return chosen;
  }

  private void report(
      Arguments arguments,
      Io io,
      String labels,
      List<RouterTraining.Point> curve,
      RouterTraining.Point chosen) {
    if (arguments.has("json")) {
      Map<String, Object> out = new LinkedHashMap<>();
      out.put("examples", training.size());
      out.put("divergent", training.divergent());
      out.put("held_back", validation.size());
      out.put("held_back_divergent", validation.divergent());
      out.put("labels", labels);
      out.put("threshold", Json.rounded(chosen.threshold()));
      out.put("routed", Json.rounded(chosen.routed()));
      out.put("precision", Json.rounded(chosen.precision()));
      out.put("recall", Json.rounded(chosen.recall()));
      List<Object> points = new ArrayList<>();
      for (RouterTraining.Point p : curve) {
        points.add(
            List.of(
                Json.rounded(p.threshold()),
                Json.rounded(p.routed()),
                Json.rounded(p.precision()),
                Json.rounded(p.recall())));
      }
      out.put("curve", points);
      io.println(Json.line(out));
      return;
    }
    io.printf(
        "trained on %d tokens, %d of them divergent (%.1f %%), labels=%s",
        training.size(),
        training.divergent(),
        100.0 * training.divergent() / training.size(),
        labels);
    io.printf(
        "on %d tokens held back, %d of them divergent (%.1f %%):",
        validation.size(),
        validation.divergent(),
        100.0 * validation.divergent() / validation.size());
    io.printf("%10s %9s %10s %8s", "threshold", "routed %", "precision", "recall");
    for (int k = 0; k < curve.size(); k += 11) {
      line(io, curve.get(k));
    }
    io.println("chosen:");
    line(io, chosen);
  }

  private static void line(Io io, RouterTraining.Point p) {
    io.printf(
        "%10.3f %9.1f %10.3f %8.3f", p.threshold(), 100 * p.routed(), p.precision(), p.recall());
  }
}
