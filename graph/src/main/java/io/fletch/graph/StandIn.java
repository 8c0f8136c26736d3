package io.fletch.graph;

import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import java.util.Objects;
import java.util.Optional;

/**
 * What stands in for a unit, and what decides when (informed routing with lightweight feature
 * forecasters, specs autoregressive 3). The forecaster reads the unit's input {@code h}, after its
 * norm; the router reads the same, or the residual stream before that norm.
 *
 * <p>The forecast is {@code up act(down h + downBias) + upBias}; the scores are {@code output
 * relu(hidden h + hiddenBias) + outputBias}, or {@code output h + outputBias} without a hidden
 * layer.
 *
 * @param unit the gate of the unit
 * @param hidden {@code [w, d]}, with its bias, or empty
 * @param output {@code [2, w]}, or {@code [2, d]} without a hidden layer
 * @param down {@code [r, d]}
 * @param activation between the two matrices of the forecast, or empty for none
 * @param up {@code [d, r]}
 * @param routerInput what the router reads in place of {@code h}
 */
public record StandIn(
    Gate unit,
    Optional<Layer> hidden,
    Layer output,
    Layer down,
    Optional<Activation> activation,
    Layer up,
    RouterInput routerInput) {
  /** What a router reads. */
  public enum RouterInput {
    /** The unit's input, after its norm. */
    NORMED,
    /** The residual stream that the unit is added to. */
    RESIDUAL
  }

  /** With a router that reads the unit's input. */
  public StandIn(
      Gate unit,
      Optional<Layer> hidden,
      Layer output,
      Layer down,
      Optional<Activation> activation,
      Layer up) {
    this(unit, hidden, output, down, activation, up, RouterInput.NORMED);
  }

  /**
   * A linear layer.
   *
   * @param weight {@code [out, in]}
   * @param bias of {@code out} elements
   */
  public record Layer(LinearOp weight, Tensor bias) {
    /** Checks that the bias fits. */
    public Layer {
      if (bias.elements() != weight.out()) {
        throw new IllegalArgumentException(
            bias.name() + ": elements: expected=" + weight.out() + " actual=" + bias.elements());
      }
    }
  }

  /** Checks that the layers fit each other. */
  public StandIn {
    Objects.requireNonNull(unit, "unit");
    Objects.requireNonNull(activation, "activation");
    Objects.requireNonNull(routerInput, "routerInput");
    long width = output.weight().in();
    check("output layer of the router", 2, output.weight().out());
    check("router", hidden.map(h -> h.weight().out()).orElse(width), width);
    check("forecast", down.weight().out(), up.weight().in());
    long in = hidden.orElse(output).weight().in();
    check("input of the forecast", in, down.weight().in());
    check("result of the forecast", in, up.weight().out());
  }

  private static void check(String what, long expected, long actual) {
    if (expected != actual) {
      throw new IllegalArgumentException(
          what + ": width: expected=" + expected + " actual=" + actual);
    }
  }

  /** Elements of the input, and of the result. */
  public long width() {
    return down.weight().in();
  }
}
