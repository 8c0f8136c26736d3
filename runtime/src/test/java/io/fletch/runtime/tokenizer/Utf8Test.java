package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;

/** Broken text against the encodings of all code points. */
class Utf8Test {
  /** Bytes at the borders of what a lead or a second byte may be. */
  private static final int[] BORDERS = {
    0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC,
    0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF
  };

  /** The beginnings of sequences that are not whole, as numbers. */
  private final Set<Integer> beginnings = new HashSet<>();

  private final Set<Integer> whole = new HashSet<>();

  Utf8Test() {
    for (int cp = 0; cp <= Character.MAX_CODE_POINT; cp++) {
      if (cp < Character.MIN_SURROGATE || cp > Character.MAX_SURROGATE) {
        byte[] bytes = Character.toString(cp).getBytes(StandardCharsets.UTF_8);
        int number = 0;
        for (int i = 0; i < bytes.length; i++) {
          number = number << 8 | bytes[i] & 0xFF;
          (i + 1 < bytes.length ? beginnings : whole).add(number);
        }
      }
    }
  }

  /** Appends what the bytes say; returns how many at the end more bytes could complete. */
  private int decode(byte[] bytes, StringBuilder out) {
    int tail = 0;
    for (int i = 0; i < bytes.length; ) {
      int number = 0;
      int n = 0;
      boolean complete = false;
      while (!complete && i + n < bytes.length) {
        int next = number << 8 | bytes[i + n] & 0xFF;
        complete = whole.contains(next);
        if (!complete && !beginnings.contains(next)) {
          break;
        }
        number = next;
        n++;
      }
      out.append(
          complete ? new String(bytes, i, n, StandardCharsets.UTF_8) : Character.toString(0xFFFD));
      tail = complete || i + n < bytes.length ? 0 : n;
      i += Math.max(n, 1);
    }
    return tail;
  }

  @Test
  void brokenTextBecomesReplacements() {
    SplittableRandom random = new SplittableRandom(1);
    for (int round = 0; round < 50_000; round++) {
      byte[] bytes = new byte[random.nextInt(7)];
      for (int i = 0; i < bytes.length; i++) {
        bytes[i] = (byte) BORDERS[random.nextInt(BORDERS.length)];
      }
      StringBuilder expected = new StringBuilder();
      int tail = decode(bytes, expected);
      String what = Arrays.toString(bytes);
      assertEquals(expected.toString(), Utf8.decode(bytes, bytes.length), what);
      assertEquals(tail, Utf8.incompleteTail(bytes, bytes.length), what);
    }
  }

  @Test
  void allCodePointsComeBack() {
    byte[] bytes = new byte[Utf8.maxBytes(2)];
    for (int cp = 0; cp <= Character.MAX_CODE_POINT; cp++) {
      String text = Character.toString(cp);
      int n = Utf8.encode(text, 0, text.length(), bytes);
      boolean isSurrogate = cp >= Character.MIN_SURROGATE && cp <= Character.MAX_SURROGATE;
      assertEquals(isSurrogate ? "\uFFFD" : text, new String(bytes, 0, n, StandardCharsets.UTF_8));
    }
  }
}
