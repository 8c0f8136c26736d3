package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/** A growing byte string; the result of a decoder. Not thread-safe. */
final class ByteList {
  private byte[] values = new byte[64];
  private int size;

  void append(byte[] source, int from, int to) {
    int length = to - from;
    if (size + length > values.length) {
      values = Arrays.copyOf(values, Math.max(Math.multiplyExact(values.length, 2), size + length));
    }
    System.arraycopy(source, from, values, size, length);
    size += length;
  }

  int size() {
    return size;
  }

  byte at(int index) {
    return values[index];
  }

  /** Removes and returns the text of the first {@code length} bytes. */
  String take(int length) {
    String text = Utf8.decode(values, length);
    System.arraycopy(values, length, values, 0, size - length);
    size -= length;
    return text;
  }

  /** Bytes at the end that may still become a character. */
  int incompleteTail() {
    return Utf8.incompleteTail(values, size);
  }

  /** Removes one byte. */
  void remove(int index) {
    System.arraycopy(values, index + 1, values, index, size - index - 1);
    size--;
  }
}
