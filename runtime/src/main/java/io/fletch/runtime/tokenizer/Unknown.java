package io.fletch.runtime.tokenizer;

/**
 * What becomes of text that the vocabulary lacks: byte tokens where there are some for all its
 * bytes, else the unknown token, else nothing (as the reference implementations do).
 */
final class Unknown {
  private final int[] byteIds;
  private final int unknownId;
  private final boolean fuse;

  /**
   * A policy.
   *
   * @param byteIds id of the token of each byte, -1 where there is none; null without byte fallback
   * @param unknownId unknown token or -1
   * @param fuse neighbouring unknowns are one token
   */
  Unknown(int[] byteIds, int unknownId, boolean fuse) {
    this.byteIds = byteIds;
    this.unknownId = unknownId;
    this.fuse = fuse;
  }

  boolean hasBytes(byte[] utf8, int from, int to) {
    if (byteIds == null) {
      return false;
    }
    for (int i = from; i < to; i++) {
      if (byteIds[utf8[i] & 0xFF] < 0) {
        return false;
      }
    }
    return true;
  }

  int byteId(byte b) {
    return byteIds[b & 0xFF];
  }

  /** Appends the unknown token, if there is one. */
  void append(boolean afterUnknown, IntList out) {
    if (unknownId >= 0 && !(fuse && afterUnknown)) {
      out.add(unknownId);
    }
  }
}
