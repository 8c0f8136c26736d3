package io.fletch.tools;

import java.util.List;
import java.util.function.ToDoubleFunction;

/**
 * Accuracy against cost as an SVG picture: two panels, cost in forwards or bytes and in time, both
 * relative to the baseline; techniques are numbered and listed beside them. Plain SVG 1.1 without
 * scripts or fonts of its own.
 */
final class CostPicture {
  private static final int PANEL = 320;
  private static final int LEFT = 60;
  private static final int TOP = 50;
  private static final int GAP = 70;
  private static final int LEGEND = 400;
  private static final int LINE = 18;

  private CostPicture() {}

  static String svg(String title, CostKind kind, List<Contender> rows, Contender baseline) {
    int height = Math.max(TOP + PANEL + 60, TOP + rows.size() * LINE + 30);
    int width = LEFT + 2 * PANEL + GAP + 30 + LEGEND;
    StringBuilder s = new StringBuilder();
    s.append(
        Texts.format(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\""
                + " height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n",
            width, height, width, height));
    s.append("<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n");
    text(s, LEFT, 24, "start", title);
    panel(s, LEFT, kind.label(), rows, r -> 1 / kind.saving(r, baseline));
    panel(s, LEFT + PANEL + GAP, "time, baseline = 1", rows, r -> 1 / r.speedUp(baseline));
    for (int i = 0; i < rows.size(); i++) {
      text(
          s,
          LEFT + 2 * PANEL + GAP + 30,
          TOP + 12 + i * LINE,
          "start",
          (i + 1) + "  " + rows.get(i).technique());
    }
    return s.append("</svg>\n").toString();
  }

  private static void panel(
      StringBuilder s,
      int x,
      String label,
      List<Contender> rows,
      ToDoubleFunction<Contender> cost) {
    double mostCost = Math.max(1, rows.stream().mapToDouble(cost).max().orElse(1)) * 1.08;
    double most = rows.stream().mapToDouble(Contender::accuracy).max().orElse(1);
    // Whole tenths above the best accuracy.
    double mostAccuracy = Math.min(1, Math.floor(most * 10 + 1) / 10);
    s.append(
        Texts.format(
            "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\""
                + " stroke=\"black\"/>\n",
            x, TOP, PANEL, PANEL));
    for (int t = 0; t <= 4; t++) {
      double across = mostCost * t / 4;
      double up = mostAccuracy * t / 4;
      text(s, x + PANEL * t / 4, TOP + PANEL + 16, "middle", Texts.format("%.2f", across));
      text(s, x - 6, TOP + PANEL - PANEL * t / 4 + 4, "end", Texts.format("%.0f %%", 100 * up));
    }
    text(s, x + PANEL / 2, TOP + PANEL + 36, "middle", label);
    text(s, x, TOP - 8, "start", "accuracy");
    for (int i = 0; i < rows.size(); i++) {
      double px = x + PANEL * cost.applyAsDouble(rows.get(i)) / mostCost;
      double py = TOP + PANEL - PANEL * rows.get(i).accuracy() / mostAccuracy;
      s.append(
          Texts.format(
              "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" fill-opacity=\"0.7\"/>\n",
              px, py, i == 0 ? "black" : "steelblue"));
      // Neighbours alternate sides, so that equal accuracies stay readable.
      text(
          s,
          (int) Math.round(px) + 5,
          (int) Math.round(py) + (i % 2 == 0 ? -6 : 14),
          "start",
          Integer.toString(i + 1));
    }
  }

  private static void text(StringBuilder s, int x, int y, String anchor, String content) {
    s.append(
        Texts.format(
            "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\">%s</text>\n",
            x, y, anchor, content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")));
  }
}
