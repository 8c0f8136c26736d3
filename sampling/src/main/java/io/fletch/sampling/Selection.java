package io.fletch.sampling;

import java.util.Arrays;

/** Positions and tokens that a step commits, the surest first. Grows while a policy fills it. */
final class Selection {
  private int[] positions = new int[8];
  private int[] tokens = new int[8];
  private int size;

  void add(int position, int token) {
    if (size == positions.length) {
      positions = Arrays.copyOf(positions, size * 2);
      tokens = Arrays.copyOf(tokens, size * 2);
    }
    positions[size] = position;
    tokens[size++] = token;
  }

  int size() {
    return size;
  }

  boolean isEmpty() {
    return size == 0;
  }

  int position(int i) {
    return positions[i];
  }

  int token(int i) {
    return tokens[i];
  }
}
