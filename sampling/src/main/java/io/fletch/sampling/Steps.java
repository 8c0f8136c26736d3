package io.fletch.sampling;

import java.util.ArrayList;
import java.util.List;

/** Makes the trace's records. */
final class Steps {
  /** A step that commits a selection, before it is applied. */
  DecodeTrace.Step commit(CanvasState s, Selection selection, Evaluation e, Tally tally) {
    return make(DecodeTrace.Kind.COMMIT, s, selection, e.confidence, tally);
  }

  /** A step that fills all masks, before it is applied. */
  DecodeTrace.Step exit(CanvasState s, Selection selection, Evaluation e, Tally tally) {
    return make(DecodeTrace.Kind.EXIT, s, selection, e.confidence, tally);
  }

  /** Fills every mask with one token. */
  DecodeTrace.Step endFill(CanvasState s, int fill, Tally tally) {
    Selection selection = new Selection();
    for (int p = s.prompt; p < s.length(); p++) {
      if (s.masked(p)) {
        selection.add(p, fill);
      }
    }
    DecodeTrace.Step step =
        make(DecodeTrace.Kind.END_FILL, s, selection, new float[s.length()], tally);
    s.apply(selection);
    s.filled += selection.size();
    tally.filled += selection.size();
    while (s.from < s.length()) {
      s.advance();
    }
    return step;
  }

  private static DecodeTrace.Step make(
      DecodeTrace.Kind kind, CanvasState s, Selection selection, float[] confidence, Tally tally) {
    List<Integer> offsets = new ArrayList<>();
    List<Integer> tokens = new ArrayList<>();
    List<Float> confidences = new ArrayList<>();
    int first = s.firstMask();
    boolean leftmost = false;
    for (int i = 0; i < selection.size(); i++) {
      int p = selection.position(i);
      offsets.add(p - s.prompt);
      tokens.add(selection.token(i));
      confidences.add(Math.max(0, confidence[p]));
      leftmost |= p == first;
    }
    return new DecodeTrace.Step(
        kind,
        tally.forwards,
        tally.rows,
        s.step,
        List.copyOf(offsets),
        List.copyOf(tokens),
        List.copyOf(confidences),
        leftmost);
  }
}
