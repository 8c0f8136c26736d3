package io.fletch.sampling;

import java.util.List;
import java.util.Objects;

/** What is wrapped around the steps of a run: at most one. */
public sealed interface Search {
  /** Nothing: the plain chain of steps. */
  record None() implements Search {}

  /**
   * FreeDave (specs/diffusion.md 6): future canvases are drafted from the present proposals and
   * evaluated together; the output is that of the plain chain.
   *
   * @param depth most canvases per forward; 1 is the plain chain
   * @param maxRows most rows per forward, the point where rows stop being nearly free; 0 for no
   *     limit
   * @param sequential one forward per canvas, for debugging: costs what the plain chain costs or
   *     more, gives the same tokens
   * @param adaptive leaves drafting off while its measured time per accepted step is above that of
   *     plain steps
   */
  record FreeDave(int depth, int maxRows, boolean sequential, boolean adaptive) implements Search {
    /** Checks. */
    public FreeDave {
      Checks.range("depth", depth, 1, 64);
      Checks.atLeast("maxRows", maxRows, 0);
    }
  }

  /**
   * SOAR (8): a beam over which position to fill next where few are sure, parallel commits where
   * many are.
   *
   * @param beams most canvases kept
   * @param tau confidence above which positions are filled in parallel
   * @param minParallel how many such positions it takes
   * @param maxParallel most positions filled at once
   * @param collapse a parallel candidate that leads with at least this many tokens replaces the
   *     beam (1 for LLaDA, 2 for Dream)
   * @param mean score by the mean of the committed probabilities instead of their sum
   */
  record Soar(int beams, float tau, int minParallel, int maxParallel, int collapse, boolean mean)
      implements Search {
    /** Checks. */
    public Soar {
      Checks.range("beams", beams, 1, 16);
      Checks.range("tau", tau, -1e6, Float.POSITIVE_INFINITY);
      Checks.atLeast("minParallel", minParallel, 1);
      Checks.atLeast("maxParallel", maxParallel, 1);
      Checks.atLeast("collapse", collapse, 1);
    }
  }

  /** When a guide accepts a draft. */
  enum GuideRule {
    /** The draft is the guide's most likely token. */
    DETERMINISTIC,
    /** The draft is among the guide's {@code top} most likely. */
    TOP,
    /** That, and it has at least {@code share} of the best probability. */
    TOP_RELATIVE
  }

  /**
   * Guided Diffusion (5.2): an autoregressive model decides how many proposals are taken.
   *
   * @param rule when a draft is accepted
   * @param top for {@code TOP} (5 as published) and {@code TOP_RELATIVE} (2)
   * @param share for {@code TOP_RELATIVE} (0.5)
   * @param chunk drafts per call of the guide
   */
  record Guided(GuideRule rule, int top, float share, int chunk) implements Search {
    /** Checks. */
    public Guided {
      Objects.requireNonNull(rule, "rule");
      Checks.atLeast("top", top, 1);
      Checks.range("share", share, 0, 1);
      Checks.atLeast("chunk", chunk, 1);
    }
  }

  /**
   * NAP (11): several reasoning streams are filled side by side, then a summary, which is the
   * answer.
   *
   * @param pathHeaders token ids in front of each path; one entry per path, each may be empty
   * @param summaryHeader token ids in front of the summary
   * @param pathLength masks of each path
   * @param summaryLength masks of the summary
   * @param steps steps in all; 0 for one per token
   * @param openShare the summary opens when at most this share of the paths' positions is masked
   */
  record Nap(
      List<List<Integer>> pathHeaders,
      List<Integer> summaryHeader,
      int pathLength,
      int summaryLength,
      int steps,
      float openShare)
      implements Search {
    /** Copies and checks. */
    public Nap {
      pathHeaders = pathHeaders.stream().map(List::copyOf).toList();
      summaryHeader = List.copyOf(summaryHeader);
      Checks.range("paths", pathHeaders.size(), 1, 64);
      Checks.atLeast("pathLength", pathLength, 1);
      Checks.atLeast("summaryLength", summaryLength, 0);
      Checks.atLeast("steps", steps, 0);
      Checks.range("openShare", openShare, 0, 1);
    }

    /** Positions of the answer region: headers, paths and summary. */
    public int length() {
      int n = summaryHeader.size() + summaryLength;
      for (List<Integer> header : pathHeaders) {
        n += header.size() + pathLength;
      }
      return n;
    }
  }
}
