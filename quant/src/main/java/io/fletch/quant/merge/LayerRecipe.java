package io.fletch.quant.merge;

import java.util.ArrayList;
import java.util.List;

/**
 * Which layers a model has: per layer one, or several whose mean it is, each of one of several
 * models (GPTailor, specs weights 4.7). Written as a list such as {@code 0-3,5,1:6,6+7}: layers 0
 * to 3 and 5 of the base, layer 6 of the first other model, and the mean of layers 6 and 7.
 *
 * @param layers in order
 */
public record LayerRecipe(List<List<Source>> layers) {
  /** A layer of a model; 0 is the base. */
  public record Source(int model, int layer) {}

  /** Copies. */
  public LayerRecipe {
    layers = layers.stream().map(List::copyOf).toList();
  }

  /**
   * Reads a recipe.
   *
   * @param layers number of layers of each model
   * @throws IllegalArgumentException if it is malformed or names what is not there
   */
  public static LayerRecipe parse(String text, int[] layers) {
    List<List<Source>> result = new ArrayList<>();
    for (String item : text.split(",", -1)) {
      String word = item.strip();
      int dash = word.indexOf('-');
      if (dash > 0 && word.indexOf('+') < 0) {
        Source first = source(word.substring(0, dash), layers, text);
        Source last = source(first.model() + ":" + word.substring(dash + 1).strip(), layers, text);
        if (last.layer() < first.layer()) {
          throw wrong(text, "a range that rises", word);
        }
        for (int l = first.layer(); l <= last.layer(); l++) {
          result.add(List.of(new Source(first.model(), l)));
        }
        continue;
      }
      List<Source> sources = new ArrayList<>();
      for (String part : word.split("\\+", -1)) {
        sources.add(source(part, layers, text));
      }
      result.add(sources);
    }
    return new LayerRecipe(result);
  }

  private static Source source(String text, int[] layers, String whole) {
    int colon = text.indexOf(':');
    try {
      int model = colon < 0 ? 0 : Integer.parseInt(text.substring(0, colon).strip());
      int layer = Integer.parseInt(text.substring(colon + 1).strip());
      if (model < 0 || model >= layers.length) {
        throw wrong(whole, "models 0.." + (layers.length - 1), text);
      }
      if (layer < 0 || layer >= layers[model]) {
        throw wrong(whole, "layers 0.." + (layers[model] - 1), text);
      }
      return new Source(model, layer);
    } catch (NumberFormatException e) {
      throw wrong(whole, "a list such as 0-3,5,1:6,6+7", text);
    }
  }

  private static IllegalArgumentException wrong(String text, String expected, String actual) {
    return new IllegalArgumentException(
        "layers \"" + text + "\": expected=" + expected + " actual=" + actual);
  }
}
