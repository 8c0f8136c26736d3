package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;

import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Properties;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Bit-exact agreement with the C reference: ggml d99724f (2026-08-21), {@code ggml-quants.c} built
 * with {@code gcc -O2 -ffp-contract=off}, run once over the very inputs that are drawn here. The
 * resource holds a digest of its outputs for 1000 super-blocks per type, and the first block.
 * (IQ4_NL and IQ4_XS: {@code quantize_iq4_*} without importance; others: {@code
 * quantize_row_*_ref}.)
 */
class ReferenceVectorsTest {
  private static final int SUPER_BLOCKS = 1000;
  private static final Properties EXPECTED = new Properties();

  @BeforeAll
  static void load() throws IOException {
    try (InputStream in =
        ReferenceVectorsTest.class.getResourceAsStream("reference-vectors.properties")) {
      EXPECTED.load(in);
    }
  }

  static Stream<TensorType> quantizedTypes() {
    return Arrays.stream(TensorType.values()).filter(TensorType::isQuantized);
  }

  /** Super-blocks of ten kinds, made by exact arithmetic so that every machine draws the same. */
  static float[] values() {
    SplittableRandom random = new SplittableRandom(42);
    float[] x = new float[SUPER_BLOCKS * 256];
    for (int b = 0; b < SUPER_BLOCKS; b++) {
      int spike = random.nextInt(256);
      float constant = bell(random);
      float scale = Math.scalb(1f, random.nextInt(36) - 28);
      for (int i = 0; i < 256; i++) {
        float v = bell(random);
        x[b * 256 + i] =
            switch (b % 10) {
              case 0, 1 -> v * 0.02f;
              case 2 -> v * v * v * v * v;
              case 3 -> random.nextInt(10) < 7 ? 0 : v;
              case 4 -> constant;
              case 5 -> i == spike ? v : 0;
              case 6 -> v * scale;
              case 7 -> (random.nextInt(16) - 8) * 0.125f;
              case 8 -> b < 20 ? 0 : Math.abs(v);
              default -> -Math.abs(v);
            };
      }
    }
    return x;
  }

  private static float bell(SplittableRandom random) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
      sum += random.nextInt(1 << 20) * 0x1p-20f;
    }
    return (sum - 2) * 1.75f;
  }

  static byte[] blocks(TensorType type) {
    byte[] bytes = new byte[(int) type.bytes(SUPER_BLOCKS * 256)];
    new SplittableRandom(type.ggufId()).nextBytes(bytes);
    return bytes;
  }

  static String digest(byte[] bytes) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }

  /** Little-endian bits; all NaNs alike. */
  static byte[] bits(float[] values) {
    ByteBuffer bytes = ByteBuffer.allocate(values.length * 4).order(ByteOrder.LITTLE_ENDIAN);
    for (float v : values) {
      bytes.putInt(Float.floatToIntBits(v));
    }
    return bytes.array();
  }

  private static void check(TensorType type, String what, byte[] actual, int firstBytes) {
    String first = EXPECTED.getProperty(type + "." + what + ".first");
    assertNotNull(first);
    assertEquals(first, HexFormat.of().formatHex(actual, 0, firstBytes));
    assertEquals(EXPECTED.getProperty(type + "." + what + ".sha256"), digest(actual));
  }

  @ParameterizedTest
  @MethodSource("quantizedTypes")
  void quantizesAsTheReference(TensorType type) {
    float[] x = values();
    byte[] actual = new byte[(int) type.bytes(x.length)];
    Quantizer.quantize(type, x, 0, x.length, MemorySegment.ofArray(actual), 0);
    check(type, "quantize", actual, type.blockBytes());
  }

  @ParameterizedTest
  @MethodSource("quantizedTypes")
  void dequantizesAsTheReference(TensorType type) {
    float[] actual = new float[SUPER_BLOCKS * 256];
    Dequantizer.dequantize(type, MemorySegment.ofArray(blocks(type)), 0, actual, 0, actual.length);
    check(type, "dequantize", bits(actual), 32);
  }
}
