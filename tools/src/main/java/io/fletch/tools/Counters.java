package io.fletch.tools;

import io.fletch.sampling.DecodeCounters;
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
            sum.guideRows() + c.guideRows());
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
  }
}
