package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicReferenceArray;

/**
 * A regular expression as a deterministic automaton that is built while it is used. Finds what a
 * backtracking engine would find (first alternative first, greedy first) but reads each character
 * of a match attempt once, needs no stack and cannot blow up inside an attempt; attempts that fail
 * are bounded by {@link #MAX_WORK_FACTOR}.
 *
 * <p>A state is the ordered list of places in the program where a backtracking engine could be,
 * most preferred first; places after a finished match are cut off since they would never be tried.
 * Characters are mapped to classes (characters that no set of the pattern tells apart), a page of
 * 256 at a time. Look-ahead over one character is decided when that character is read: a state says
 * whether a match ended <em>before</em> the character that led to it.
 *
 * <p>Thread-safe: states and pages are immutable once published; only building one takes the lock.
 */
final class SplitPattern {
  /** Characters read per character of text before a pattern is refused as not linear. */
  static final int MAX_WORK_FACTOR = 200;

  private static final int MAX_PROGRAM = 50_000;
  private static final int MAX_STATES = 20_000;
  private static final int MAX_SETS = 60;
  private static final int MAX_CLASSES = 256;

  /** Class of the end of the text. */
  private static final int END = 0;

  // Program: one instruction per index.
  private static final int CHAR = 0; // argument: set; next
  private static final int SPLIT = 1; // next preferred, argument: other
  private static final int IF = 2; // argument: set; next if the coming character is in it
  private static final int UNLESS = 3; // the contrary, holds at the end of the text too
  private static final int MATCH = 4;

  private final String pattern;
  private final CharSet[] sets;
  private final int[] op;
  private final int[] argument;
  private final int[] next;

  private final AtomicReferenceArray<byte[]> pages = new AtomicReferenceArray<>(0x1100);
  private final Map<Long, Integer> classes = new HashMap<>();
  private final long[] signatures = new long[MAX_CLASSES];
  private final Map<Key, State> states = new HashMap<>();
  private final State start;

  private SplitPattern(String pattern, Program program) {
    this.pattern = pattern;
    this.sets = program.sets.values().toArray(new CharSet[0]);
    this.op = program.op.toArray();
    this.argument = program.argument.toArray();
    this.next = program.next.toArray();
    this.start = new State(new int[] {program.entry}, false);
  }

  /** Compiles a pattern. */
  static SplitPattern compile(String pattern) {
    Program program = new Program(pattern);
    int match = program.emit(MATCH, 0, 0);
    program.entry = program.compile(Regex.parse(pattern), match);
    return new SplitPattern(pattern, program);
  }

  /** The pattern's source. */
  @Override
  public String toString() {
    return pattern;
  }

  /** A search through one text. Not thread-safe; the pattern is. */
  final class Finder {
    private final String text;
    private final int to;
    private int matchStart;
    private int matchEnd;
    private long budget;

    Finder(String text, int from, int to) {
      this.text = text;
      this.to = to;
      this.matchEnd = from;
      this.budget = (long) MAX_WORK_FACTOR * (to - from) + 10_000;
    }

    int start() {
      return matchStart;
    }

    int end() {
      return matchEnd;
    }

    /** Finds the next match that is not empty, after the last one. */
    boolean find() {
      for (int at = matchEnd; at < to; ) {
        int end = match(at);
        if (end > at) {
          matchStart = at;
          matchEnd = end;
          return true;
        }
        at += Character.charCount(codePoint(at));
      }
      return false;
    }

    private int codePoint(int at) {
      char c = text.charAt(at);
      if (Character.isHighSurrogate(c)
          && at + 1 < to
          && Character.isLowSurrogate(text.charAt(at + 1))) {
        return Character.toCodePoint(c, text.charAt(at + 1));
      }
      return c;
    }

    /** The end of the match that begins here, or -1. */
    private int match(int from) {
      int end = -1;
      int at = from;
      State state = start;
      while (true) {
        int cp = 0;
        int charClass = END;
        if (at < to) {
          cp = codePoint(at);
          charClass = charClass(cp);
        }
        State successor = state.next[charClass];
        if (successor == null) {
          successor = successor(state, charClass);
        }
        if (successor.matched) {
          end = at;
        }
        if (successor.places.length == 0) {
          break;
        }
        at += Character.charCount(cp);
        state = successor;
      }
      budget -= at - from;
      if (budget < 0) {
        throw new FletchException(
            "pre-tokenizer pattern needs more than "
                + MAX_WORK_FACTOR
                + " steps per character on this text: "
                + pattern);
      }
      return end;
    }
  }

  private int charClass(int cp) {
    byte[] page = pages.getAcquire(cp >> 8);
    if (page == null) {
      page = page(cp >> 8);
    }
    return page[cp & 0xFF] & 0xFF;
  }

  private synchronized byte[] page(int index) {
    byte[] page = pages.get(index);
    if (page != null) {
      return page;
    }
    page = new byte[256];
    for (int i = 0; i < 256; i++) {
      int cp = index << 8 | i;
      long signature = 0;
      for (int s = 0; s < sets.length; s++) {
        signature |= (sets[s].contains(cp) ? 1L : 0) << s;
      }
      Integer known = classes.get(signature);
      if (known == null) {
        known = classes.size() + 1;
        if (known >= MAX_CLASSES) {
          throw new FletchException(
              "pre-tokenizer pattern distinguishes too many characters, expected<"
                  + MAX_CLASSES
                  + ": "
                  + pattern);
        }
        signatures[known] = signature;
        classes.put(signature, known);
      }
      page[i] = (byte) (int) known;
    }
    pages.setRelease(index, page);
    return page;
  }

  private synchronized State successor(State state, int charClass) {
    long signature = signatures[charClass];
    int[] places = new int[op.length];
    int count = 0;
    boolean matched = false;
    boolean[] seen = new boolean[op.length];
    int[] stack = new int[op.length + 1];
    search:
    for (int place : state.places) {
      int depth = 0;
      stack[depth++] = place;
      while (depth > 0) {
        int pc = stack[--depth];
        if (seen[pc]) {
          continue;
        }
        seen[pc] = true;
        boolean in = (signature >> argument[pc] & 1) != 0;
        switch (op[pc]) {
          case CHAR -> {
            if (charClass != END && in) {
              boolean listed = false;
              for (int i = 0; i < count && !listed; i++) {
                listed = places[i] == next[pc];
              }
              if (!listed) {
                places[count++] = next[pc];
              }
            }
          }
          case SPLIT -> {
            stack = push(stack, depth++, argument[pc]);
            stack = push(stack, depth++, next[pc]);
          }
          case IF -> {
            if (charClass != END && in) {
              stack = push(stack, depth++, next[pc]);
            }
          }
          case UNLESS -> {
            if (charClass == END || !in) {
              stack = push(stack, depth++, next[pc]);
            }
          }
          default -> {
            matched = true;
            break search;
          }
        }
      }
    }
    Key key = new Key(Arrays.copyOf(places, count), matched);
    State successor = states.get(key);
    if (successor == null) {
      if (states.size() >= MAX_STATES) {
        throw new FletchException(
            "pre-tokenizer pattern needs too many states, expected<="
                + MAX_STATES
                + ": "
                + pattern);
      }
      successor = new State(key.places, matched);
      states.put(key, successor);
    }
    state.next[charClass] = successor;
    return successor;
  }

  private static int[] push(int[] stack, int depth, int pc) {
    int[] grown = depth < stack.length ? stack : Arrays.copyOf(stack, stack.length * 2);
    grown[depth] = pc;
    return grown;
  }

  private record Key(int[] places, boolean matched) {
    @Override
    public boolean equals(Object other) {
      return other instanceof Key key
          && key.matched == matched
          && Arrays.equals(key.places, places);
    }

    @Override
    public int hashCode() {
      return Arrays.hashCode(places) * 2 + (matched ? 1 : 0);
    }
  }

  /** Final fields make a state safe to read through a race; a missed successor is built again. */
  private static final class State {
    final int[] places;
    final boolean matched;
    final State[] next = new State[MAX_CLASSES];

    State(int[] places, boolean matched) {
      this.places = places;
      this.matched = matched;
    }
  }

  /** Translates the tree, back to front, so that every instruction knows its successor. */
  private static final class Program {
    final String pattern;
    final Map<String, CharSet> sets = new LinkedHashMap<>();
    final List<String> order = new ArrayList<>();
    final Ints op = new Ints();
    final Ints argument = new Ints();
    final Ints next = new Ints();
    int entry;

    Program(String pattern) {
      this.pattern = pattern;
    }

    int emit(int operation, int arg, int then) {
      if (op.size() >= MAX_PROGRAM) {
        throw new FletchException("pre-tokenizer pattern is too large: " + pattern);
      }
      op.add(operation);
      argument.add(arg);
      next.add(then);
      return op.size() - 1;
    }

    int set(CharSet set) {
      if (sets.putIfAbsent(set.key(), set) == null) {
        order.add(set.key());
        if (order.size() > MAX_SETS) {
          throw new FletchException(
              "pre-tokenizer pattern has too many sets, expected<=" + MAX_SETS + ": " + pattern);
        }
      }
      return order.indexOf(set.key());
    }

    int compile(Regex regex, int then) {
      return switch (regex) {
        case Regex.Chars chars -> emit(CHAR, set(chars.set()), then);
        case Regex.Look look -> emit(look.negated() ? UNLESS : IF, set(look.set()), then);
        case Regex.Sequence sequence -> {
          int at = then;
          for (int i = sequence.parts().size() - 1; i >= 0; i--) {
            at = compile(sequence.parts().get(i), at);
          }
          yield at;
        }
        case Regex.Choice choice -> {
          int at = compile(choice.alternatives().getLast(), then);
          for (int i = choice.alternatives().size() - 2; i >= 0; i--) {
            int preferred = compile(choice.alternatives().get(i), then);
            at = emit(SPLIT, at, preferred);
          }
          yield at;
        }
        case Regex.Repeat repeat -> repeat(repeat, then);
      };
    }

    private int repeat(Regex.Repeat repeat, int then) {
      // Nothing given back means: leave only where one more would not match.
      int leave =
          repeat.greed() == Regex.Greed.POSSESSIVE
              ? emit(UNLESS, set(((Regex.Chars) repeat.part()).set()), then)
              : then;
      int at;
      if (repeat.max() < 0) {
        int loop = emit(SPLIT, leave, leave);
        int body = compile(repeat.part(), loop);
        choose(loop, body, leave, repeat.greed());
        at = loop;
      } else {
        // A possessive part that has taken all it may is free to go.
        at = then;
        for (int i = repeat.min(); i < repeat.max(); i++) {
          int fork = emit(SPLIT, leave, leave);
          choose(fork, compile(repeat.part(), at), leave, repeat.greed());
          at = fork;
        }
      }
      for (int i = 0; i < repeat.min(); i++) {
        at = compile(repeat.part(), at);
      }
      return at;
    }

    private void choose(int fork, int more, int leave, Regex.Greed greed) {
      boolean lazy = greed == Regex.Greed.LAZY;
      next.set(fork, lazy ? leave : more);
      argument.set(fork, lazy ? more : leave);
    }
  }

  /** A growing list of ints that can be patched. */
  private static final class Ints {
    private int[] values = new int[64];
    private int size;

    void add(int value) {
      if (size == values.length) {
        values = Arrays.copyOf(values, size * 2);
      }
      values[size++] = value;
    }

    void set(int index, int value) {
      values[index] = value;
    }

    int size() {
      return size;
    }

    int[] toArray() {
      return Arrays.copyOf(values, size);
    }
  }
}
