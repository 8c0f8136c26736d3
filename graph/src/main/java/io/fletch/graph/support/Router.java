package io.fletch.graph.support;

import io.fletch.graph.RouteSpec;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Chooses the experts of one row. Stateless; allocates nothing; the same bits on every backend that
 * runs it. NaN scores are never chosen before numbers.
 */
public final class Router {
  private Router() {}

  /**
   * Fills in a row of routing.
   *
   * @param scores float32 scores of all experts from byte {@code scoresAt}
   * @param bias float32 addends to the probabilities for the choice alone; empty for none
   * @param out takes {@link RouteSpec#width} floats from byte {@code at}
   */
  public static void route(
      RouteSpec spec,
      MemorySegment scores,
      long scoresAt,
      MemorySegment bias,
      MemorySegment out,
      long at) {
    int n = spec.experts();
    int used = spec.used();
    double max = Double.NEGATIVE_INFINITY;
    for (int e = 0; e < n; e++) {
      max = Math.max(max, orLowest(get(scores, scoresAt, e)));
    }
    double sum = 0;
    for (int e = 0; e < n; e++) {
      sum += Math.exp(orLowest(get(scores, scoresAt, e)) - max);
    }
    boolean biased = bias.byteSize() > 0;
    long choice = at + 2L * used * Float.BYTES;
    for (int e = 0; e < n; e++) {
      double p = probability(spec, get(scores, scoresAt, e), max, sum);
      set(out, choice, e, (float) (biased ? p + get(bias, 0, e) : p));
    }
    long groups = groups(spec, out, choice);
    double total = 0;
    for (int k = 0; k < used; k++) {
      int best = best(spec, out, at, choice, k, groups);
      double w = probability(spec, get(scores, scoresAt, best), max, sum);
      total += w;
      set(out, at, k, (float) w);
      set(out, at, used + k, best);
    }
    double factor = spec.normalize() ? spec.scale() / total : spec.scale();
    for (int k = 0; k < used; k++) {
      set(out, at, k, (float) (get(out, at, k) * factor));
    }
  }

  private static double probability(RouteSpec spec, float score, double max, double sum) {
    double s = orLowest(score);
    return switch (spec.scoring()) {
      case SOFTMAX -> Math.exp(s - max) / sum;
      case SIGMOID -> 1 / (1 + Math.exp(-s));
    };
  }

  private static double orLowest(float score) {
    return Float.isNaN(score) ? -Float.MAX_VALUE : score;
  }

  /** A bit for each group that is kept. */
  private static long groups(RouteSpec spec, MemorySegment out, long choice) {
    if (spec.groupsUsed() == spec.groups()) {
      return -1;
    }
    long kept = 0;
    for (int k = 0; k < spec.groupsUsed(); k++) {
      int best = -1;
      double bestSum = 0;
      for (int g = 0; g < spec.groups(); g++) {
        double sum = topTwo(spec, out, choice, g);
        if ((kept >>> g & 1) == 0 && (best < 0 || sum > bestSum)) {
          best = g;
          bestSum = sum;
        }
      }
      kept |= 1L << best;
    }
    return kept;
  }

  private static double topTwo(RouteSpec spec, MemorySegment out, long choice, int group) {
    int size = spec.experts() / spec.groups();
    float first = Float.NEGATIVE_INFINITY;
    float second = Float.NEGATIVE_INFINITY;
    for (int e = group * size; e < (group + 1) * size; e++) {
      float v = get(out, choice, e);
      if (v > first) {
        second = first;
        first = v;
      } else if (v > second) {
        second = v;
      }
    }
    return size == 1 ? first : (double) first + second;
  }

  /** The best expert of the kept groups that is not among the first {@code chosen}. */
  private static int best(
      RouteSpec spec, MemorySegment out, long at, long choice, int chosen, long groups) {
    int size = spec.experts() / spec.groups();
    int best = -1;
    for (int e = 0; e < spec.experts(); e++) {
      if ((groups >>> e / size & 1) == 0 || isChosen(spec, out, at, chosen, e)) {
        continue;
      }
      if (best < 0 || get(out, choice, e) > get(out, choice, best)) {
        best = e;
      }
    }
    return best;
  }

  private static boolean isChosen(
      RouteSpec spec, MemorySegment out, long at, int chosen, int expert) {
    for (int k = 0; k < chosen; k++) {
      if (get(out, at, spec.used() + k) == expert) {
        return true;
      }
    }
    return false;
  }

  private static float get(MemorySegment s, long at, int i) {
    return s.get(ValueLayout.JAVA_FLOAT, at + (long) i * Float.BYTES);
  }

  private static void set(MemorySegment s, long at, int i, float value) {
    s.set(ValueLayout.JAVA_FLOAT, at + (long) i * Float.BYTES, value);
  }
}
