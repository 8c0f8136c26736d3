package io.fletch.sampling;

import java.util.Arrays;

/**
 * The tokens of a sequence so far, prompt included: what penalties look at, and its length is the
 * position that random draws are keyed by. Written by the decoder, read by sampler steps. Used by
 * one thread at a time; allocates only when it outgrows its room.
 */
public final class TokenHistory {
  private int[] tokens;
  private int length;

  /** An empty history with room for some tokens. */
  public TokenHistory(int room) {
    tokens = new int[Math.max(16, room)];
  }

  /** Number of tokens. */
  public int length() {
    return length;
  }

  /** The i-th token. */
  public int token(int i) {
    if (i < 0 || i >= length) {
      throw new IndexOutOfBoundsException("token " + i + " of " + length);
    }
    return tokens[i];
  }

  /** Adds a token. */
  public void add(int token) {
    if (length == tokens.length) {
      tokens = Arrays.copyOf(tokens, length * 2);
    }
    tokens[length++] = token;
  }

  /** Drops tokens from {@code newLength} on. */
  public void truncate(int newLength) {
    if (newLength < 0 || newLength > length) {
      throw new IndexOutOfBoundsException("length " + newLength + " of " + length);
    }
    length = newLength;
  }

  /** Copies {@code count} tokens from {@code from} on. */
  public void copy(int from, int[] target, int offset, int count) {
    if (from < 0 || count < 0 || from + count > length) {
      throw new IndexOutOfBoundsException("[" + from + ", +" + count + ") of " + length);
    }
    System.arraycopy(tokens, from, target, offset, count);
  }

  /** The backing array, valid in {@code [0, length)} until the next change. */
  int[] array() {
    return tokens;
  }
}
