package io.fletch.sampling;

import java.util.function.ToDoubleFunction;

/** A router without training: one number of the small model's logits. */
final class SignalRouter implements TokenRouter {
  private final String name;
  private final ToDoubleFunction<RouterSignals> signal;
  private final RouterSignals signals = new RouterSignals();

  SignalRouter(String name, ToDoubleFunction<RouterSignals> signal) {
    this.name = name;
    this.signal = signal;
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate) {
    signals.read(logits, vocabulary, candidate);
    return Math.max(0, signal.applyAsDouble(signals));
  }

  @Override
  public String name() {
    return name;
  }

  @Override
  public TokenRouter copy() {
    return new SignalRouter(name, signal);
  }
}
