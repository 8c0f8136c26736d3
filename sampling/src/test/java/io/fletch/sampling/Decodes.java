package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Runs decoders to their end for the tests, checking on the way what holds for every method. */
final class Decodes {
  static final int VOCABULARY = 40;
  static final int MASK = 39;
  static final int END = 37;
  static final int FILL = 38;
  static final int CONTEXT = 64;

  private Decodes() {}

  static DiffusionModel model(boolean shift, int block) {
    return new DiffusionModel(MASK, new int[] {END}, FILL, VOCABULARY, shift, block);
  }

  static TinyCanvasModel network(long seed) {
    return new TinyCanvasModel(VOCABULARY, CONTEXT, seed, true);
  }

  static int[] prompt(long seed, int length) {
    int[] p = new int[length];
    for (int i = 0; i < length; i++) {
      p[i] = (int) (CounterRandom.uniform(seed, 55, i, 0, 0) * 36);
    }
    return p;
  }

  /** What came out of a run. */
  record Outcome(int[] answer, List<DecodeTrace.Step> steps, DecodeCounters counters) {
    /** Positions and tokens of each step, without what they cost. */
    List<String> commits() {
      List<String> out = new ArrayList<>();
      for (DecodeTrace.Step s : steps) {
        out.add(s.kind() + " " + s.offsets() + " " + s.tokens() + " " + s.confidences());
      }
      return out;
    }

    String tokens() {
      return Arrays.toString(answer);
    }
  }

  static Outcome run(
      CanvasForward forward, DiffusionModel model, DiffusionOptions options, int[] prompt) {
    return run(DiffusionDecoder.of(forward, model, options), options, prompt);
  }

  static Outcome run(DiffusionDecoder d, DiffusionOptions options, int[] prompt) {
    d.start(prompt);
    int n = options.answerLength();
    boolean edits = options.transfer() instanceof Transfer.Edit;
    int[] seen = d.answer();
    int limit = 40 * n;
    while (d.next()) {
      int[] now = d.answer();
      for (int i = 0; i < n; i++) {
        if (seen[i] != MASK
            && seen[i] != now[i]
            && !edits
            && !(options.search() instanceof Search.Soar)) {
          throw new AssertionError("position " + i + " changed from " + seen[i] + " to " + now[i]);
        }
      }
      seen = now;
      if (limit-- == 0) {
        throw new AssertionError("no end in sight");
      }
    }
    int[] canvas = d.canvas();
    if (!Arrays.equals(prompt, Arrays.copyOf(canvas, prompt.length))) {
      throw new AssertionError("the prompt changed");
    }
    for (int t : d.answer()) {
      if (t == MASK) {
        throw new AssertionError("a mask is left: " + Arrays.toString(d.answer()));
      }
    }
    return new Outcome(d.answer(), List.copyOf(d.trace().steps()), d.counters());
  }
}
