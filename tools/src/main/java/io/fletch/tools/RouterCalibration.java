package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.runtime.calibrate.ForcedRuns;
import io.fletch.sampling.LearnedRouter;
import io.fletch.sampling.RouterTraining;
import io.fletch.sampling.RowStatistics;
import io.fletch.sampling.TokenRouter;
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

  /** Held-back questions that a router of the ladder answers with. */
  private static final int LADDER = 100;

  private final RouterTraining training;
  private final RouterTraining validation;
  private final boolean states;
  private final List<Answered> heldBack = new ArrayList<>();
  private final RowStatistics statistics = new RowStatistics();
  private final boolean byEnding;
  private final GenerationOptions greedy;
  private final MessageDigest corpus;
  private int items;

  /**
   * Nothing is learnt yet.
   *
   * @param hiddenWidth of the small model's hidden states; 0 if it does not keep them
   */
  private RouterCalibration(boolean byEnding, int most, int hiddenWidth) {
    this.byEnding = byEnding;
    this.states = hiddenWidth > 0;
    training = new RouterTraining(hiddenWidth);
    validation = new RouterTraining(hiddenWidth);
    this.greedy = GenerationOptions.greedy().withMaxTokens(most);
    try {
      corpus = MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Options besides those that all of {@code fletch calibrate} has. */
  static List<Option> options() {
    List<Option> options = new ArrayList<>();
    options.add(Command.value("small", "A", "the small model, a file or a demo model"));
    options.addAll(RoutingFlags.smallOptions());
    options.addAll(
        List.of(
            Command.value(
                "text", "FILE", "a text that both models read, instead of questions or besides"),
            Command.value("tokens", "N", "only the first N tokens of the text (default: all)"),
            Command.value(
                "labels",
                "L",
                "what counts as divergent: proxy, a token that the large model gives less than a"
                    + " tenth of its best token's probability; ending, one behind which it ends the"
                    + " answer with another line (default: proxy)"),
            Command.value(
                "recall",
                "R",
                "choose the threshold that routes least and finds this share of the divergent"
                    + " tokens (default: 0.95)"),
            Command.value(
                "share", "S", "choose the threshold that routes at most this share instead"),
            Command.value("recall-factor", "X", "weight of divergent tokens (default: 1)"),
            Command.value(
                "features",
                "F",
                "what the router reads: logits, or hidden for 64 random projections of the hidden"
                    + " state besides (default: logits)"),
            Command.value(
                "ladder-questions",
                "N",
                "held-back questions that the pair answers with every router of the report"
                    + " (default: 100)")));
    return options;
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
    String features = arguments.string("features").orElse("logits");
    if (!List.of("logits", "hidden").contains(features)) {
      throw new UsageException("--features: expected=logits or hidden actual=" + features);
    }
    if (arguments.has("ladder-questions") && !arguments.has("set")) {
      throw new UsageException("--ladder-questions needs --set");
    }
    int ladder = arguments.integer("ladder-questions", LADDER, 0, Integer.MAX_VALUE);
    List<Question> questions = new ArrayList<>();
    if (arguments.has("set")) {
      Path set = Path.of(arguments.required("set"));
      questions.addAll(
          QuestionSet.thinned(
              QuestionSet.read(set), arguments.integer("limit", 0, 0, Integer.MAX_VALUE)));
    }
    double recall = arguments.real("recall", 0.95f, 0, 1);
    boolean byShare = arguments.has("share");
    double share = arguments.real("share", 1, 0, 1);
    try (Model large = ModelFlags.open(arguments, io);
        Model small = RoutingFlags.openRequired(arguments)) {
      checkSameTokens(large, small);
      RouterCalibration calibration =
          new RouterCalibration(
              labels.equals("ending"),
              arguments.integer("max-tokens", 256, 1, Integer.MAX_VALUE),
              hiddenWidth(small));
      if (features.equals("hidden") && !calibration.states) {
        throw new CommandException(
            "--features hidden: " + small.name() + " does not keep its hidden states");
      }
      questions.forEach(q -> calibration.count(q.question()));
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
      Target target = new Target(byShare, share, recall);
      calibration.finish(
          arguments, io, small, large, labels, output, features.equals("hidden"), target, ladder);
    }
  }

  /** A question that was held back, and whether the large model alone answers it right. */
  private record Answered(Question question, boolean right) {}

  /** By what a threshold is chosen. */
  private record Target(boolean byShare, double share, double recall) {
    RouterTraining.Point choose(List<RouterTraining.Point> curve) {
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
  }

  private static int hiddenWidth(Model small) {
    try (Session session = small.newSession()) {
      return ForcedRuns.states(session, new int[] {0}).hidden()[0].length;
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
      boolean byStates,
      Target target,
      int ladder) {
    LearnedRouter byLogits;
    LearnedRouter byHidden = null;
    try {
      double factor = arguments.real("recall-factor", 1, Float.MIN_VALUE, 1e6f);
      byLogits = training.fit(factor);
      if (states) {
        byHidden = training.fit(factor, true);
      }
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
    LearnedRouter router = byStates ? byHidden : byLogits;
    List<RouterTraining.Point> curve = validation.curve(router);
    RouterTraining.Point chosen = target.choose(curve);
    Map<String, Object> facts = new LinkedHashMap<>();
    facts.put("labels", labels);
    facts.put("examples", training.size());
    facts.put("corpus", HexFormat.of().formatHex(corpus.digest()));
    facts.put("expected_routed", chosen.routed());
    facts.put("expected_recall", chosen.recall());
    facts.put("features", byStates ? "hidden" : "logits");
    new Routing(small, router, chosen.threshold()).save(output, large, facts);
    List<Rung> rungs = new ArrayList<>();
    rungs.add(new Rung(TokenRouter.entropy(), target.choose(validation.entropyCurve())));
    rungs.add(new Rung(TokenRouter.logU(), target.choose(validation.logUCurve())));
    rungs.add(new Rung(byLogits, target.choose(validation.curve(byLogits))));
    if (byHidden != null) {
      rungs.add(new Rung(byHidden, target.choose(validation.curve(byHidden))));
    }
    List<Answered> asked =
        ladder == 0 ? List.of() : QuestionSet.thinned(heldBack, Math.min(ladder, heldBack.size()));
    climb(io, rungs, small, large, asked);
    double alone = asked.stream().filter(Answered::right).count() / (double) asked.size();
    report(arguments, io, labels, curve, chosen, rungs, alone);
  }

  /** A router of the ladder at the threshold that it would have, and what the pair makes of it. */
  private static final class Rung {
    final TokenRouter router;
    final RouterTraining.Point point;
    int answered;
    int right;
    long tokens;
    long routed;

    Rung(TokenRouter router, RouterTraining.Point point) {
      this.router = router;
      this.point = point;
    }

    Map<String, Object> json() {
      Map<String, Object> out = new LinkedHashMap<>();
      out.put("router", router.name());
      out.put("threshold", Json.rounded(point.threshold()));
      out.put("routed", Json.rounded(point.routed()));
      out.put("precision", Json.rounded(point.precision()));
      out.put("recall", Json.rounded(point.recall()));
      if (answered > 0) {
        out.put("questions", answered);
        out.put("accuracy", Json.rounded((double) right / answered));
        out.put("routed_in_answers", Json.rounded((double) routed / Math.max(1, tokens)));
      }
      return out;
    }
  }

  /** Lets the pair answer held-back questions with every router. */
  private void climb(Io io, List<Rung> rungs, Model small, Model large, List<Answered> questions) {
    AtomicInteger done = new AtomicInteger();
    int all = rungs.size() * questions.size();
    try (Progress _ =
            Progress.show(io, () -> "routers, " + done.get() + " of " + all + " answers");
        Session session = large.newSession()) {
      for (Rung rung : rungs) {
        Routing routing = new Routing(small, rung.router, rung.point.threshold());
        for (Answered each : questions) {
          Question question = each.question();
          try (Generation generation =
              session.chat(
                  List.of(Message.user(question.question())), greedy.withRouting(routing))) {
            Generation.Result result = generation.result();
            rung.answered++;
            rung.right += question.isAnsweredBy(result) ? 1 : 0;
            rung.tokens += result.counters().drafted();
            rung.routed += result.counters().drafted() - result.counters().accepted();
          }
          done.incrementAndGet();
        }
      }
    }
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
    if (items % FOLDS == FOLDS - 1) {
      heldBack.add(new Answered(question, question.isAnsweredBy(result)));
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
    ForcedRuns.States read = ForcedRuns.states(small, ids);
    float[][] ours = read.logits();
    for (int row = first; row < ids.length; row++) {
      int candidate = best(ours[row]);
      int wanted = best(theirs[row]);
      boolean diverges =
          candidate != wanted
              && (byEnding
                  ? endsOtherwise(large, ids, row, first, candidate, answer)
                  : Math.exp((double) theirs[row][candidate] - theirs[row][wanted]) < DIVERGES);
      float[] state = states ? read.hidden()[row] : null;
      into.add(ours[row], ours[row].length, candidate, state, diverges);
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

  private int best(float[] logits) {
    statistics.set(logits, 0, logits.length);
    return statistics.argmax;
  }

  private void report(
      Arguments arguments,
      Io io,
      String labels,
      List<RouterTraining.Point> curve,
      RouterTraining.Point chosen,
      List<Rung> rungs,
      double alone) {
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
      out.put("ladder", rungs.stream().map(Rung::json).toList());
      if (!Double.isNaN(alone)) {
        out.put("large_accuracy", Json.rounded(alone));
      }
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
    io.println("routers by the same rule:");
    io.printf(
        "%-15s %10s %9s %10s %8s %11s %18s",
        "router",
        "threshold",
        "routed %",
        "precision",
        "recall",
        "accuracy %",
        "routed in answers");
    for (Rung r : rungs) {
      RouterTraining.Point p = r.point;
      String answers =
          r.answered == 0
              ? Texts.format("%11s %18s", "-", "-")
              : Texts.format(
                  "%11.1f %17.1f%%",
                  100.0 * r.right / r.answered, 100.0 * r.routed / Math.max(1, r.tokens));
      io.printf(
          "%-15s %10.3f %9.1f %10.3f %8.3f %s",
          r.router.name(), p.threshold(), 100 * p.routed(), p.precision(), p.recall(), answers);
    }
    rungs.stream()
        .filter(r -> r.answered > 0)
        .findFirst()
        .ifPresent(r ->
            io.printf(
                "answers are those to %d held-back questions; the large model alone: %.1f %%",
                r.answered, 100 * alone));
  }

  private static void line(Io io, RouterTraining.Point p) {
    io.printf(
        "%10.3f %9.1f %10.3f %8.3f", p.threshold(), 100 * p.routed(), p.precision(), p.recall());
  }
}
