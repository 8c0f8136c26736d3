package io.fletch.quant;

import java.util.Objects;

/**
 * A linear map {@code y = W x} as an expression over tensors (specs weights 3.5). The graph lowers
 * it to kernels; model code never asks how a weight is encoded.
 */
public sealed interface LinearOp {
  /** Length of {@code x}. */
  long in();

  /** Length of {@code y}. */
  long out();

  /** Bytes of weights read for one product. */
  long bytes();

  /** One stored matrix {@code [out, in]} of any type. */
  record Dense(Tensor weight) implements LinearOp {
    /** Checks the rank. */
    public Dense {
      Objects.requireNonNull(weight, "weight");
      if (weight.rank() != 2) {
        throw new IllegalArgumentException("a dense linear map needs rank 2: " + weight);
      }
    }

    @Override
    public long in() {
      return weight.cols();
    }

    @Override
    public long out() {
      return weight.rows();
    }

    @Override
    public long bytes() {
      return weight.bytes();
    }
  }

  /** A stored matrix as it is. */
  static LinearOp dense(Tensor weight) {
    return new Dense(weight);
  }
}
