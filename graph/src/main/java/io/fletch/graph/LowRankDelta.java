package io.fletch.graph;

import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.Objects;
import java.util.Optional;

/**
 * What an adapter adds to one product {@code y0 = W x} (specs weights 4.7): {@code y += factor * B
 * (A x) + gain * y0}, the latter element by element (DoRA); a bias is no part of {@code y0}.
 *
 * @param a {@code [rank, in]} of F32, F16 or BF16
 * @param b {@code [out, rank]} of F32, F16 or BF16
 * @param factor the adapter's own scale, for example alpha / rank; finite
 * @param gain F32 {@code [out]}; empty for none
 */
public record LowRankDelta(Tensor a, Tensor b, float factor, Optional<Tensor> gain) {
  /** Checks that the factors fit each other. */
  public LowRankDelta {
    check(a);
    check(b);
    if (a.rows() != b.cols() || a.rows() < 1) {
      throw new IllegalArgumentException(
          b.name() + ": rank expected=" + a.rows() + " (of " + a.name() + ") actual=" + b.cols());
    }
    gain.ifPresent(g -> {
      if (g.type() != TensorType.F32 || g.rank() != 1 || g.elements() != b.rows()) {
        throw new IllegalArgumentException(
            g.name() + ": gain: expected=F32 [" + b.rows() + "] actual=" + g);
      }
    });
    if (!Float.isFinite(factor)) {
      throw new IllegalArgumentException(a.name() + ": factor: expected=finite actual=" + factor);
    }
  }

  /** Without a gain. */
  public LowRankDelta(Tensor a, Tensor b, float factor) {
    this(a, b, factor, Optional.empty());
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
