package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

/**
 * A bounds-checked, little-endian cursor over a file. Every read names its field, so that running
 * over the end becomes a {@link WeightFileException} that says which one. Confined to one thread.
 */
final class ByteCursor {
  static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfInt INT =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfLong LONG =
      ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfFloat FLOAT =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfDouble DOUBLE =
      ValueLayout.JAVA_DOUBLE_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final Path file;
  private final MemorySegment bytes;
  private long position;
  private String context = "header";

  ByteCursor(Path file, MemorySegment bytes) {
    this.file = file;
    this.bytes = bytes;
  }

  /** Names what is being read, for messages. */
  void context(String context) {
    this.context = context;
  }

  long position() {
    return position;
  }

  long remaining() {
    return bytes.byteSize() - position;
  }

  /** Moves over {@code count} bytes and returns where they start. */
  long skip(String field, long count) {
    if (count < 0 || count > remaining()) {
      throw fail(field, "at least " + Long.toUnsignedString(count) + " bytes", remaining());
    }
    long start = position;
    position += count;
    return start;
  }

  byte u8(String field) {
    return bytes.get(ValueLayout.JAVA_BYTE, skip(field, 1));
  }

  int i32(String field) {
    return bytes.get(INT, skip(field, 4));
  }

  long i64(String field) {
    return bytes.get(LONG, skip(field, 8));
  }

  /** A length-prefixed string of {@code min} to {@code max} bytes that must be UTF-8. */
  String utf8(String field, long min, long max) {
    long length = i64(field);
    if (length < min || length > max) {
      throw fail(field + " length", min + ".." + max, Long.toUnsignedString(length));
    }
    byte[] raw = new byte[(int) checkLeft(field, length)];
    MemorySegment.copy(bytes, ValueLayout.JAVA_BYTE, skip(field, raw.length), raw, 0, raw.length);
    try {
      return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(raw)).toString();
    } catch (CharacterCodingException e) {
      throw fail(field, "valid UTF-8", "malformed bytes");
    }
  }

  /**
   * Moves over {@code count} length-prefixed strings without decoding them: one flat loop, since a
   * vocabulary has several 100,000 of them and is walked before anything is compiled.
   */
  void skipStrings(String field, int count, long max) {
    long at = position;
    long end = bytes.byteSize() - Long.BYTES;
    for (int i = 0; i < count; i++) {
      position = at;
      if (at > end) {
        throw fail(field + " length", "at least 8 bytes", remaining());
      }
      long length = bytes.get(LONG, at);
      if (length < 0 || length > max || length > end - at) {
        throw fail(
            field + " length", "0.." + Math.min(max, end - at), Long.toUnsignedString(length));
      }
      at += Long.BYTES + length;
    }
    position = at;
  }

  private long checkLeft(String field, long length) {
    if (length > remaining()) {
      throw fail(field, "at least " + length + " bytes", remaining());
    }
    return length;
  }

  /** The exception for a field of the current context. */
  WeightFileException fail(String field, Object expected, Object actual) {
    return new WeightFileException(
        file
            + ": "
            + context
            + ": "
            + field
            + ": expected="
            + expected
            + " actual="
            + actual
            + " (at byte "
            + position
            + ")");
  }
}
