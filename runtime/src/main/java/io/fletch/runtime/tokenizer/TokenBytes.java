package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/** Byte strings by id, all in one block. Immutable. */
final class TokenBytes {
  final byte[] block;
  final int[] offsets;

  private TokenBytes(byte[] block, int[] offsets) {
    this.block = block;
    this.offsets = offsets;
  }

  /** Copies the strings; null counts as empty. */
  static TokenBytes of(byte[][] tokens) {
    int[] offsets = new int[tokens.length + 1];
    for (int i = 0; i < tokens.length; i++) {
      offsets[i + 1] = Math.addExact(offsets[i], tokens[i] == null ? 0 : tokens[i].length);
    }
    byte[] block = new byte[offsets[tokens.length]];
    for (int i = 0; i < tokens.length; i++) {
      if (tokens[i] != null) {
        System.arraycopy(tokens[i], 0, block, offsets[i], tokens[i].length);
      }
    }
    return new TokenBytes(block, offsets);
  }

  int size() {
    return offsets.length - 1;
  }

  /** The bytes of an id (a copy). */
  byte[] bytes(int id) {
    return Arrays.copyOfRange(block, offsets[id], offsets[id + 1]);
  }

  int length(int id) {
    return offsets[id + 1] - offsets[id];
  }

  byte at(int id, int index) {
    return block[offsets[id] + index];
  }

  /** Appends the bytes of an id. */
  void appendTo(int id, ByteList out) {
    out.append(block, offsets[id], offsets[id + 1]);
  }
}
