package io.fletch.graph;

import io.fletch.quant.Tensor;
import java.util.Objects;

/**
 * What an adapter adds to one product (specs weights 4.7): {@code y += factor * B (A x)}.
 *
 * @param a {@code [rank, in]} of F32, F16 or BF16
 * @param b {@code [out, rank]} of F32, F16 or BF16
 * @param factor the adapter's own scale, for example alpha / rank; finite
 */
public record LowRankDelta(Tensor a, Tensor b, float factor) {
  /** Checks that the factors fit each other. */
  public LowRankDelta {
    check(a);
    check(b);
    if (a.rows() != b.cols() || a.rows() < 1) {
      throw new IllegalArgumentException(
          b.name() + ": rank expected=" + a.rows() + " (of " + a.name() + ") actual=" + b.cols());
    }
    if (!Float.isFinite(factor)) {
      throw new IllegalArgumentException(a.name() + ": factor: expected=finite actual=" + factor);
    }
  }

  private static void check(Tensor t) {
    Objects.requireNonNull(t, "tensor");
    boolean floats =
        switch (t.type()) {
          case F32, F16, BF16 -> true;
          default -> false;
        };
    if (t.rank() != 2 || !floats) {
      throw new IllegalArgumentException(
          t.name() + ": expected=a matrix of F32, F16 or BF16 actual=" + t);
    }
  }

  /** Elements between the factors. */
  public int rank() {
    return Math.toIntExact(a.rows());
  }
}
