package io.fletch.quant;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * Writes FlatBuffers, back to front as the format wants it, as far as Arrow's metadata needs them:
 * tables, strings, and vectors of tables and of structs. References count bytes from the end. One
 * buffer per object; confined to one thread.
 *
 * <p>Source: the FlatBuffers internals document (tables begin with a signed offset to their vtable:
 * size of the vtable, size of the table, offset of each field or 0).
 */
final class FlatBytes {
  private byte[] bytes = new byte[1024];
  private int size;

  // Of the table in work.
  private int[] fields = new int[0];
  private int tableStart;

  private void grow(int n) {
    if (size + n > bytes.length) {
      byte[] larger = new byte[Math.max(2 * bytes.length, Math.addExact(size, n) + 64)];
      System.arraycopy(bytes, bytes.length - size, larger, larger.length - size, size);
      bytes = larger;
    }
  }

  /** Pads so that after {@code extra} more bytes the size is a multiple of {@code alignment}. */
  private void align(int alignment, int extra) {
    int pad = -(size + extra) & alignment - 1;
    grow(pad);
    size += pad;
    Arrays.fill(bytes, bytes.length - size, bytes.length - size + pad, (byte) 0);
  }

  private void put(long value, int n) {
    grow(n);
    size += n;
    int at = bytes.length - size;
    for (int i = 0; i < n; i++) {
      bytes[at + i] = (byte) (value >> 8 * i);
    }
  }

  private void scalar(long value, int n) {
    align(n, 0);
    put(value, n);
  }

  private void reference(int target) {
    align(4, 0);
    put(size + 4L - target, 4);
  }

  /** A string; ends with a zero that does not count. */
  int string(String text) {
    byte[] utf8 = text.getBytes(StandardCharsets.UTF_8);
    align(4, utf8.length + 1);
    put(0, 1);
    grow(utf8.length);
    size += utf8.length;
    System.arraycopy(utf8, 0, bytes, bytes.length - size, utf8.length);
    put(utf8.length, 4);
    return size;
  }

  /** A vector of references to tables or strings. */
  int vector(int[] targets) {
    align(4, 4 * targets.length);
    for (int i = targets.length - 1; i >= 0; i--) {
      reference(targets[i]);
    }
    put(targets.length, 4);
    return size;
  }

  /** A vector of structs that are made of 64-bit numbers. */
  int structs(long[] values, int longsEach) {
    align(8, 8 * values.length);
    for (int i = values.length - 1; i >= 0; i--) {
      put(values[i], 8);
    }
    put(values.length / longsEach, 4);
    return size;
  }

  /** Starts a table with room for {@code count} fields. */
  void start(int count) {
    fields = new int[count];
    tableStart = size;
  }

  /** A number of {@code n} bytes. */
  void number(int field, long value, int n) {
    scalar(value, n);
    fields[field] = size;
  }

  /** A reference to something finished before the table was started. */
  void reference(int field, int target) {
    reference(target);
    fields[field] = size;
  }

  /** Ends the table. */
  int end() {
    scalar(0, 4);
    int table = size;
    for (int i = fields.length - 1; i >= 0; i--) {
      put(fields[i] == 0 ? 0 : table - fields[i], 2);
    }
    put(table - tableStart, 2);
    put(4 + 2L * fields.length, 2);
    ByteBuffer.wrap(bytes)
        .order(ByteOrder.LITTLE_ENDIAN)
        .putInt(bytes.length - table, size - table);
    return table;
  }

  /** The whole buffer with its root, padded to 8 bytes at its start. */
  byte[] finish(int root) {
    align(8, 4);
    reference(root);
    return Arrays.copyOfRange(bytes, bytes.length - size, bytes.length);
  }
}
