package io.fletch.tools;

import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.UnitUse;
import io.fletch.sampling.WeightUse;
import java.util.Map;

/** Costs of answers, added up and written into reports. */
final class Counters {
  private int answers;
  private int exits;
  private DecodeCounters sum = new DecodeCounters(0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0);

  void add(DecodeCounters c) {
    answers++;
    exits += c.exitStep() >= 0 ? 1 : 0;
    sum =
        new DecodeCounters(
            sum.forwards() + c.forwards(),
            sum.rows() + c.rows(),
            sum.headRows() + c.headRows(),
            sum.bytesRead() + c.bytesRead(),
            sum.steps() + c.steps(),
            sum.committed() + c.committed(),
            sum.filled() + c.filled(),
            sum.drafted() + c.drafted(),
            sum.accepted() + c.accepted(),
            -1,
            sum.guideForwards() + c.guideForwards(),
            sum.guideRows() + c.guideRows(),
            sum.weights().plus(c.weights()),
            sum.units().plus(c.units()));
  }

  long forwards() {
    return sum.forwards();
  }

  /** The sum. */
  DecodeCounters sum() {
    return sum;
  }

  /** A mean per answer. */
  double perAnswer(long count) {
    return (double) count / answers;
  }

  /** Writes the sums, and how many answers exited early. */
  void put(Map<String, Object> report) {
    put(sum, report);
    report.put("early_exits", exits);
  }

  /** Writes the counters of one answer. */
  static void put(DecodeCounters c, Map<String, Object> report) {
    report.put("forwards", c.forwards());
    report.put("rows", c.rows());
    report.put("head_rows", c.headRows());
    report.put("bytes_read", c.bytesRead());
    report.put("steps", c.steps());
    report.put("committed", c.committed());
    report.put("filled", c.filled());
    report.put("drafts_proposed", c.drafted());
    report.put("drafts_accepted", c.accepted());
    if (c.guideForwards() > 0) {
      report.put("guide_forwards", c.guideForwards());
      report.put("guide_rows", c.guideRows());
    }
    WeightUse weights = c.weights();
    if (weights.tokens() > 0) {
      report.put("weight_bytes_per_token", Json.rounded(weights.bytesPerToken()));
      report.put("activated_parameters_per_token", Json.rounded(weights.activatedPerToken()));
    }
    UnitUse units = c.units();
    if (units.units() > 0) {
      report.put("units", units.units());
      report.put("units_skipped", units.skipped());
      report.put("units_approximated", units.approximated());
    }
  }

  /** Writes what routing between a small and a large model did. */
  static void putRouting(DecodeCounters c, Map<String, Object> report) {
    long routed = c.drafted() - c.accepted();
    report.put("routed_tokens", routed);
    if (c.drafted() > 0) {
      report.put("routed_share", Json.rounded((double) routed / c.drafted()));
    }
    if (routed > 0) {
      report.put("rows_per_extend", Json.rounded((double) c.rows() / routed));
    }
  }

  /** What routing did, as a sentence. */
  static String routing(DecodeCounters c) {
    long routed = c.drafted() - c.accepted();
    String share = Texts.format("%.1f", 100.0 * routed / Math.max(1, c.drafted()));
    return routed == 0
        ? "no token from the large model"
        : Texts.format(
            "%s %% of the tokens from the large model, which ran %.1f rows for each",
            share, (double) c.rows() / routed);
  }

  /** What a token cost in weights, as a sentence. */
  static String weights(WeightUse use) {
    return Texts.format(
        "%s of weights read and %s parameters activated per token",
        Texts.bytes(Math.round(use.bytesPerToken())),
        Texts.count(Math.round(use.activatedPerToken())));
  }
}
