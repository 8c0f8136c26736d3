package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * The rules of a grammar in flat arrays: an alternative is a run of positions, each a set of bytes,
 * a reference to a rule, or the end. Characters beyond ASCII have become sequences of byte sets.
 * Immutable once built.
 */
final class GrammarRules {
  static final int END = -1;

  /** Positions that all rules may have together; repetitions are written out. */
  private static final int MOST_POSITIONS = 500_000;

  /** A byte set, a rule, or nothing behind. */
  sealed interface Element {}

  /** One byte of the set. */
  record Bytes(BitSet set) implements Element {}

  /** What the rule says. */
  record Reference(int rule) implements Element {}

  private final List<List<List<Element>>> building = new ArrayList<>();
  private final List<String> names = new ArrayList<>();
  private final Map<Object, Integer> shared = new HashMap<>();
  private int positions;

  // [position]: index of a byte set, or MOST_POSITIONS + rule, or END.
  private int[] element;
  private int[][] starts;
  private final List<long[]> sets = new ArrayList<>();
  private int root;

  /** Makes a rule without alternatives. */
  int newRule(String name) {
    names.add(name);
    building.add(new ArrayList<>());
    return names.size() - 1;
  }

  /** Adds an alternative to a rule. */
  void add(int rule, List<Element> alternative) {
    positions += alternative.size() + 1;
    if (positions > MOST_POSITIONS) {
      throw new SamplingException(
          "the grammar is too large: elements with repetitions written out expected<="
              + MOST_POSITIONS);
    }
    building.get(rule).add(List.copyOf(alternative));
  }

  boolean isDefined(int rule) {
    return !building.get(rule).isEmpty();
  }

  /** A rule for {@code least} to {@code most} times; {@code most} is -1 for any number. */
  Element repeat(Element one, int least, int most) {
    int out = newRule("repetition");
    List<Element> sequence = new ArrayList<>();
    for (int i = 0; i < least; i++) {
      sequence.add(one);
    }
    if (most < 0) {
      sequence.add(new Reference(star(one)));
    } else {
      Element rest = null;
      for (int i = least; i < most; i++) {
        int optional = newRule("optional");
        add(optional, rest == null ? List.of(one) : List.of(one, rest));
        add(optional, List.of());
        rest = new Reference(optional);
      }
      if (rest != null) {
        sequence.add(rest);
      }
    }
    add(out, sequence);
    return new Reference(out);
  }

  private int star(Element one) {
    return shared.computeIfAbsent(
        List.of("star", one),
        _ -> {
          int star = newRule("star");
          add(star, List.of(one, new Reference(star)));
          add(star, List.of());
          return star;
        });
  }

  /** An element for one character of the set of code points. */
  Element character(BitSet codePoints) {
    if (codePoints.length() <= 0x80) {
      return new Bytes(codePoints);
    }
    Integer known = shared.get(codePoints);
    if (known == null) {
      known = newRule("class");
      shared.put((BitSet) codePoints.clone(), known);
      BitSet ascii = codePoints.get(0, 0x80);
      if (!ascii.isEmpty()) {
        add(known, List.of(new Bytes(ascii)));
      }
      for (int from = codePoints.nextSetBit(0x80); from >= 0; ) {
        int end = codePoints.nextClearBit(from);
        utf8(known, from, end - 1);
        from = codePoints.nextSetBit(end);
      }
    }
    return new Reference(known);
  }

  /** Splits a range of code points into products of byte ranges. */
  private void utf8(int rule, int from, int to) {
    for (int last : new int[] {0x7ff, 0xd7ff, 0xffff}) {
      if (from <= last && to > last) {
        utf8(rule, from, last);
        utf8(rule, last + 1, to);
        return;
      }
    }
    if (from >= 0xd800 && from <= 0xdfff) {
      if (to <= 0xdfff) {
        return;
      }
      from = 0xe000;
    }
    int length = from <= 0x7ff ? 2 : from <= 0xffff ? 3 : 4;
    for (int i = 1; i < length; i++) {
      int mask = (1 << (6 * i)) - 1;
      if ((from & ~mask) != (to & ~mask)) {
        if ((from & mask) != 0) {
          utf8(rule, from, from | mask);
          utf8(rule, (from | mask) + 1, to);
          return;
        }
        if ((to & mask) != mask) {
          utf8(rule, from, (to & ~mask) - 1);
          utf8(rule, to & ~mask, to);
          return;
        }
      }
    }
    List<Element> sequence = new ArrayList<>();
    for (int i = length - 1; i >= 0; i--) {
      int a = unit(from, i, length);
      int b = unit(to, i, length);
      BitSet set = new BitSet();
      set.set(a, b + 1);
      sequence.add(new Bytes(set));
    }
    add(rule, sequence);
  }

  private static int unit(int codePoint, int i, int length) {
    int bits = codePoint >> (6 * i);
    return i == length - 1 ? 0xf00 >> length & 0xff | bits : 0x80 | bits & 0x3f;
  }

  /** Fixes the rules; what is defined nowhere is refused before. */
  GrammarRules build(int rootRule) {
    root = rootRule;
    checkProductive();
    checkLeftRecursion();
    element = new int[positions];
    starts = new int[building.size()][];
    Map<BitSet, Integer> index = new HashMap<>();
    int at = 0;
    for (int r = 0; r < building.size(); r++) {
      List<List<Element>> alternatives = building.get(r);
      starts[r] = new int[alternatives.size()];
      for (int a = 0; a < alternatives.size(); a++) {
        starts[r][a] = at;
        for (Element e : alternatives.get(a)) {
          element[at++] =
              switch (e) {
                case Reference ref -> MOST_POSITIONS + ref.rule();
                case Bytes bytes ->
                    index.computeIfAbsent(
                        bytes.set(),
                        set -> {
                          sets.add(Arrays.copyOf(set.toLongArray(), 4));
                          return sets.size() - 1;
                        });
              };
        }
        element[at++] = END;
      }
    }
    building.clear();
    shared.clear();
    return this;
  }

  /**
   * A rule that no finite text fits would be a way into which an answer goes and never comes out.
   */
  private void checkProductive() {
    int n = building.size();
    boolean[] isProductive = new boolean[n];
    for (boolean changed = true; changed; ) {
      changed = false;
      // Rules mostly refer to later ones.
      for (int r = n - 1; r >= 0; r--) {
        if (!isProductive[r]
            && building.get(r).stream().anyMatch(a -> isProductive(a, isProductive))) {
          isProductive[r] = true;
          changed = true;
        }
      }
    }
    for (int r = 0; r < n; r++) {
      if (!isProductive[r]) {
        throw new SamplingException(
            "grammar rule "
                + names.get(r)
                + " never ends: expected=an alternative without itself actual=none");
      }
    }
  }

  private static boolean isProductive(List<Element> alternative, boolean[] isProductive) {
    for (Element e : alternative) {
      if (e instanceof Reference ref && !isProductive[ref.rule()]) {
        return false;
      }
    }
    return true;
  }

  /**
   * A rule that reaches itself before any byte grows the stack for ever, unless nothing follows it:
   * such references take no room (a repetition of something empty is of that kind).
   */
  private void checkLeftRecursion() {
    int n = building.size();
    boolean[] nullable = new boolean[n];
    for (boolean changed = true; changed; ) {
      changed = false;
      for (int r = 0; r < n; r++) {
        if (!nullable[r] && building.get(r).stream().anyMatch(a -> isNullable(a, nullable))) {
          nullable[r] = true;
          changed = true;
        }
      }
    }
    // Leftmost references; with something behind them or not.
    List<List<int[]>> edges = new ArrayList<>();
    for (int r = 0; r < n; r++) {
      List<int[]> out = new ArrayList<>();
      for (List<Element> alternative : building.get(r)) {
        for (int i = 0; i < alternative.size(); i++) {
          if (!(alternative.get(i) instanceof Reference ref)) {
            break;
          }
          out.add(new int[] {ref.rule(), i + 1 < alternative.size() ? 1 : 0});
          if (!nullable[ref.rule()]) {
            break;
          }
        }
      }
      edges.add(out);
    }
    int[] component = components(edges);
    for (int r = 0; r < n; r++) {
      for (int[] edge : edges.get(r)) {
        if (edge[1] == 1 && component[edge[0]] == component[r]) {
          throw new SamplingException(
              "grammar rule "
                  + names.get(edge[0])
                  + " is left-recursive: it reaches itself before any text; write the repetition"
                  + " with * or on the right");
        }
      }
    }
  }

  private static boolean isNullable(List<Element> alternative, boolean[] nullable) {
    for (Element e : alternative) {
      if (!(e instanceof Reference ref) || !nullable[ref.rule()]) {
        return false;
      }
    }
    return true;
  }

  /** Strongly connected components (Tarjan's algorithm without recursion). */
  private static int[] components(List<List<int[]>> edges) {
    int n = edges.size();
    int[] component = new int[n];
    int[] number = new int[n];
    int[] low = new int[n];
    int[] next = new int[n];
    int[] path = new int[n];
    int[] open = new int[n];
    boolean[] isOpen = new boolean[n];
    Arrays.fill(number, -1);
    int numbers = 0;
    int components = 0;
    int opened = 0;
    for (int start = 0; start < n; start++) {
      if (number[start] >= 0) {
        continue;
      }
      int depth = 0;
      path[0] = start;
      while (depth >= 0) {
        int v = path[depth];
        if (number[v] < 0) {
          number[v] = low[v] = numbers++;
          open[opened++] = v;
          isOpen[v] = true;
        }
        if (next[v] < edges.get(v).size()) {
          int w = edges.get(v).get(next[v]++)[0];
          if (number[w] < 0) {
            path[++depth] = w;
          } else if (isOpen[w]) {
            low[v] = Math.min(low[v], number[w]);
          }
        } else {
          if (low[v] == number[v]) {
            int w;
            do {
              w = open[--opened];
              isOpen[w] = false;
              component[w] = components;
            } while (w != v);
            components++;
          }
          depth--;
          if (depth >= 0) {
            low[path[depth]] = Math.min(low[path[depth]], low[v]);
          }
        }
      }
    }
    return component;
  }

  int root() {
    return root;
  }

  /** First positions of a rule's alternatives. */
  int[] starts(int rule) {
    return starts[rule];
  }

  boolean isEnd(int position) {
    return element[position] == END;
  }

  boolean isReference(int position) {
    return element[position] >= MOST_POSITIONS;
  }

  int reference(int position) {
    return element[position] - MOST_POSITIONS;
  }

  /** Whether the byte set at a position holds a byte. */
  boolean accepts(int position, int octet) {
    return (sets.get(element[position])[octet >> 6] >>> octet & 1) != 0;
  }
}
