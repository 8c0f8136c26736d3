package io.fletch.tools;

import io.fletch.GenerationOptions;
import io.fletch.Model;
import java.util.List;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A family of techniques of autoregressive models that {@code fletch compare} measures against the
 * model alone. A technique is a name, which may have one parameter: {@code entropy(threshold=0.6)}.
 * Used by one thread.
 */
interface ComparedTechniques {
  /**
   * What is compared.
   *
   * @param model the model, dense: the baseline
   * @param small a small model beside it; null if none was given
   */
  record Setting(Arguments arguments, Model model, Model small) {}

  /** Who answers, and how. */
  record Way(Model model, GenerationOptions options) {}

  /** All families, in the order of the table. */
  List<ComparedTechniques> FAMILIES = List.of(new ComparedRouting(), new ComparedUnits());

  /** What a comparison without {@code --technique} has of this family; empty if it cannot run. */
  List<String> names(Setting setting);

  /**
   * The technique of that name.
   *
   * @param greedy the options that it adds itself to
   * @return empty if the name is not one of this family
   */
  Optional<Way> way(String name, Setting setting, GenerationOptions greedy);

  /** A name and its parameter. */
  record Named(String name, Optional<String> key, String value) {
    private static final Pattern FORM =
        Pattern.compile("\\s*([\\w+-]+)\\s*(?:\\(\\s*([\\w-]+)\\s*=\\s*([^()\\s]+)\\s*\\))?\\s*");

    /** Takes a technique apart. */
    static Named parse(String text) {
      Matcher m = FORM.matcher(text);
      if (!m.matches()) {
        throw new UsageException(
            "--technique: expected=a name like entropy or entropy(threshold=0.6) actual=" + text);
      }
      return new Named(m.group(1), Optional.ofNullable(m.group(2)), m.group(3));
    }

    /**
     * The number of the only parameter that there is.
     *
     * @param wanted its name
     * @param otherwise its value where it is not given
     */
    double number(String wanted, double otherwise) {
      if (key.isEmpty()) {
        return otherwise;
      }
      try {
        double number = Double.parseDouble(value);
        if (key.get().equals(wanted) && number >= 0) {
          return number;
        }
      } catch (NumberFormatException _) {
        // Said below.
      }
      throw new UsageException(
          "--technique " + name + ": expected=" + wanted + "=X actual=" + key.get() + "=" + value);
    }
  }
}
