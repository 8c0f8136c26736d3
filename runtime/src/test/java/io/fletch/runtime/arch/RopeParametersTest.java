package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.RopeSpec;
import org.junit.jupiter.api.Test;

/** Tables of inverse frequencies; expected values were worked out by hand from the formulas. */
class RopeParametersTest {
  private static RopeParameters of(int rotated, double base, RopeScaling scaling) {
    return new RopeParameters(RopeSpec.Style.NEOX, rotated, base, scaling);
  }

  @Test
  void plain() {
    RopeSpec spec = of(8, 10000, new RopeScaling.None()).spec(4096);
    assertArrayEquals(new float[] {1, 0.1f, 0.01f, 0.001f}, spec.inverseFrequency(), 1e-9f);
    assertEquals(1, spec.magnitude());
    assertEquals(RopeSpec.Style.NEOX, spec.style());
  }

  @Test
  void linear() {
    RopeSpec spec = of(4, 10000, new RopeScaling.Linear(4)).spec(4096);
    assertArrayEquals(new float[] {0.25f, 0.0025f}, spec.inverseFrequency(), 1e-9f);
  }

  @Test
  void llama3KeepsShortWavesAndStretchesLongOnes() {
    // base 1e8, 8 rotated: frequencies 1, 1e-2, 1e-4, 1e-6; waves 6.28, 628, 62832, 6283185.
    RopeScaling scaling = new RopeScaling.Llama3(8, 1, 4, 8192);
    float[] f = of(8, 1e8, scaling).spec(4096).inverseFrequency();
    assertEquals(1, f[0]);
    assertEquals(0.01f, f[1], 1e-9f);
    assertEquals(1e-4f / 8, f[2], 1e-11f);
    assertEquals(1e-6f / 8, f[3], 1e-13f);
  }

  @Test
  void llama3BlendsBetween() {
    // A wave of 4096 = original / 2 lies between original / 4 and original / 1: smooth = 1 / 3.
    double frequency = 2 * Math.PI / 4096;
    double base = Math.pow(frequency, -2);
    float[] f = of(4, base, new RopeScaling.Llama3(8, 1, 4, 8192)).spec(1).inverseFrequency();
    assertEquals(frequency * ((1 - 1.0 / 3) / 8 + 1.0 / 3), f[1], 1e-9);
  }

  @Test
  void yarnRampsFromExtrapolationToInterpolation() {
    // n = 128, base 1e4, original 4096: corr(32) = 20.9 -> 20, corr(1) = 45.03 -> 46.
    RopeScaling scaling = new RopeScaling.Yarn(4, 4096, 32, 1, 1, 1.25);
    RopeSpec spec = of(128, 1e4, scaling).spec(1);
    RopeSpec plain = of(128, 1e4, new RopeScaling.None()).spec(1);
    for (int i = 0; i < 64; i++) {
      double share = Math.clamp((i - 20) / 26.0, 0, 1);
      double expected = plain.inverseFrequency()[i] * (1 - share + share / 4);
      assertEquals(expected, spec.inverseFrequency()[i], 1e-6 * expected);
    }
    assertEquals(1.25f, spec.magnitude());
  }

  @Test
  void factorsDivide() {
    RopeScaling scaling = new RopeScaling.Factors(new float[] {1, 32});
    assertArrayEquals(
        new float[] {1, 0.01f / 32}, of(4, 1e4, scaling).spec(1).inverseFrequency(), 1e-9f);
    assertThrows(FletchException.class, () -> of(8, 1e4, scaling).spec(1));
  }

  @Test
  void longRopeDependsOnTheContext() {
    RopeScaling scaling =
        new RopeScaling.LongRope(new float[] {1, 1}, new float[] {2, 4}, 4096, 1.19);
    assertArrayEquals(
        new float[] {1, 0.01f}, of(4, 1e4, scaling).spec(4096).inverseFrequency(), 1e-9f);
    assertArrayEquals(
        new float[] {0.5f, 0.0025f}, of(4, 1e4, scaling).spec(4097).inverseFrequency(), 1e-9f);
    assertEquals(1.19f, of(4, 1e4, scaling).spec(4096).magnitude());
  }

  @Test
  void refusesHostileValues() {
    assertThrows(FletchException.class, () -> of(3, 1e4, new RopeScaling.None()));
    assertThrows(FletchException.class, () -> of(4, Double.NaN, new RopeScaling.None()));
    FletchException e =
        assertThrows(
            FletchException.class, () -> new RopeScaling.Factors(new float[] {1, Float.NaN}));
    assertTrue(e.getMessage().contains("[1]"), e.getMessage());
  }
}
