package io.fletch.sampling;

/**
 * Counter-based random numbers: a pure function of (seed, counters), so that a draw does not depend
 * on how many draws came before it (specs/autoregressive.md P4, specs/diffusion.md 1). The
 * generator is Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3" (SC 2011): the 64-bit seed is the key, four 32-bit words the counter. Stateless.
 *
 * <p>The first counter word names the use, so that different uses never share a draw:
 * autoregressive sampling 0, diffusion 1 and up (see the callers).
 */
public final class CounterRandom {
  /** Counter word of autoregressive sampling: (use, position, attempt, 0). */
  static final int AUTOREGRESSIVE = 0;

  /** Counter word of the noise on a canvas's logits: (use, committed, position, id / 2). */
  static final int CANVAS_NOISE = 1;

  /** Counter word of the order in which a canvas is filled: (use, committed, position, 0). */
  static final int CANVAS_ORDER = 2;

  /** Counter word of the decision to exclude top choices: (use, position, 0, 0). */
  static final int EXCLUDE_TOP = 3;

  private static final int MULTIPLIER_0 = 0xD2511F53;
  private static final int MULTIPLIER_1 = 0xCD9E8D57;
  private static final int WEYL_0 = 0x9E3779B9;
  private static final int WEYL_1 = 0xBB67AE85;
  private static final double UNIT = 0x1p-53;
  private static final double LN_2 = 0.6931471805599454; // rounded up

  private CounterRandom() {}

  /** Words 0 (high half) and 1 (low half) of the block. */
  static long high(long seed, int c0, int c1, int c2, int c3) {
    return block(seed, c0, c1, c2, c3, true);
  }

  /** Words 2 (high half) and 3 (low half) of the block. */
  static long low(long seed, int c0, int c1, int c2, int c3) {
    return block(seed, c0, c1, c2, c3, false);
  }

  /** A uniform value in [0, 1), a multiple of 2^-53, for these counters. */
  public static double uniform(long seed, int c0, int c1, int c2, int c3) {
    return (high(seed, c0, c1, c2, c3) >>> 11) * UNIT;
  }

  /** Random bits of the noise on token {@code id} at a position of a canvas. */
  static long noiseBits(long seed, int committed, int position, int id) {
    int pair = id >>> 1;
    return (id & 1) == 0
        ? high(seed, CANVAS_NOISE, committed, position, pair)
        : low(seed, CANVAS_NOISE, committed, position, pair);
  }

  /** The standard Gumbel value, {@code -ln(-ln u)}, of these bits. Always finite. */
  static double gumbel(long bits) {
    double u = ((bits >>> 12) + 0.5) * 0x1p-52; // exact, and never 1
    return -Math.log(-Math.log(u));
  }

  /**
   * An upper bound of {@link #gumbel} without a logarithm: {@code -ln(-ln u) <= -ln(1 - u)}, and
   * with k leading ones {@code 1 - u > 2^-(k+1)}.
   */
  static double gumbelBound(long bits) {
    return (Math.min(52, Long.numberOfLeadingZeros(~bits)) + 1) * LN_2;
  }

  /** No Gumbel value is larger. */
  static double largestGumbel() {
    return 53 * LN_2;
  }

  private static long block(long seed, int c0, int c1, int c2, int c3, boolean first) {
    int k0 = (int) seed;
    int k1 = (int) (seed >>> 32);
    for (int round = 0; round < 10; round++) {
      long p0 = (MULTIPLIER_0 & 0xFFFFFFFFL) * (c0 & 0xFFFFFFFFL);
      long p1 = (MULTIPLIER_1 & 0xFFFFFFFFL) * (c2 & 0xFFFFFFFFL);
      int n0 = (int) (p1 >>> 32) ^ c1 ^ k0;
      int n2 = (int) (p0 >>> 32) ^ c3 ^ k1;
      c1 = (int) p1;
      c3 = (int) p0;
      c0 = n0;
      c2 = n2;
      k0 += WEYL_0;
      k1 += WEYL_1;
    }
    return first ? ((long) c0 << 32) | (c1 & 0xFFFFFFFFL) : ((long) c2 << 32) | (c3 & 0xFFFFFFFFL);
  }
}
