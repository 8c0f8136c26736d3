package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/**
 * The 256 printable characters by which byte-level vocabularies spell bytes (GPT-2): printable
 * Latin-1 bytes stand for themselves, the 68 others are U+0100 onwards in order.
 */
final class ByteAlphabet {
  private static final char[] TO_CHAR = new char[256];
  private static final short[] TO_BYTE = new short[256 + 68];

  static {
    Arrays.fill(TO_BYTE, (short) -1);
    int next = 256;
    for (int b = 0; b < 256; b++) {
      boolean printable = b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE;
      TO_CHAR[b] = (char) (printable ? b : next++);
      TO_BYTE[TO_CHAR[b]] = (short) b;
    }
  }

  private ByteAlphabet() {}

  /** The character that stands for a byte (0 to 255). */
  static char character(int b) {
    return TO_CHAR[b];
  }

  /** The byte that a character stands for, or -1 if it is not of the alphabet. */
  static int toByte(int c) {
    return c >= 0 && c < TO_BYTE.length ? TO_BYTE[c] : -1;
  }

  /** The bytes that a token spells, or null if a character is not of the alphabet. */
  static byte[] bytes(String token) {
    byte[] bytes = new byte[token.length()];
    for (int i = 0; i < bytes.length; i++) {
      int b = toByte(token.charAt(i));
      if (b < 0) {
        return null;
      }
      bytes[i] = (byte) b;
    }
    return bytes;
  }

  /**
   * The same for a token in UTF-8. All characters of the alphabet have one or two bytes, and no
   * malformed sequence is one of them.
   */
  static byte[] bytes(byte[] token) {
    byte[] bytes = new byte[token.length];
    int n = 0;
    for (int i = 0; i < token.length; i++) {
      int c = token[i];
      if (c < 0) {
        // A leading byte of two: 110xxxxx 10xxxxxx. Below 0xC2 it would be overlong.
        if (c < (byte) 0xC2 || c >= (byte) 0xE0 || i + 1 == token.length || token[i + 1] >= -64) {
          return null;
        }
        c = (c & 0x1F) << 6 | token[++i] & 0x3F;
      }
      int b = toByte(c);
      if (b < 0) {
        return null;
      }
      bytes[n++] = (byte) b;
    }
    return n == bytes.length ? bytes : Arrays.copyOf(bytes, n);
  }

  /** Spells a text: every byte of its UTF-8 form as one character. */
  static String spell(byte[] utf8, int length) {
    char[] chars = new char[length];
    for (int i = 0; i < length; i++) {
      chars[i] = TO_CHAR[utf8[i] & 0xFF];
    }
    return new String(chars);
  }
}
