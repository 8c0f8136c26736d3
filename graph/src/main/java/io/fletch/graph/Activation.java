package io.fletch.graph;

/** Element-wise activations of feed-forward units. */
public enum Activation {
  /** {@code x / (1 + exp(-x))}. */
  SILU,
  /** GELU, tanh form. */
  GELU_TANH,
  /** GELU as it is defined: {@code x (1 + erf(x / sqrt(2))) / 2}. */
  GELU_ERF,
  /** {@code max(x, 0)}. */
  RELU,
  /** {@code max(x, 0)^2}. */
  RELU_SQUARED
}
