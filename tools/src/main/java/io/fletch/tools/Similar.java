package io.fletch.tools;

import java.util.Collection;
import java.util.Comparator;
import java.util.Optional;

/** Names that somebody who mistyped one may have meant. */
final class Similar {
  /** Letters that may be wrong, missing, superfluous or exchanged with the next. */
  private static final int MOST_EDITS = 2;

  /** Shorter beginnings say nothing, and shorter words may have one wrong letter. */
  private static final int LEAST_COMMON = 4;

  /** Of shorter words nearly everything is a neighbour. */
  private static final int SHORTEST = 3;

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
      return shorter >= SHORTEST && distance(given, name) <= 1;
    }
    return given.startsWith(name) || name.startsWith(given) || distance(given, name) <= MOST_EDITS;
  }

  /** Distance of Damerau and Levenshtein, where no part is edited twice. */
  private static int distance(String a, String b) {
    int[][] edits = new int[a.length() + 1][b.length() + 1];
    for (int i = 0; i <= a.length(); i++) {
      for (int j = 0; j <= b.length(); j++) {
        if (i == 0 || j == 0) {
          edits[i][j] = i + j;
          continue;
        }
        int changed = edits[i - 1][j - 1] + (a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1);
        edits[i][j] = Math.min(changed, 1 + Math.min(edits[i - 1][j], edits[i][j - 1]));
        if (i > 1
            && j > 1
            && a.charAt(i - 1) == b.charAt(j - 2)
            && a.charAt(i - 2) == b.charAt(j - 1)) {
          edits[i][j] = Math.min(edits[i][j], edits[i - 2][j - 2] + 1);
        }
      }
    }
    return edits[a.length()][b.length()];
  }
}
