package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.function.DoubleUnaryOperator;
import org.junit.jupiter.api.Test;

final class FloatMathTest {
  private interface FloatFunction {
    float apply(float x);
  }

  @Test
  void errorsStayWithinTheStatedUlps() {
    check("exp", FloatMath::exp, Math::exp, -87.3f, 88.7f, 1.1);
    check("sigmoid", FloatMath::sigmoid, x -> 1 / (1 + Math.exp(-x)), -87f, 88f, 3);
    check("tanh", FloatMath::tanh, Math::tanh, -30f, 30f, 3);
  }

  @Test
  void expOfExtremesAndSpecialValues() {
    assertEquals(1f, FloatMath.exp(0f));
    assertEquals(1f, FloatMath.exp(-0f));
    assertEquals(0f, FloatMath.exp(Float.NEGATIVE_INFINITY));
    assertEquals(0f, FloatMath.exp(-Float.MAX_VALUE));
    assertEquals(Float.POSITIVE_INFINITY, FloatMath.exp(Float.POSITIVE_INFINITY));
    assertEquals(Float.POSITIVE_INFINITY, FloatMath.exp(88.73f));
    assertTrue(Float.isNaN(FloatMath.exp(Float.NaN)));
    for (float x = -104f; x < -87f; x += 0.01f) {
      assertEquals(
          Math.exp(x), FloatMath.exp(x), 1.1 * Float.MIN_VALUE, "subnormal exp(" + x + ")");
    }
  }

  @Test
  void weightsAreThoseOfTheExponentialOrZeroButNeverSubnormal() {
    assertEquals(1f, FloatMath.weight(0f));
    assertEquals(1f, FloatMath.weight(-0f));
    assertEquals(0f, FloatMath.weight(Float.NEGATIVE_INFINITY));
    assertEquals(0f, FloatMath.weight(-Float.MAX_VALUE));
    assertTrue(Float.isNaN(FloatMath.weight(Float.NaN)));
    for (float x = -110f; x <= 0f; x += 0.001f) {
      float w = FloatMath.weight(x);
      assertEquals(w == 0f ? 0f : FloatMath.exp(x), w, "x=" + x);
      if (Math.abs(x + 100.5 * Math.log(2)) > 1e-4) {
        assertEquals(x < -100.5 * Math.log(2), w == 0f, "x=" + x);
      }
    }
  }

  @Test
  void activationsOfExtremes() {
    assertEquals(0f, FloatMath.silu(-200f), 0f);
    assertEquals(Float.MAX_VALUE, FloatMath.silu(Float.MAX_VALUE));
    assertEquals(0f, FloatMath.geluTanh(-Float.MAX_VALUE), 0f);
    assertEquals(Float.MAX_VALUE, FloatMath.geluTanh(Float.MAX_VALUE));
    assertEquals(1f, FloatMath.tanh(Float.POSITIVE_INFINITY));
    assertEquals(-1f, FloatMath.tanh(-100f));
    assertEquals(Float.MIN_VALUE, FloatMath.tanh(Float.MIN_VALUE));
    assertTrue(Float.isNaN(FloatMath.tanh(Float.NaN)));
    assertTrue(Float.isNaN(FloatMath.relu(Float.NaN)));
  }

  private static void check(
      String name, FloatFunction f, DoubleUnaryOperator exact, float from, float to, double ulps) {
    int steps = 1_500_000;
    double worst = 0;
    float at = 0;
    for (int i = 0; i <= steps; i++) {
      // Half of the arguments evenly spread, half close to zero on a logarithmic scale.
      float x = from + (to - from) * ((float) i / steps);
      if ((i & 1) == 0) {
        x = Math.scalb(x, -(i >> 1) % 40);
      }
      double e = exact.applyAsDouble(x);
      double error = Math.abs(f.apply(x) - e) / Math.ulp((float) e);
      if (error > worst) {
        worst = error;
        at = x;
      }
    }
    assertTrue(worst <= ulps, name + ": expected<=" + ulps + " ulp actual=" + worst + " at " + at);
  }
}
