package io.fletch.runtime.tokenizer;

import java.util.List;
import java.util.function.IntPredicate;

/**
 * One step that splits pieces into smaller ones. Steps are immutable and thread-safe; they are
 * chained by wrapping the sink of the next step, once per text.
 */
@FunctionalInterface
interface PreTokenizer {
  /** A sink that splits what it is given and hands the parts on. */
  PieceSink before(PieceSink sink);

  /** What becomes of the text that a {@link #split} pattern matches; names of tokenizer.json. */
  enum Behavior {
    /** Dropped. */
    REMOVED,
    /** A piece of its own. */
    ISOLATED,
    /** Added to the piece before. */
    MERGED_WITH_PREVIOUS,
    /** Added to the piece after. */
    MERGED_WITH_NEXT,
    /** Neighbouring matches together are one piece. */
    CONTIGUOUS
  }

  /** The steps one after another. */
  static PreTokenizer sequence(List<PreTokenizer> steps) {
    List<PreTokenizer> copy = List.copyOf(steps);
    return sink -> {
      PieceSink chain = sink;
      for (int i = copy.size() - 1; i >= 0; i--) {
        chain = copy.get(i).before(chain);
      }
      return chain;
    };
  }

  /** Matches and the text between them are pieces. */
  static PreTokenizer isolate(String regex) {
    SplitPattern pattern = SplitPattern.compile(regex);
    return sink ->
        (text, from, to) -> {
          int done = from;
          SplitPattern.Finder finder = pattern.new Finder(text, from, to);
          while (finder.find()) {
            if (finder.start() > done) {
              sink.accept(text, done, finder.start());
            }
            sink.accept(text, finder.start(), finder.end());
            done = finder.end();
          }
          if (done < to) {
            sink.accept(text, done, to);
          }
        };
  }

  /** Splits by a pattern with a choice of behaviours; {@code invert} swaps matches and gaps. */
  static PreTokenizer split(String regex, Behavior behavior, boolean invert) {
    if (behavior == Behavior.ISOLATED) {
      return isolate(regex);
    }
    SplitPattern pattern = SplitPattern.compile(regex);
    return sink ->
        (text, from, to) -> {
          Joiner joiner = new Joiner(behavior, sink, text, from);
          int done = from;
          SplitPattern.Finder finder = pattern.new Finder(text, from, to);
          while (finder.find()) {
            if (finder.start() > done) {
              joiner.part(finder.start(), invert);
            }
            joiner.part(finder.end(), !invert);
            done = finder.end();
          }
          if (done < to) {
            joiner.part(to, invert);
          }
          joiner.finish();
        };
  }

  /** Splits at a literal. */
  static PreTokenizer splitLiteral(String literal, Behavior behavior, boolean invert) {
    return sink ->
        (text, from, to) -> {
          Joiner joiner = new Joiner(behavior, sink, text, from);
          int done = from;
          int hit;
          while ((hit = text.indexOf(literal, done, to)) >= 0) {
            if (hit > done) {
              joiner.part(hit, invert);
            }
            done = hit + literal.length();
            joiner.part(done, !invert);
          }
          if (done < to) {
            joiner.part(to, invert);
          }
          joiner.finish();
        };
  }

  /** Splits by single characters; every character in the set is a match of its own. */
  static PreTokenizer splitCharacters(IntPredicate set, Behavior behavior) {
    return sink ->
        (text, from, to) -> {
          Joiner joiner = new Joiner(behavior, sink, text, from);
          int done = from;
          for (int at = from; at < to; ) {
            int cp = text.codePointAt(at);
            int after = Math.min(at + Character.charCount(cp), to);
            if (set.test(cp)) {
              if (at > done) {
                joiner.part(at, false);
              }
              joiner.part(after, true);
              done = after;
            }
            at = after;
          }
          if (done < to) {
            joiner.part(to, false);
          }
          joiner.finish();
        };
  }

  /** Joins neighbouring parts as a behaviour asks. */
  final class Joiner {
    private final Behavior behavior;
    private final PieceSink sink;
    private final String text;
    private int from;
    private int to;
    private boolean match;

    Joiner(Behavior behavior, PieceSink sink, String text, int from) {
      this.behavior = behavior;
      this.sink = sink;
      this.text = text;
      this.from = from;
      this.to = from;
    }

    /** The next part ends at {@code end}. */
    void part(int end, boolean isMatch) {
      boolean joins =
          to > from
              && switch (behavior) {
                case REMOVED, ISOLATED -> false;
                case MERGED_WITH_PREVIOUS -> isMatch && !match;
                case MERGED_WITH_NEXT -> match && !isMatch;
                case CONTIGUOUS -> match == isMatch;
              };
      if (!joins) {
        finish();
        from = to;
      }
      to = end;
      match = isMatch;
    }

    void finish() {
      if (to > from && !(match && behavior == Behavior.REMOVED)) {
        sink.accept(text, from, to);
      }
      from = to;
    }
  }

  /**
   * White space at the end of a line or of the piece is a piece: the pattern {@code \s+$}. An
   * automaton would read a run of white space again from each of its characters.
   */
  static PreTokenizer trailingSpace() {
    return sink ->
        (text, from, to) -> {
          int done = from;
          for (int at = from; at < to; ) {
            if (!CharSet.isSpace(text.charAt(at))) {
              at++;
              continue;
            }
            int run = at;
            int stop = -1;
            while (at < to && CharSet.isSpace(text.charAt(at))) {
              if (at > run && text.charAt(at) == '\n') {
                stop = at;
              }
              at++;
            }
            stop = at == to ? to : stop;
            if (stop > run) {
              if (run > done) {
                sink.accept(text, done, run);
              }
              sink.accept(text, run, stop);
              done = stop;
            }
          }
          if (done < to) {
            sink.accept(text, done, to);
          }
        };
  }

  /**
   * Digits in groups of three counted from the right.
   *
   * @param needsBoundary only runs that end at a word boundary ({@code \d{1,3}(?=(?:\d{3})*\b)});
   *     otherwise all ({@code (?=(\d{3})+(?!\d))})
   */
  static PreTokenizer digitGroups(boolean needsBoundary) {
    return sink ->
        (text, from, to) -> {
          int done = from;
          for (int at = from; at < to; ) {
            int cp = text.codePointAt(at);
            if (!CharSet.DIGIT.contains(cp)) {
              at = Math.min(at + Character.charCount(cp), to);
              continue;
            }
            int run = at;
            int digits = 0;
            while (at < to && CharSet.DIGIT.contains(text.codePointAt(at))) {
              at = Math.min(at + Character.charCount(text.codePointAt(at)), to);
              digits++;
            }
            if (needsBoundary && at < to && CharSet.WORD.contains(text.codePointAt(at))) {
              continue;
            }
            if (needsBoundary && run > done) {
              sink.accept(text, done, run);
              done = run;
            }
            int group = run;
            for (int left = digits; group < at; left--) {
              if (left % 3 == 0 && group > done) {
                sink.accept(text, done, group);
                done = group;
              }
              group = Math.min(group + Character.charCount(text.codePointAt(group)), at);
            }
            if (needsBoundary) {
              sink.accept(text, done, at);
              done = at;
            }
          }
          if (done < to) {
            sink.accept(text, done, to);
          }
        };
  }

  /** Replaces each byte of the UTF-8 form by its character of the byte alphabet. */
  static PreTokenizer spellBytes() {
    return sink ->
        (text, from, to) -> {
          byte[] utf8 = new byte[Utf8.maxBytes(to - from)];
          String spelled = ByteAlphabet.spell(utf8, Utf8.encode(text, from, to, utf8));
          sink.accept(spelled, 0, spelled.length());
        };
  }
}
