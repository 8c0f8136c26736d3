package io.fletch.tools;

import java.util.Collection;
import java.util.Comparator;
import java.util.Optional;

/** Names that somebody who mistyped one may have meant. */
final class Similar {
  /** Letters that may be wrong, missing or superfluous. */
  private static final int MOST_EDITS = 2;

  /** Shorter beginnings say nothing. */
  private static final int LEAST_COMMON = 4;

  private Similar() {}

  /** The likeliest of some names; empty if none is close. */
  static Optional<String> to(String given, Collection<String> names) {
    return names.stream()
        .filter(name -> isClose(given, name))
        .min(
            Comparator.comparingInt((String name) -> distance(given, name))
                .thenComparing(Comparator.naturalOrder()));
  }

  private static boolean isClose(String given, String name) {
    int shorter = Math.min(given.length(), name.length());
    if (shorter < LEAST_COMMON) {
      return false;
    }
    return given.startsWith(name) || name.startsWith(given) || distance(given, name) <= MOST_EDITS;
  }

  /** Levenshtein's distance. */
  private static int distance(String a, String b) {
    int[] row = new int[b.length() + 1];
    for (int j = 0; j < row.length; j++) {
      row[j] = j;
    }
    for (int i = 1; i <= a.length(); i++) {
      int diagonal = row[0];
      row[0] = i;
      for (int j = 1; j <= b.length(); j++) {
        int changed = diagonal + (a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1);
        diagonal = row[j];
        row[j] = Math.min(changed, 1 + Math.min(row[j], row[j - 1]));
      }
    }
    return row[b.length()];
  }
}
