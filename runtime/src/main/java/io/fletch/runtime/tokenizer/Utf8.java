package io.fletch.runtime.tokenizer;

import java.nio.charset.StandardCharsets;

/** UTF-8 without intermediate objects. An unpaired surrogate is encoded as U+FFFD. */
final class Utf8 {
  private Utf8() {}

  /** Bytes needed at most for a number of chars. */
  static int maxBytes(int chars) {
    return Math.multiplyExact(chars, 3);
  }

  /** Encodes {@code text[from, to)} into {@code out} from index 0; returns the byte count. */
  static int encode(String text, int from, int to, byte[] out) {
    int n = 0;
    for (int i = from; i < to; i++) {
      char c = text.charAt(i);
      if (c < 0x80) {
        out[n++] = (byte) c;
      } else if (c < 0x800) {
        out[n++] = (byte) (0xC0 | c >> 6);
        out[n++] = (byte) (0x80 | c & 0x3F);
      } else if (!Character.isSurrogate(c)) {
        n = three(c, out, n);
      } else if (Character.isHighSurrogate(c)
          && i + 1 < to
          && Character.isLowSurrogate(text.charAt(i + 1))) {
        int cp = Character.toCodePoint(c, text.charAt(++i));
        out[n++] = (byte) (0xF0 | cp >> 18);
        out[n++] = (byte) (0x80 | cp >> 12 & 0x3F);
        out[n++] = (byte) (0x80 | cp >> 6 & 0x3F);
        out[n++] = (byte) (0x80 | cp & 0x3F);
      } else {
        n = three('\uFFFD', out, n);
      }
    }
    return n;
  }

  /**
   * Decodes {@code bytes[0, length)}. Each longest beginning of a sequence that does not go on, and
   * each byte that begins none, becomes one U+FFFD (Unicode 3.9, "maximal subparts"); so the result
   * does not depend on where {@link #incompleteTail} had the bytes cut. The decoder of the JDK
   * takes an encoded surrogate as one error and is not used for broken text.
   */
  static String decode(byte[] bytes, int length) {
    String text = new String(bytes, 0, length, StandardCharsets.UTF_8);
    if (text.indexOf('\uFFFD') < 0) {
      return text;
    }
    StringBuilder out = new StringBuilder(length);
    for (int i = 0; i < length; ) {
      int lead = bytes[i] & 0xFF;
      int wanted = sequenceLength(bytes[i]);
      int have = 1;
      while (have < wanted
          && i + have < length
          && (bytes[i + have] & 0xC0) == 0x80
          && (have > 1 || validSecond(lead, bytes[i + 1] & 0xFF))) {
        have++;
      }
      if (have == wanted && (wanted > 1 || lead < 0x80)) {
        int cp = wanted == 1 ? lead : lead & 0xFF >> wanted + 1;
        for (int k = 1; k < have; k++) {
          cp = cp << 6 | bytes[i + k] & 0x3F;
        }
        out.appendCodePoint(cp);
      } else {
        out.append('\uFFFD');
      }
      i += have;
    }
    return out.toString();
  }

  private static int three(char c, byte[] out, int n) {
    out[n] = (byte) (0xE0 | c >> 12);
    out[n + 1] = (byte) (0x80 | c >> 6 & 0x3F);
    out[n + 2] = (byte) (0x80 | c & 0x3F);
    return n + 3;
  }

  /** Length of the sequence that a lead byte announces (1 for a byte that leads nothing). */
  static int sequenceLength(byte lead) {
    int b = lead & 0xFF;
    return b < 0xC2 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : b < 0xF5 ? 4 : 1;
  }

  /**
   * How many bytes at the end of {@code bytes[0, length)} are the beginning of a sequence that more
   * bytes can still complete.
   */
  static int incompleteTail(byte[] bytes, int length) {
    for (int back = 1; back <= 3 && back <= length; back++) {
      byte b = bytes[length - back];
      if ((b & 0xC0) != 0x80) {
        if (sequenceLength(b) <= back) {
          return 0;
        }
        return back == 1 || validSecond(b & 0xFF, bytes[length - back + 1] & 0xFF) ? back : 0;
      }
    }
    return 0;
  }

  private static boolean validSecond(int lead, int second) {
    return switch (lead) {
      case 0xE0 -> second >= 0xA0;
      case 0xED -> second <= 0x9F;
      case 0xF0 -> second >= 0x90;
      case 0xF4 -> second <= 0x8F;
      default -> true;
    };
  }
}
