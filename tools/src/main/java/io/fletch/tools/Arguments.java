package io.fletch.tools;

import java.io.File;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.Optional;
import java.util.stream.Collectors;
import org.apache.commons.cli.CommandLine;
import org.apache.commons.cli.DefaultParser;
import org.apache.commons.cli.MissingArgumentException;
import org.apache.commons.cli.Option;
import org.apache.commons.cli.Options;
import org.apache.commons.cli.ParseException;
import org.apache.commons.cli.UnrecognizedOptionException;

/**
 * A parsed command line with typed, range-checked access. Where an option that takes one value is
 * given twice, the last one counts. Immutable.
 */
final class Arguments {
  private final CommandLine line;

  private Arguments(CommandLine line) {
    this.line = line;
  }

  /**
   * Parses the arguments after the command's name.
   *
   * @throws UsageException if they do not fit the sections
   */
  static Arguments parse(List<Command.Section> sections, List<String> args) {
    Options options = new Options();
    for (Command.Section section : sections) {
      section.options().forEach(options::addOption);
    }
    // Names in full, so that a new option never makes a script's abbreviation ambiguous; and a
    // prompt in quotation marks keeps them.
    DefaultParser parser =
        DefaultParser.builder()
            .setAllowPartialMatching(false)
            .setStripLeadingAndTrailingQuotes(false)
            .get();
    try {
      return new Arguments(parser.parse(options, args.toArray(String[]::new)));
    } catch (UnrecognizedOptionException e) {
      if (e.getOption().contains(" ")) {
        throw new UsageException(
            "unknown option " + e.getOption() + " (write -- before a text that begins with -)");
      }
      String name = e.getOption().replaceFirst("^-+", "").replaceFirst("=.*", "");
      List<String> names =
          options.getOptions().stream().map(Option::getLongOpt).filter(Objects::nonNull).toList();
      throw new UsageException(
          "unknown option "
              + e.getOption()
              + Similar.to(name, names).map(n -> ", perhaps --" + n).orElse(""));
    } catch (MissingArgumentException e) {
      throw new UsageException(
          spelled(e.getOption()) + " needs a value (" + e.getOption().getArgName() + ")");
    } catch (ParseException e) {
      throw new UsageException(e.getMessage());
    }
  }

  private static String spelled(Option option) {
    return option.getLongOpt() == null ? "-" + option.getOpt() : "--" + option.getLongOpt();
  }

  /** Whether the option was given. */
  boolean has(String name) {
    return line.hasOption(name);
  }

  /** The value of an option. */
  Optional<String> string(String name) {
    String[] values = line.getOptionValues(name);
    return values == null ? Optional.empty() : Optional.of(values[values.length - 1]);
  }

  /** The value of an option that must be given. */
  String required(String name) {
    return string(name).orElseThrow(() -> new UsageException("--" + name + " is required"));
  }

  /** All values of an option that may be repeated, in order. */
  List<String> strings(String name) {
    String[] values = line.getOptionValues(name);
    return values == null ? List.of() : List.of(values);
  }

  /** A whole number in a range. */
  int integer(String name, int otherwise, int min, int max) {
    return (int) whole(name, otherwise, min, max);
  }

  /** A whole number in a range. */
  long whole(String name, long otherwise, long min, long max) {
    Optional<String> text = string(name);
    if (text.isEmpty()) {
      return otherwise;
    }
    try {
      long value = Long.parseLong(text.get().strip());
      if (value >= min && value <= max) {
        return value;
      }
    } catch (NumberFormatException _) {
      // Reported below, like a value out of range.
    }
    String range =
        max == Integer.MAX_VALUE || max == Long.MAX_VALUE
            ? (min == Long.MIN_VALUE ? "a whole number" : "a whole number >= " + min)
            : "a whole number from " + min + " to " + max;
    throw wrong(name, range, text.get());
  }

  /** A number in a range; NaN never is. */
  float real(String name, float otherwise, float min, float max) {
    Optional<String> text = string(name);
    if (text.isEmpty()) {
      return otherwise;
    }
    try {
      float value = Float.parseFloat(text.get().strip());
      if (value >= min && value <= max) {
        return value;
      }
    } catch (NumberFormatException _) {
      // Reported below, like a value out of range.
    }
    StringBuilder range = new StringBuilder("a number");
    if (min == Float.MIN_VALUE) {
      range.append(" above 0");
    } else if (min != -Float.MAX_VALUE) {
      range.append(" >= ").append(shortest(min));
    }
    if (max != Float.MAX_VALUE) {
      range.append(", at most ").append(shortest(max));
    }
    throw wrong(name, range.toString(), text.get());
  }

  /** A constant of an enumeration, written in lower case. */
  <E extends Enum<E>> E choice(String name, E otherwise) {
    Optional<String> text = string(name);
    if (text.isEmpty()) {
      return otherwise;
    }
    E[] values = otherwise.getDeclaringClass().getEnumConstants();
    for (E value : values) {
      if (written(value).equals(text.get())) {
        return value;
      }
    }
    throw wrong(
        name,
        Arrays.stream(values).map(Arguments::written).collect(Collectors.joining("|")),
        text.get());
  }

  /** What is not an option. */
  List<String> rest() {
    return line.getArgList();
  }

  /**
   * Refuses what is not an option, for commands that take none.
   *
   * @throws UsageException if there is any
   */
  void checkNoRest() {
    if (!rest().isEmpty()) {
      String first = rest().getFirst();
      boolean isModel = !line.hasOption("model") && new File(first).exists();
      throw new UsageException(
          "unexpected argument "
              + first
              + (isModel ? " (a model is given as --model " + first + ")" : ""));
    }
  }

  private static String written(Enum<?> value) {
    return value.name().toLowerCase(Locale.ROOT);
  }

  private static String shortest(float value) {
    return value == Math.rint(value) ? Long.toString((long) value) : Float.toString(value);
  }

  private static UsageException wrong(String name, String expected, String actual) {
    return new UsageException("--" + name + ": expected=" + expected + " actual=" + actual);
  }
}
