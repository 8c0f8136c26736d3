package io.fletch.tools;

import java.util.Arrays;
import java.util.stream.Collectors;

/** Lists of token ids as text. */
final class Ids {
  private Ids() {}

  /**
   * Reads ids separated by commas or white space; brackets around the list are allowed, so that
   * JSON arrays can be pasted.
   *
   * @throws UsageException if there is none, or something else
   */
  static int[] parse(String text) {
    String list = text.strip();
    if (list.startsWith("[") && list.endsWith("]")) {
      list = list.substring(1, list.length() - 1).strip();
    }
    if (list.isEmpty()) {
      throw new UsageException("no token ids given");
    }
    String[] words = list.split("[\\s,]+");
    int[] ids = new int[words.length];
    for (int i = 0; i < ids.length; i++) {
      try {
        ids[i] = Integer.parseInt(words[i]);
      } catch (NumberFormatException _) {
        throw new UsageException("token ids: expected=whole numbers actual=" + words[i]);
      }
    }
    return ids;
  }

  /**
   * Checks that the vocabulary has them all.
   *
   * @throws CommandException if not
   */
  static void check(int[] ids, int vocabularySize) {
    for (int i = 0; i < ids.length; i++) {
      if (ids[i] < 0 || ids[i] >= vocabularySize) {
        throw new CommandException(
            "token id out of range at index "
                + i
                + ": expected=0.."
                + (vocabularySize - 1)
                + " actual="
                + ids[i]);
      }
    }
  }

  /** Writes ids separated by spaces. */
  static String format(int[] ids) {
    return Arrays.stream(ids).mapToObj(Integer::toString).collect(Collectors.joining(" "));
  }
}
