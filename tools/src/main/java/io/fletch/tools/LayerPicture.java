package io.fletch.tools;

import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * Sparsity, error and outliers per layer as an SVG picture: one panel of bars each, as far as the
 * report has them. Plain SVG 1.1 without scripts or fonts of its own.
 */
final class LayerPicture {
  private static final int PANEL = 120;
  private static final int LEFT = 70;
  private static final int TOP = 40;
  private static final int BAR = 18;

  private LayerPicture() {}

  /** The picture of a report of {@code fletch prune}. */
  static String svg(String title, Map<String, Object> report) {
    List<?> layers = (List<?>) report.get("layers");
    int width = LEFT + Math.max(300, layers.size() * BAR) + 20;
    StringBuilder body = new StringBuilder();
    int y = TOP;
    for (String field : List.of("sparsity", "error", "outliers")) {
      double[] values =
          layers.stream()
              .map(layer -> ((Map<?, ?>) layer).get(field))
              .filter(Objects::nonNull)
              .mapToDouble(v -> ((Number) v).doubleValue())
              .toArray();
      if (values.length == layers.size() && values.length > 0) {
        panel(body, y, field.equals("outliers") ? "outliers, %" : field, values);
        y += PANEL + 50;
      }
    }
    return Texts.format(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\""
                + " height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n",
            width, y, width, y)
        + "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        + text(LEFT, 20, "start", title)
        + body
        + "</svg>\n";
  }

  private static void panel(StringBuilder s, int y, String label, double[] values) {
    double most = 0;
    for (double v : values) {
      most = Math.max(most, v);
    }
    most = most == 0 ? 1 : most;
    s.append(text(LEFT, y + 12, "start", label + " per layer"));
    for (int i = 0; i < values.length; i++) {
      double height = (PANEL - 20) * values[i] / most;
      s.append(
          Texts.format(
              "<rect x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" fill=\"steelblue\"/>\n",
              LEFT + i * BAR, y + PANEL - height, BAR - 4, height));
      if (values.length <= 40 || i % 4 == 0) {
        s.append(text(LEFT + i * BAR + BAR / 2 - 2, y + PANEL + 14, "middle", "" + i));
      }
    }
    s.append(text(LEFT - 6, y + 24, "end", Texts.format("%.4g", most)));
    s.append(text(LEFT - 6, y + PANEL, "end", "0"));
  }

  private static String text(int x, int y, String anchor, String content) {
    return Texts.format(
        "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\">%s</text>\n",
        x, y, anchor, content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"));
  }
}
