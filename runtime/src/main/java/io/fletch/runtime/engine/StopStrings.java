package io.fletch.runtime.engine;

import java.util.List;

/**
 * Finds stop strings in streamed text. Text is withheld as long as it may be the beginning of a
 * stop string, so nothing of one ever gets out, however the text is cut into pieces. The stop
 * string that is complete first wins; of those complete at the same character, the longest. Not
 * thread-safe.
 */
final class StopStrings {
  private final List<String> stops;
  private final StringBuilder held = new StringBuilder();
  private boolean matched;

  StopStrings(List<String> stops) {
    this.stops = stops;
  }

  /** Takes text; returns what is final now. After a match nothing more comes out. */
  String accept(String text) {
    if (matched) {
      return "";
    }
    if (stops.isEmpty()) {
      return text;
    }
    int from = held.length();
    held.append(text);
    for (int end = from + 1; end <= held.length(); end++) {
      int start = matchEndingAt(end);
      if (start >= 0) {
        matched = true;
        return take(start);
      }
    }
    return take(held.length() - undecided());
  }

  /** Whether a stop string was met. */
  boolean matched() {
    return matched;
  }

  /** What is still withheld; empty after a match. */
  String finish() {
    return matched ? "" : take(held.length());
  }

  private String take(int length) {
    String out = held.substring(0, length);
    if (matched) {
      held.setLength(0);
    } else {
      held.delete(0, length);
    }
    return out;
  }

  private int matchEndingAt(int end) {
    int start = -1;
    for (String stop : stops) {
      int at = end - stop.length();
      if (at >= 0 && (start < 0 || at < start) && regionEquals(at, stop, stop.length())) {
        start = at;
      }
    }
    return start;
  }

  /** Length of the longest tail that begins a stop string. */
  private int undecided() {
    int longest = 0;
    for (String stop : stops) {
      int most = Math.min(stop.length() - 1, held.length());
      for (int n = most; n > longest; n--) {
        if (regionEquals(held.length() - n, stop, n)) {
          longest = n;
        }
      }
    }
    return longest;
  }

  private boolean regionEquals(int at, String stop, int length) {
    for (int i = 0; i < length; i++) {
      if (held.charAt(at + i) != stop.charAt(i)) {
        return false;
      }
    }
    return true;
  }
}
