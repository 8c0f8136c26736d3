package io.fletch;

import java.util.List;

/**
 * How much of the beginning of an answer is text whatever comes, while the answer grows. Looks at
 * every character a bounded number of times, however the answer is cut into pieces. Confined to one
 * thread.
 */
final class PlainText {
  /** Calls begin with one of these; empty if a call is the whole answer. */
  private final List<String> marks;

  /** What an answer that is a call may begin with, besides a brace. */
  private final String first;

  private final StringBuilder text = new StringBuilder();

  /** No mark begins before it. */
  private int scanned;

  /** Behind the last character before {@link #scanned} that is no blank. */
  private int solid;

  private boolean isDecided;
  private int length;
  private long looks;

  /**
   * Of an answer that may have calls in it.
   *
   * @param marks one or more, with which calls begin
   */
  PlainText(List<String> marks) {
    this.marks = List.copyOf(marks);
    this.first = "";
  }

  /**
   * Of an answer that may be a call as a whole.
   *
   * @param first what it may begin with, besides a brace
   */
  PlainText(String first) {
    this.marks = List.of();
    this.first = first;
  }

  /** The answer so far. */
  StringBuilder text() {
    return text;
  }

  /** How many characters were looked at, those that were looked at again included. */
  long looks() {
    return looks;
  }

  /**
   * Takes more of the answer.
   *
   * @return how many characters from its beginning are text; never falls
   */
  int append(String more) {
    text.append(more);
    if (marks.isEmpty()) {
      length = whole();
    } else if (!isDecided) {
      length = before();
    }
    return length;
  }

  private int whole() {
    if (isDecided) {
      return length == 0 ? 0 : text.length();
    }
    int to = text.length();
    while (scanned < to && Character.isWhitespace(text.charAt(scanned))) {
      scanned++;
      looks++;
    }
    if (scanned == to) {
      return 0;
    }
    int n = Math.min(first.length(), to - scanned);
    looks += n + 1;
    if (text.charAt(scanned) == '{') {
      isDecided = true;
    } else if (first.startsWith(text.substring(scanned, scanned + n))) {
      isDecided = n == first.length();
    } else {
      isDecided = true;
      return to;
    }
    return 0;
  }

  private int before() {
    int to = text.length();
    for (String mark : marks) {
      int found = text.indexOf(mark, scanned);
      isDecided |= found >= 0;
      to = Math.min(to, found >= 0 ? found : text.length() - begun(mark));
    }
    looks += (long) (text.length() - scanned) * (marks.size() + 1);
    // Blanks before a call are no content.
    for (; scanned < to; scanned++) {
      if (!Character.isWhitespace(text.charAt(scanned))) {
        solid = scanned + 1;
      }
    }
    return solid;
  }

  /** How many characters of a mark the text ends with, without having all. */
  private int begun(String mark) {
    int n = Math.min(mark.length() - 1, text.length() - scanned);
    while (!mark.startsWith(text.substring(text.length() - n))) {
      n--;
    }
    looks += mark.length();
    return n;
  }
}
