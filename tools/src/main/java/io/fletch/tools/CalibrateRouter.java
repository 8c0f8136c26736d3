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
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * {@code fletch calibrate r2r}: trains the router of a pair of models (specs/autoregressive.md 4).
 * The large model answers the questions; the small one reads the answers, and where its choice
 * differs and the large model gives that choice less than a tenth of the probability of its own
 * best, the choice counts as divergent: labels by proxy, without a judge model.
 */
final class CalibrateRouter implements Calibrator {
  /** Share of the best probability below which another choice diverges. */
  private static final double DIVERGES = 0.1;

  @Override
  public Command.Section section() {
    return new Command.Section(
        "r2r: a router between two models",
        List.of(
            Command.value("small", "A", "the small model, a file or a demo model"),
            Command.value(
                "recall",
                "R",
                "choose the threshold that routes least and finds this share of the divergent"
                    + " tokens (default: 0.95)"),
            Command.value(
                "share", "S", "choose the threshold that routes at most this share instead"),
            Command.value("recall-factor", "X", "weight of divergent tokens (default: 1)")));
  }

  @Override
  public void run(Arguments arguments, Io io) throws IOException {
    Path output = Path.of(arguments.required("output"));
    int most = arguments.integer("max-tokens", 256, 1, Integer.MAX_VALUE);
    List<Question> questions =
        QuestionSet.thinned(
            QuestionSet.read(Path.of(arguments.required("set"))),
            arguments.integer("limit", 0, 0, Integer.MAX_VALUE));
    double recall = arguments.real("recall", 0.95f, 0, 1);
    boolean byShare = arguments.has("share");
    double share = arguments.real("share", 1, 0, 1);
    RouterTraining training = new RouterTraining();
    try (Model large = ModelFlags.open(arguments, io);
        Model small = ModelFlags.openNamed(arguments.required("small"), arguments)) {
      AtomicInteger done = new AtomicInteger();
      try (Progress _ =
              Progress.show(io, () -> done.get() + " of " + questions.size() + " questions");
          Session ofLarge = large.newSession();
          Session ofSmall = small.newSession()) {
        for (Question question : questions) {
          label(ofLarge, ofSmall, question, most, training);
          done.incrementAndGet();
        }
      }
      LearnedRouter router;
      try {
        router = training.fit(arguments.real("recall-factor", 1, Float.MIN_VALUE, 1e6f));
      } catch (IllegalArgumentException e) {
        throw new CommandException("nothing to learn: " + e.getMessage());
      }
      List<RouterTraining.Point> curve = training.curve(router);
      RouterTraining.Point chosen = choose(curve, byShare, share, recall);
      new Routing(small, router, chosen.threshold())
          .save(
              output,
              large,
              Map.of(
                  "labels",
                  "proxy",
                  "questions",
                  questions.size(),
                  "expected_routed",
                  chosen.routed()));
      report(arguments, io, training, curve, chosen);
    }
  }

  /** Every token of the large model's answer becomes an example. */
  private static void label(
      Session large, Session small, Question question, int most, RouterTraining training) {
    List<Message> messages = List.of(Message.user(question.question()));
    Generation.Result result;
    try (Generation generation =
        large.chat(messages, GenerationOptions.greedy().withMaxTokens(most))) {
      result = generation.result();
    }
    int prompt = result.promptTokens();
    // The cache holds the prompt and all of the answer but its end.
    List<Integer> held = large.tokens();
    int[] ids = new int[prompt + result.ids().size()];
    for (int i = 0; i < ids.length; i++) {
      ids[i] = i < prompt ? held.get(i) : result.ids().get(i - prompt);
    }
    float[][] theirs = large.logits(ids);
    float[][] ours = small.logits(ids);
    // The row of the last token says what ends the answer.
    for (int row = prompt - 1; row < ids.length; row++) {
      int candidate = best(ours[row]);
      int wanted = best(theirs[row]);
      double ratio = Math.exp((double) theirs[row][candidate] - theirs[row][wanted]);
      training.add(ours[row], ours[row].length, candidate, candidate != wanted && ratio < DIVERGES);
    }
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

  private static void report(
      Arguments arguments,
      Io io,
      RouterTraining training,
      List<RouterTraining.Point> curve,
      RouterTraining.Point chosen) {
    if (arguments.has("json")) {
      Map<String, Object> out = new LinkedHashMap<>();
      out.put("examples", training.size());
      out.put("divergent", training.divergent());
      out.put("labels", "proxy");
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
        "%d tokens, %d of them divergent (%.1f %%)",
        training.size(), training.divergent(), 100.0 * training.divergent() / training.size());
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
