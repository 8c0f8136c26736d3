package io.fletch.tools;

import io.fletch.Model;
import io.fletch.Session;
import io.fletch.UnitForecasts;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.calibrate.ForcedText;
import io.fletch.runtime.calibrate.ForecastCalibration;
import io.fletch.runtime.calibrate.ForecastCalibration.Judge;
import io.fletch.runtime.calibrate.ForecastCalibration.Options;
import io.fletch.runtime.calibrate.ForecastCalibration.RouterFit;
import io.fletch.runtime.calibrate.ForecastCalibration.UnitFit;
import io.fletch.runtime.calibrate.ForecastCalibration.Units;
import io.fletch.runtime.calibrate.UnitEvaluation;
import io.fletch.sampling.UnitUse;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;

/** {@code fletch calibrate lff}: forecasters and routers of informed routing for a model. */
final class CalibrateForecasts implements Calibrator {
  @Override
  public Command.Section section() {
    List<org.apache.commons.cli.Option> options =
        new ArrayList<>(
            List.of(
                Command.value(
                    "sparsity",
                    "S[,S]",
                    "share of the units' tokens that shall be approximated (default: 0.25); of"
                        + " several, the file of the first one has the given name, the others add"
                        + " -PERCENT"),
                Command.value("units", "U", "both, attention or ffn (default: both)"),
                Command.value("rank", "R", "rank of the forecasters (default: 32)"),
                Command.value("ridge", "X", "ridge by the inputs' mean square (default: 0.001)"),
                Command.value(
                    "silu-steps",
                    "N",
                    "forecasters with SiLU, trained for N steps after the closed form (default:"
                        + " linear forecasters)"),
                Command.value(
                    "router-width", "N", "hidden layer of the routers; 0 for none (default: 0)"),
                Command.value(
                    "judge",
                    "J",
                    "what routers learn: recoverability, or importance to compare with (default:"
                        + " recoverability)")));
    return new Command.Section("lff: units that are forecast", options);
  }

  @Override
  public void run(Arguments arguments, Io io) throws IOException {
    Path output = Path.of(arguments.required("output"));
    if (arguments.has("lora")) {
      throw new UsageException("forecasters are fitted to the file alone: --lora does not apply");
    }
    List<Double> shares = shares(arguments);
    int steps = arguments.integer("silu-steps", 0, 0, 1 << 24);
    Options options =
        new Options(
            arguments.choice("units", Units.BOTH),
            arguments.integer("rank", 32, 1, 1 << 16),
            arguments.real("ridge", 0.001f, Float.MIN_VALUE, 1e6f),
            arguments.has("silu-steps"),
            steps,
            arguments.integer("router-width", 0, 0, 1 << 16),
            2000,
            arguments.choice("judge", Judge.RECOVERABILITY),
            0);
    try (Model dense = ModelFlags.open(arguments, io)) {
      ForcedTexts texts = ForcedTexts.of(arguments, io, dense);
      List<ForcedText> held = texts.heldBack();
      AtomicReference<String> doing = new AtomicReference<>("reading");
      List<Map<String, Object>> levels = new ArrayList<>();
      List<UnitFit> fits;
      List<ForecastCalibration.Routed> routed;
      int fitted;
      try (WeightFile file = WeightFile.open(ModelFlags.path(arguments));
          Progress _ = Progress.show(io, doing::get);
          ForecastCalibration calibration =
              ForecastCalibration.fit(file, ids(texts.fitting()), ids(held), options, doing::set)) {
        fits = calibration.fits();
        fitted = calibration.fittedTokens();
        routed = calibration.route(shares, doing::set);
        for (int i = 0; i < shares.size(); i++) {
          routed
              .get(i)
              .save(
                  file(output, shares, i),
                  dense,
                  Map.of(
                      "router",
                      "local",
                      "judge",
                      options.judge().name().toLowerCase(Locale.ROOT),
                      "sparsity",
                      shares.get(i),
                      "fitted_tokens",
                      fitted,
                      "expected_routed",
                      routed.get(i).routed()));
        }
      }
      for (int i = 0; i < shares.size(); i++) {
        levels.add(level(arguments, io, dense, held, file(output, shares, i), shares.get(i)));
      }
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("fitted_tokens", fitted);
      report.put("rank", options.rank());
      report.put("activation", options.silu() ? "silu" : "none");
      report.put("judge", options.judge().name().toLowerCase(Locale.ROOT));
      report.put("units", units(fits, routed));
      report.put("levels", levels);
      if (arguments.has("json")) {
        io.println(Json.line(report));
      } else {
        print(io, report, fits, routed, shares);
      }
    }
  }

  private static List<Double> shares(Arguments arguments) {
    List<Double> shares = new ArrayList<>();
    String text = arguments.string("sparsity").orElse("0.25");
    try {
      for (String part : text.split(",")) {
        double share = Double.parseDouble(part.strip());
        if (!(share > 0 && share < 1) || shares.contains(share)) {
          throw new NumberFormatException();
        }
        shares.add(share);
      }
    } catch (NumberFormatException _) {
      throw new UsageException(
          "--sparsity: expected=different shares between 0 and 1 actual=" + text);
    }
    return shares;
  }

  private static Path file(Path output, List<Double> shares, int level) {
    if (level == 0) {
      return output;
    }
    String name = output.getFileName().toString();
    int dot = name.lastIndexOf('.') <= 0 ? name.length() : name.lastIndexOf('.');
    String percent = Texts.format("-%s", Json.rounded(100 * shares.get(level)));
    return output.resolveSibling(name.substring(0, dot) + percent + name.substring(dot));
  }

  private static int[][] ids(List<ForcedText> texts) {
    return texts.stream().map(ForcedText::ids).toArray(int[][]::new);
  }

  /** Measures on held-back tokens: with forecasts, and with nothing in their place. */
  private static Map<String, Object> level(
      Arguments arguments, Io io, Model dense, List<ForcedText> held, Path file, double share) {
    Map<String, Object> level = new LinkedHashMap<>();
    level.put("sparsity", Json.rounded(share));
    level.put("file", file.toString());
    for (boolean approximate : new boolean[] {true, false}) {
      UnitForecasts policy = UnitForecasts.of(file).withApproximate(approximate);
      UnitEvaluation.Result result;
      AtomicInteger done = new AtomicInteger();
      try (Model resting =
              ModelFlags.open(
                  arguments, io, ModelFlags.options(arguments).withUnits(List.of(policy)));
          Session a = dense.newSession();
          Session b = resting.newSession();
          Progress _ = Progress.show(io, () -> "measuring, " + done.get() + " of " + held.size())) {
        result = UnitEvaluation.of(a, b, held, done::incrementAndGet);
      }
      UnitUse use = result.units();
      String kind = approximate ? "forecast_" : "skip_";
      if (approximate) {
        level.put("held_back_tokens", result.tokens());
        level.put("dense_perplexity", Json.rounded(result.densePerplexity()));
      }
      level.put(
          kind + "share",
          Json.rounded((double) (use.skipped() + use.approximated()) / Math.max(1, use.units())));
      level.put(kind + "perplexity", Json.rounded(result.perplexity()));
      level.put(kind + "agreement", Json.rounded(result.agreement()));
    }
    return level;
  }

  private static String name(int layer, boolean attention) {
    return layer + (attention ? " attention" : " ffn");
  }

  private static List<Object> units(List<UnitFit> fits, List<ForecastCalibration.Routed> routed) {
    List<Object> units = new ArrayList<>();
    for (int u = 0; u < fits.size(); u++) {
      UnitFit f = fits.get(u);
      Map<String, Object> unit = new LinkedHashMap<>();
      unit.put("unit", name(f.layer(), f.attention()));
      unit.put("unexplained", Json.rounded(f.unexplained()));
      unit.put("error", Json.rounded(f.error()));
      unit.put("skip_error", Json.rounded(f.skipError()));
      List<Object> shares = new ArrayList<>();
      List<Object> right = new ArrayList<>();
      for (ForecastCalibration.Routed r : routed) {
        RouterFit fit = r.fits().get(u);
        shares.add(Json.rounded(fit.routed()));
        right.add(Json.rounded(fit.right()));
      }
      unit.put("routed", shares);
      unit.put("router_right", right);
      units.add(unit);
    }
    return units;
  }

  private static void print(
      Io io,
      Map<String, Object> report,
      List<UnitFit> fits,
      List<ForecastCalibration.Routed> routed,
      List<Double> shares) {
    io.println("On tokens that were held back; errors are relative to the residual stream:");
    StringBuilder head =
        new StringBuilder(
            Texts.format("%-14s %11s %9s %9s", "unit", "unexplained", "forecast", "nothing"));
    for (double share : shares) {
      head.append(Texts.format("  routed at %.2f (right)", share));
    }
    io.println(head.toString());
    for (int u = 0; u < fits.size(); u++) {
      UnitFit f = fits.get(u);
      StringBuilder line =
          new StringBuilder(
              Texts.format(
                  "%-14s %11.4f %9.4f %9.4f",
                  name(f.layer(), f.attention()), f.unexplained(), f.error(), f.skipError()));
      for (ForecastCalibration.Routed r : routed) {
        RouterFit fit = r.fits().get(u);
        line.append(Texts.format("    %7.1f %% (%5.1f %%)", 100 * fit.routed(), 100 * fit.right()));
      }
      io.println(line.toString());
    }
    for (Object each : (List<?>) report.get("levels")) {
      Map<?, ?> level = (Map<?, ?>) each;
      io.printf(
          "sparsity %s: %.1f %% of all units approximated, perplexity %.4f, the same likeliest"
              + " token in %.1f %%; dense %.4f",
          level.get("sparsity"),
          100 * number(level, "forecast_share"),
          number(level, "forecast_perplexity"),
          100 * number(level, "forecast_agreement"),
          number(level, "dense_perplexity"));
      io.printf(
          "  skipped instead (greedy routing): %.1f %%, perplexity %.4f, the same token in %.1f %%",
          100 * number(level, "skip_share"),
          number(level, "skip_perplexity"),
          100 * number(level, "skip_agreement"));
      io.printf("  written: %s", level.get("file"));
    }
  }

  private static double number(Map<?, ?> level, String key) {
    return ((Number) level.get(key)).doubleValue();
  }
}
