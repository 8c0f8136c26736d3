package io.fletch.tools;

import io.fletch.sampling.DecodeCounters;
import java.util.List;

/** What decoding costs, by the kind of model: how {@code fletch compare} tells and draws it. */
enum CostKind {
  /** Passes over the weights: a step may fill in any number of tokens, or none. */
  DIFFUSION("fewer_forwards", "forwards, baseline = 1") {
    @Override
    double saving(Contender c, Contender baseline) {
      return baseline.forwards() / c.forwards();
    }

    @Override
    List<String> headings() {
      return List.of(
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
    }

    @Override
    List<String> cells(Contender c, Contender baseline) {
      Counters counters = c.counters();
      DecodeCounters sum = counters.sum();
      return List.of(
          "`" + c.technique() + "`",
          Texts.format("%.1f", 100 * c.accuracy()),
          Texts.format("%d of %d", c.same(), c.score().total()),
          Texts.format("%.1f", c.forwards()),
          Texts.format("%.0f", counters.perAnswer(sum.rows())),
          Texts.format("%.0f", counters.perAnswer(sum.headRows())),
          sum.drafted() == 0
              ? "-"
              : Texts.format("%.0f %%", 100.0 * sum.accepted() / sum.drafted()),
          Texts.format("%.1f", c.tokensPerSecond()),
          Texts.format("%.2f", saving(c, baseline)),
          Texts.format("%.2f", c.speedUp(baseline)));
    }
  },

  /** Bytes of weights per token, see {@link io.fletch.sampling.WeightUse}. */
  AUTOREGRESSIVE("fewer_bytes", "bytes of weights per token, baseline = 1") {
    @Override
    double saving(Contender c, Contender baseline) {
      return bytes(baseline) / bytes(c);
    }

    private static double bytes(Contender c) {
      return c.counters().sum().weights().bytesPerToken();
    }

    @Override
    List<String> headings() {
      return List.of(
          "technique",
          "accuracy %",
          "same answer",
          "perplexity",
          "weights/token",
          "parameters/token",
          "units resting",
          "routed",
          "rows/extend",
          "tokens/s",
          "fewer bytes",
          "speed-up");
    }

    @Override
    List<String> cells(Contender c, Contender baseline) {
      DecodeCounters sum = c.counters().sum();
      long routed = sum.drafted() - sum.accepted();
      return List.of(
          "`" + c.technique() + "`",
          Texts.format("%.1f", 100 * c.accuracy()),
          Texts.format("%d of %d", c.same(), c.score().total()),
          c.perplexity().isMeasured() ? Texts.format("%.4f", c.perplexity().value()) : "-",
          Texts.bytes(Math.round(bytes(c))),
          Texts.count(Math.round(sum.weights().activatedPerToken())),
          sum.units().units() == 0 ? "-" : Texts.format("%.1f %%", 100 * sum.units().restShare()),
          sum.drafted() == 0 ? "-" : Texts.format("%.1f %%", 100.0 * routed / sum.drafted()),
          routed == 0 ? "-" : Texts.format("%.1f", (double) sum.rows() / routed),
          Texts.format("%.1f", c.tokensPerSecond()),
          Texts.format("%.2f", saving(c, baseline)),
          Texts.format("%.2f", c.speedUp(baseline)));
    }
  };

  private final String savingName;
  private final String label;

  CostKind(String savingName, String label) {
    this.savingName = savingName;
    this.label = label;
  }

  /** How many times less it costs than the baseline. */
  abstract double saving(Contender c, Contender baseline);

  /** Heads of the columns. */
  abstract List<String> headings();

  /** A line of the table. */
  abstract List<String> cells(Contender c, Contender baseline);

  /** What {@link #saving} is called in JSON. */
  String savingName() {
    return savingName;
  }

  /** Name of the cost's axis. */
  String label() {
    return label;
  }
}
