package io.fletch.tools;

import java.io.IOException;
import java.util.List;
import org.apache.commons.cli.Option;

/**
 * One command of the program. An instance serves one run, on the main thread. Errors are
 * exceptions; {@link Cli} turns them into a line and a status.
 */
interface Command {
  /** Options that belong together, under a heading of the help. */
  record Section(String title, List<Option> options) {
    public Section {
      options = List.copyOf(options);
    }
  }

  /**
   * What follows {@code fletch NAME} on the command line, for example {@code [options] [PROMPT]}.
   */
  String usage();

  /** What it does, for its help: whole sentences, lines of at most 80 characters. */
  String description();

  /** All options but {@code --help} and {@code --verbose}, which every command has. */
  List<Section> sections();

  /** Command lines worth copying. */
  List<String> examples();

  /** Runs it and returns the exit status. */
  int run(Arguments arguments, Io io) throws IOException;

  /** An option without a value. */
  static Option flag(String name, String description) {
    return Option.builder().longOpt(name).desc(description).get();
  }

  /** An option without a value, with a one-letter form. */
  static Option flag(String letter, String name, String description) {
    return Option.builder(letter).longOpt(name).desc(description).get();
  }

  /** An option with a value. */
  static Option value(String name, String value, String description) {
    return Option.builder().longOpt(name).hasArg().argName(value).desc(description).get();
  }

  /** An option with a value and a one-letter form. */
  static Option value(String letter, String name, String value, String description) {
    return Option.builder(letter).longOpt(name).hasArg().argName(value).desc(description).get();
  }
}
