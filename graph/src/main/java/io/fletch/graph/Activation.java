package io.fletch.graph;

/** Element-wise activations of feed-forward units. */
public enum Activation {
  /** {@code x / (1 + exp(-x))}. */
  SILU,
  /** GELU, tanh form. */
  GELU_TANH,
  /** {@code max(x, 0)}. */
  RELU,
  /** {@code max(x, 0)^2}. */
  RELU_SQUARED
}
