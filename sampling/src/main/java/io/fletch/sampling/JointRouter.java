package io.fletch.sampling;

import java.util.ArrayList;
import java.util.List;

/**
 * Several routers that all must say so (specs/autoregressive.md 4): the score is the smallest of
 * theirs, each relative to its own threshold, so that it reaches 1 where all reach theirs.
 */
final class JointRouter implements TokenRouter {
  private final List<TokenRouter> routers;
  private final double[] thresholds;

  JointRouter(List<TokenRouter> routers, double[] thresholds) {
    this.routers = List.copyOf(routers);
    this.thresholds = thresholds.clone();
    if (routers.size() != thresholds.length || routers.isEmpty()) {
      throw new IllegalArgumentException(
          "thresholds: expected=one per router, at least one actual="
              + routers.size()
              + ", "
              + thresholds.length);
    }
    for (double t : thresholds) {
      if (!(t > 0 && t < Double.POSITIVE_INFINITY)) {
        throw new IllegalArgumentException("threshold: expected=above 0, finite actual=" + t);
      }
    }
    hiddenWidth();
  }

  @Override
  public int hiddenWidth() {
    int width = 0;
    for (TokenRouter r : routers) {
      if (width != 0 && r.hiddenWidth() != 0 && width != r.hiddenWidth()) {
        throw new IllegalArgumentException(
            "hidden width: expected=" + width + " actual=" + r.hiddenWidth());
      }
      width = Math.max(width, r.hiddenWidth());
    }
    return width;
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate) {
    return score(logits, vocabulary, candidate, null);
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate, float[] hidden) {
    double least = Double.POSITIVE_INFINITY;
    for (int i = 0; i < routers.size(); i++) {
      TokenRouter r = routers.get(i);
      double score =
          r.hiddenWidth() == 0
              ? r.score(logits, vocabulary, candidate)
              : r.score(logits, vocabulary, candidate, hidden);
      least = Math.min(least, score / thresholds[i]);
    }
    return least;
  }

  @Override
  public WeightUse cost() {
    WeightUse sum = WeightUse.NONE;
    for (TokenRouter r : routers) {
      sum = sum.plus(r.cost());
    }
    return sum;
  }

  @Override
  public String name() {
    return String.join("+", routers.stream().map(TokenRouter::name).toList());
  }

  @Override
  public TokenRouter copy() {
    List<TokenRouter> copies = new ArrayList<>();
    routers.forEach(r -> copies.add(r.copy()));
    return new JointRouter(copies, thresholds);
  }
}
