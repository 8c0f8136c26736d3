package io.fletch.quant;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;

/** A growing little-endian byte string, for file headers. Confined to one thread. */
final class LittleEndianBytes {
  private final ByteArrayOutputStream out = new ByteArrayOutputStream();

  LittleEndianBytes u8(int value) {
    out.write(value);
    return this;
  }

  LittleEndianBytes u16(int value) {
    return u8(value).u8(value >> 8);
  }

  LittleEndianBytes u32(int value) {
    return u16(value).u16(value >> 16);
  }

  LittleEndianBytes u64(long value) {
    return u32((int) value).u32((int) (value >> 32));
  }

  /** A u64 length and the bytes. */
  LittleEndianBytes string(byte[] value) {
    u64(value.length);
    return bytes(value);
  }

  LittleEndianBytes string(String value) {
    return string(value.getBytes(StandardCharsets.UTF_8));
  }

  LittleEndianBytes bytes(byte[] value) {
    out.writeBytes(value);
    return this;
  }

  long size() {
    return out.size();
  }

  byte[] toBytes() {
    return out.toByteArray();
  }
}
