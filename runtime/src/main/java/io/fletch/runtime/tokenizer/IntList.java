package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/** A growing list of ints; the result of an encoder. Not thread-safe. */
final class IntList {
  private int[] values = new int[64];
  private int size;

  void add(int value) {
    if (size == values.length) {
      values = Arrays.copyOf(values, Math.multiplyExact(size, 2));
    }
    values[size++] = value;
  }

  void addAll(int[] more) {
    if (size + more.length > values.length) {
      values = Arrays.copyOf(values, Math.max(Math.multiplyExact(size, 2), size + more.length));
    }
    System.arraycopy(more, 0, values, size, more.length);
    size += more.length;
  }

  /** Drops the elements from {@code length} on. */
  void truncate(int length) {
    size = length;
  }

  int size() {
    return size;
  }

  int[] toArray() {
    return Arrays.copyOf(values, size);
  }

  /** The elements from {@code from} to the end. */
  int[] tail(int from) {
    return Arrays.copyOfRange(values, from, size);
  }
}
