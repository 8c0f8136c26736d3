package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

/**
 * A table of a FlatBuffer that need not be trusted: every read is within the buffer, or a {@link
 * WeightFileException}. Absent fields read as their defaults. Immutable.
 */
final class FlatTable {
  private final Path file;
  private final MemorySegment buffer;
  private final long at;
  private final long vtable;
  private final int vtableBytes;

  private FlatTable(Path file, MemorySegment buffer, long at) {
    this.file = file;
    this.buffer = buffer;
    this.at = at;
    vtable = at - i32(at);
    vtableBytes = u16(vtable);
    check(vtableBytes >= 4 && vtable + vtableBytes <= buffer.byteSize(), "vtable", vtableBytes);
  }

  /** The root of a buffer. */
  static FlatTable root(Path file, MemorySegment buffer) {
    if (buffer.byteSize() < 8) {
      throw Json.fail(file, "metadata", "at least 8 bytes", buffer.byteSize());
    }
    long root = Integer.toUnsignedLong(buffer.get(ByteCursor.INT, 0));
    if (root > buffer.byteSize() - 4) {
      throw Json.fail(file, "metadata: root", "within " + buffer.byteSize(), root);
    }
    return new FlatTable(file, buffer, root);
  }

  private void check(boolean ok, String what, long actual) {
    if (!ok) {
      throw Json.fail(file, "metadata: " + what, "within " + buffer.byteSize() + " bytes", actual);
    }
  }

  private long place(long offset, long n) {
    check(offset >= 0 && n >= 0 && offset <= buffer.byteSize() - n, "offset", offset);
    return offset;
  }

  private int i32(long offset) {
    return buffer.get(ByteCursor.INT, place(offset, 4));
  }

  private int u16(long offset) {
    return Short.toUnsignedInt(buffer.get(ByteCursor.SHORT, place(offset, 2)));
  }

  /** Where a field lies, or -1. */
  private long field(int index) {
    int slot = 4 + 2 * index;
    if (slot + 2 > vtableBytes) {
      return -1;
    }
    int offset = u16(vtable + slot);
    return offset == 0 ? -1 : at + offset;
  }

  /** A number of 1, 2, 4 or 8 bytes, signed; 0 if absent. */
  long number(int index, int n) {
    long f = field(index);
    if (f < 0) {
      return 0;
    }
    place(f, n);
    return switch (n) {
      case 1 -> buffer.get(ValueLayout.JAVA_BYTE, f);
      case 2 -> buffer.get(ByteCursor.SHORT, f);
      case 4 -> buffer.get(ByteCursor.INT, f);
      default -> buffer.get(ByteCursor.LONG, f);
    };
  }

  private long target(long f) {
    long offset = Integer.toUnsignedLong(i32(f));
    check(offset >= 4, "reference", offset);
    return place(f + offset, 4);
  }

  /** Whether a field is there. */
  boolean has(int index) {
    return field(index) >= 0;
  }

  /** A table that must be there. */
  FlatTable table(int index) {
    long f = field(index);
    check(f >= 0, "table " + index + ": present", f);
    return new FlatTable(file, buffer, target(f));
  }

  /** A string; empty if absent. */
  String string(int index) {
    long f = field(index);
    if (f < 0) {
      return "";
    }
    long s = target(f);
    int n = i32(s);
    place(s + 4, n);
    return new String(
        buffer.asSlice(s + 4, n).toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
  }

  /** Elements of a vector; 0 if absent. */
  int length(int index, int bytesEach) {
    long f = field(index);
    if (f < 0) {
      return 0;
    }
    long v = target(f);
    int n = i32(v);
    check(n >= 0, "length of a vector", n);
    place(v + 4, (long) n * bytesEach);
    return n;
  }

  /** Table {@code i} of a vector whose {@link #length} was asked for. */
  FlatTable element(int index, int i) {
    return new FlatTable(file, buffer, target(target(field(index)) + 4 + 4L * i));
  }

  /** The 64-bit number at byte {@code offset} of the structs of a vector. */
  long struct(int index, long offset) {
    return buffer.get(ByteCursor.LONG, place(target(field(index)) + 4 + offset, 8));
  }
}
