package io.fletch.tools;

import io.fletch.FfnSkip;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.UnitPolicy;
import io.fletch.runtime.calibrate.ForcedText;
import io.fletch.runtime.calibrate.SkipCalibration;
import io.fletch.runtime.calibrate.UnitEvaluation;
import io.fletch.sampling.UnitUse;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;

/** {@code fletch calibrate ffn-skip}: region and threshold of FFN-SkipLLM for a model. */
final class CalibrateSkip implements Calibrator {
  /** Tokens past the warm-up that are decoded freely after a piece of text. */
  private static final int FREE_TOKENS = 64;

  /** Texts that are decoded freely for every threshold. */
  private static final int FREE_TEXTS = 48;

  /** How far the share in free decoding may be from the wanted one without a word. */
  private static final double TOLERANCE = 0.015;

  @Override
  public Command.Section section() {
    List<org.apache.commons.cli.Option> options =
        new ArrayList<>(
            List.of(
                Command.value(
                    "ratio",
                    "R",
                    "share of all feed-forward units that shall rest in free decoding, warm-up"
                        + " included (default: 0.25)"),
                Command.value(
                    "least", "S", "mean similarity of a layer in the region (default: 0.9)"),
                Command.value(
                    "region", "FROM-TO", "the layers, TO included (default: found by itself)"),
                Command.value(
                    "warm-up", "N", "generated tokens before the first unit rests (default: 32)"),
                Command.value(
                    "run", "N", "units until the next look; 0 for the region's end (default: 0)"),
                Command.value("budget", "N", "most units per token (default: no limit)")));
    return new Command.Section("ffn-skip: feed-forward units that rest", options);
  }

  @Override
  public void run(Arguments arguments, Io io) throws IOException {
    Path output = Path.of(arguments.required("output"));
    double ratio = arguments.real("ratio", 0.25f, Float.MIN_VALUE, 1);
    double least = arguments.real("least", 0.9f, -1, 1);
    try (Model dense = ModelFlags.open(arguments, io)) {
      int layers = dense.info().layers();
      ForcedTexts texts = ForcedTexts.of(arguments, io, dense);
      SkipCalibration calibration = measure(arguments, io, layers, texts.fitting());
      int[] region = region(arguments, calibration, layers, least);
      FfnSkip shape =
          new FfnSkip(
              region[0],
              region[1],
              Float.POSITIVE_INFINITY,
              arguments.integer("run", 0, 0, layers),
              arguments.integer("budget", layers, 0, layers),
              arguments.integer("warm-up", FfnSkip.WARM_UP, 0, Integer.MAX_VALUE),
              "");
      if (calibration.longest() < shape.warmUp()) {
        throw new CommandException(
            "the longest text has fewer tokens than the warm-up: expected>="
                + shape.warmUp()
                + " actual="
                + calibration.longest());
      }
      SkipCalibration.Tuned tuned;
      FfnSkip skip;
      UnitEvaluation.Result forced;
      UnitUse free;
      try (Model resting =
              ModelFlags.open(
                  arguments, io, ModelFlags.options(arguments).withUnits(List.of(shape)));
          Session a = dense.newSession();
          Session b = resting.newSession()) {
        AtomicInteger tries = new AtomicInteger();
        try (Progress _ = Progress.show(io, () -> "decoding with threshold " + (tries.get() + 1))) {
          List<ForcedText> spread = spread(texts.fitting());
          tuned =
              calibration.tune(
                  shape,
                  ratio,
                  s -> {
                    tries.incrementAndGet();
                    return feedForwardShare(free(b, spread, s));
                  });
        }
        skip = tuned.skip();
        AtomicInteger done = new AtomicInteger();
        List<ForcedText> held = texts.heldBack();
        try (Progress _ =
            Progress.show(io, () -> "measuring, " + done.get() + " of " + held.size())) {
          forced = UnitEvaluation.of(a, b, held, Optional.of(List.of(skip)), done::incrementAndGet);
          free = free(b, spread(held), skip);
        }
      }
      double predicted = calibration.predict(skip);
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("mean_similarity", rounded(calibration.means()));
      report.put("from", skip.from());
      report.put("to", skip.to());
      report.put("threshold", Json.rounded(skip.threshold()));
      report.put("warm_up", skip.warmUp());
      report.put("tokens", ForcedTexts.tokens(texts.fitting()));
      report.put("wanted_ratio", Json.rounded(ratio));
      report.put("predicted_ratio", Json.rounded(predicted));
      report.put("tuned_ratio", Json.rounded(tuned.share()));
      report.put("most_ratio", Json.rounded(tuned.most()));
      report.put("free_ratio", Json.rounded(feedForwardShare(free)));
      report.put("held_back_tokens", forced.tokens());
      report.put("dense_perplexity", Json.rounded(forced.densePerplexity()));
      report.put("perplexity", Json.rounded(forced.perplexity()));
      report.put("agreement", Json.rounded(forced.agreement()));
      skip.save(
          output,
          dense,
          Map.of("predicted_ratio", predicted, "free_ratio", feedForwardShare(free)));
      if (arguments.has("json")) {
        io.println(Json.line(report));
      } else {
        print(io, report, calibration.means(), skip, output);
      }
    }
  }

  private static SkipCalibration measure(
      Arguments arguments, Io io, int layers, List<ForcedText> texts) {
    SkipCalibration calibration = new SkipCalibration(layers);
    List<UnitPolicy> observer = List.of(SkipCalibration.observer(layers));
    AtomicInteger done = new AtomicInteger();
    try (Model model =
            ModelFlags.open(arguments, io, ModelFlags.options(arguments).withUnits(observer));
        Session session = model.newSession();
        Progress _ =
            Progress.show(io, () -> "running, " + done.get() + " of " + texts.size() + " texts")) {
      for (ForcedText text : texts) {
        calibration.add(session, text);
        done.incrementAndGet();
      }
    }
    return calibration;
  }

  private static int[] region(
      Arguments arguments, SkipCalibration calibration, int layers, double least) {
    if (arguments.has("region")) {
      String text = arguments.required("region");
      String[] ends = text.split("-", 2);
      try {
        int from = Integer.parseInt(ends[0].strip());
        int last = Integer.parseInt(ends[ends.length - 1].strip());
        if (from >= 0 && from < last && last < layers) {
          return new int[] {from, last + 1};
        }
      } catch (NumberFormatException _) {
        // Said below.
      }
      throw new UsageException(
          "--region: expected=two or more layers within 0-" + (layers - 1) + " actual=" + text);
    }
    Optional<int[]> found = calibration.region(least);
    return found.orElseThrow(() ->
        new CommandException(
            "no two neighbouring layers are saturated: expected>="
                + least
                + " actual mean similarities="
                + Arrays.toString(rounded(calibration.means()).toArray())
                + "; FFN skipping is not for this model"));
  }

  /** Decodes freely after prompts: text without prompts is cut in the middle. */
  private static UnitUse free(Session session, List<ForcedText> texts, FfnSkip skip) {
    UnitUse units = UnitUse.NONE;
    GenerationOptions options =
        GenerationOptions.greedy()
            .withMaxTokens(skip.warmUp() + FREE_TOKENS)
            .withUnits(List.of(skip));
    for (ForcedText text : texts) {
      int prompt = text.start() == 0 ? text.ids().length / 2 : text.start();
      try (Generation g =
          session.generate(Arrays.copyOf(text.ids(), Math.max(1, prompt)), options)) {
        units = units.plus(g.result().counters().units());
      }
    }
    return units;
  }

  /** Some of the texts, evenly spread. */
  private static List<ForcedText> spread(List<ForcedText> texts) {
    int n = Math.min(FREE_TEXTS, texts.size());
    return IntStream.range(0, n)
        .mapToObj(i -> texts.get((int) ((long) i * texts.size() / n)))
        .toList();
  }

  /** Half of the units are feed-forward units. */
  private static double feedForwardShare(UnitUse units) {
    return units.units() == 0 ? 0 : 2.0 * units.skipped() / units.units();
  }

  private static List<Object> rounded(double[] values) {
    List<Object> all = new ArrayList<>();
    for (double v : values) {
      all.add(Json.rounded(v));
    }
    return all;
  }

  private static void print(
      Io io, Map<String, Object> report, double[] means, FfnSkip skip, Path output) {
    io.println(
        "layer  mean similarity of the residual stream before and after its feed-forward unit");
    for (int l = 0; l < means.length; l++) {
      boolean inside = skip.from() <= l && l < skip.to();
      io.printf("%5d  %.4f%s", l, means[l], inside ? "  in the region" : "");
    }
    io.printf(
        "threshold %.6f, warm-up %d tokens: %.1f %% of the feed-forward units rest past the warm-up"
            + " by prediction; in free decoding, warm-up included, %.1f %% on texts that the"
            + " threshold was chosen with and %.1f %% on others",
        skip.threshold(),
        skip.warmUp(),
        100 * number(report, "predicted_ratio"),
        100 * number(report, "tuned_ratio"),
        100 * number(report, "free_ratio"));
    double wanted = number(report, "wanted_ratio");
    if (Math.abs(number(report, "tuned_ratio") - wanted) > TOLERANCE) {
      io.printf(
          "%.1f %% were wanted: %s",
          100 * wanted,
          number(report, "most_ratio") < wanted
              ? Texts.format(
                  "the region of layers %d to %d allows at most %.1f %% with this warm-up",
                  skip.from(), skip.to() - 1, 100 * number(report, "most_ratio"))
              : "no threshold comes closer, because many units become similar at once; --budget"
                  + " and --run bound them more evenly");
    }
    io.printf(
        "%d tokens held back: perplexity %.4f instead of %.4f, the same likeliest token in %.1f %%",
        ((Number) report.get("held_back_tokens")).longValue(),
        number(report, "perplexity"),
        number(report, "dense_perplexity"),
        100 * number(report, "agreement"));
    io.printf("written: %s", output);
  }

  private static double number(Map<String, Object> report, String key) {
    return ((Number) report.get(key)).doubleValue();
  }
}
