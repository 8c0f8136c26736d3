package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** Every step of a run, in order: what tests and tools look at. Grows while the run goes on. */
public final class DecodeTrace {
  /** What a step did. */
  public enum Kind {
    /** Committed by the transfer policy. */
    COMMIT,
    /** Filled by Prophet or SchED with the most likely tokens. */
    EXIT,
    /** Filled behind the end of the answer. */
    END_FILL
  }

  /**
   * One step. The arrays run in parallel, the surest first, and belong to the step.
   *
   * @param kind what it did
   * @param forwards forwards so far, this step's included
   * @param rows rows so far
   * @param step index of the step in the static chain
   * @param offsets positions counted from the start of the answer
   * @param tokens their token ids
   * @param confidences probability of each under the model; 0 for an end fill
   * @param leftmost whether the leftmost mask was among them
   */
  public record Step(
      Kind kind,
      long forwards,
      long rows,
      int step,
      List<Integer> offsets,
      List<Integer> tokens,
      List<Float> confidences,
      boolean leftmost) {}

  private final List<Step> steps = new ArrayList<>();

  DecodeTrace() {}

  void add(Step step) {
    steps.add(step);
  }

  void clear() {
    steps.clear();
  }

  /** The steps so far; a view. */
  public List<Step> steps() {
    return Collections.unmodifiableList(steps);
  }

  /** The latest step. */
  public Step latest() {
    return steps.getLast();
  }

  /** ARness@1 (specs/diffusion.md 11): share of committing steps that took the leftmost mask. */
  public double leftmostShare() {
    long commits = steps.stream().filter(s -> s.kind() == Kind.COMMIT).count();
    long left = steps.stream().filter(s -> s.kind() == Kind.COMMIT && s.leftmost()).count();
    return commits == 0 ? 0 : (double) left / commits;
  }
}
