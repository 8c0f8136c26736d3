package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.Tokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;

/**
 * The answer of a diffusion model while it fills in, drawn over itself at a terminal: committed
 * tokens where they stand, dots for what is still open in front of them, nothing behind the token
 * that ends the answer. Used by the thread that reads the generation.
 */
final class FillingView {
  private static final String OPEN = "\u00b7";

  /** Lines shown at most: what has scrolled off the screen cannot be drawn over. */
  private static final int MOST_LINES = 16;

  private final Tokenizer tokenizer;
  private final Consumer<String> out;
  private final int width;

  /** Ids by position; -1 where nothing is committed. */
  private final List<Integer> canvas = new ArrayList<>();

  private int linesShown;

  /**
   * A view that has drawn nothing yet; the cursor stands at the start of a line.
   *
   * @param width columns of the terminal, or fewer
   * @param out writes to the terminal at once
   */
  FillingView(Tokenizer tokenizer, int width, Consumer<String> out) {
    this.tokenizer = tokenizer;
    this.width = width;
    this.out = out;
  }

  /** Columns of the terminal as the shell says, else the least that terminals have. */
  static int columns() {
    try {
      return Math.max(20, Integer.parseInt(System.getenv().getOrDefault("COLUMNS", "80")));
    } catch (NumberFormatException _) {
      return 80;
    }
  }

  /** Draws what a chunk has added. */
  void accept(Generation.Chunk chunk) {
    for (int i = 0; i < chunk.ids().size(); i++) {
      int position = chunk.position() + i;
      while (canvas.size() <= position) {
        canvas.add(-1);
      }
      canvas.set(position, chunk.ids().get(i));
    }
    List<String> lines = wrapped(text());
    lines = lines.subList(Math.max(0, lines.size() - MOST_LINES), lines.size());
    out.accept(home() + String.join("\n", lines));
    linesShown = lines.size();
  }

  /** Wipes the drawing; the cursor stands where it began. */
  void clear() {
    out.accept(home());
    linesShown = 0;
  }

  private String home() {
    return (linesShown > 1 ? "\r\033[" + (linesShown - 1) + "A" : "\r") + "\033[J";
  }

  private String text() {
    StringBuilder text = new StringBuilder();
    for (int i = 0; i < canvas.size(); ) {
      if (canvas.get(i) < 0) {
        text.append(OPEN);
        i++;
        continue;
      }
      int from = i;
      while (i < canvas.size() && canvas.get(i) >= 0 && !ends(canvas.get(i))) {
        i++;
      }
      text.append(
          tokenizer.decode(canvas.subList(from, i).stream().mapToInt(Integer::intValue).toArray()));
      if (i < canvas.size() && canvas.get(i) >= 0) {
        break;
      }
    }
    return text.toString();
  }

  private boolean ends(int id) {
    return tokenizer.endOfGeneration().contains(id);
  }

  /** Lines that the terminal does not wrap again. */
  private List<String> wrapped(String text) {
    List<String> lines = new ArrayList<>();
    for (String line : text.split("\n", -1)) {
      int[] points = line.codePoints().filter(c -> !Character.isISOControl(c)).toArray();
      int from = 0;
      do {
        int count = Math.min(width - 1, points.length - from);
        lines.add(new String(points, from, count));
        from += count;
      } while (from < points.length);
    }
    return lines;
  }
}
