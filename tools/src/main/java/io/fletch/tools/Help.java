package io.fletch.tools;

import java.util.List;
import org.apache.commons.cli.Option;

/** Texts of {@code --help}. */
final class Help {
  private static final int COLUMN = 30;
  private static final int WIDTH = 100;

  private Help() {}

  /** The help of a command. */
  static String of(String name, Command command, List<Command.Section> sections) {
    StringBuilder text = new StringBuilder();
    text.append("usage: fletch ").append(name).append(' ').append(command.usage()).append("\n\n");
    text.append(command.description().strip()).append('\n');
    for (Command.Section section : sections) {
      text.append('\n').append(section.title()).append(":\n");
      for (Option option : section.options()) {
        entry(text, spelled(option), option.getDescription());
      }
    }
    if (!command.examples().isEmpty()) {
      text.append("\nExamples:\n");
      command.examples().forEach(example -> text.append("  ").append(example).append('\n'));
    }
    return text.toString();
  }

  private static String spelled(Option option) {
    StringBuilder text = new StringBuilder();
    text.append(option.getOpt() == null ? "    " : "-" + option.getOpt() + ", ");
    text.append("--").append(option.getLongOpt());
    if (option.hasArg()) {
      text.append(' ').append(option.getArgName());
    }
    return text.toString();
  }

  /** Appends a term and its explanation, the latter wrapped and aligned. */
  static void entry(StringBuilder text, String term, String explanation) {
    StringBuilder line = new StringBuilder("  ").append(term);
    if (line.length() > COLUMN - 2) {
      text.append(line).append('\n');
      line.setLength(0);
    }
    pad(line);
    for (String word : explanation.split(" ")) {
      if (line.length() > COLUMN && line.length() + 1 + word.length() > WIDTH) {
        text.append(line).append('\n');
        line.setLength(0);
        pad(line);
      }
      if (line.length() > COLUMN) {
        line.append(' ');
      }
      line.append(word);
    }
    text.append(line).append('\n');
  }

  private static void pad(StringBuilder line) {
    line.repeat(' ', COLUMN - line.length());
  }
}
