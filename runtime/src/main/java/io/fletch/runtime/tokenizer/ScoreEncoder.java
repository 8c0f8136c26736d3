package io.fletch.runtime.tokenizer;

import java.util.Arrays;
import java.util.function.IntPredicate;

/**
 * SentencePiece BPE: starting from characters, the neighbours whose joined text is the token with
 * the highest score are merged, until no neighbours make a token. Characters that are no token
 * become byte tokens.
 */
final class ScoreEncoder implements PieceEncoder {
  private final TokenTable tokens;
  private final IntPredicate ordinary;
  private final int[] ranks;
  private final Unknown unknown;

  /**
   * An encoder.
   *
   * @param ordinary ids that text may become; others only by name
   * @param scores by id, finite and without negative zero
   */
  ScoreEncoder(TokenTable tokens, IntPredicate ordinary, float[] scores, Unknown unknown) {
    this.tokens = tokens;
    this.ordinary = ordinary;
    this.ranks = ranks(scores);
    this.unknown = unknown;
  }

  @Override
  public void encode(String text, int from, int to, Scratch scratch, IntList out) {
    byte[] utf8 = scratch.utf8(to - from);
    int length = Utf8.encode(text, from, to, utf8);
    Merger merger = scratch.merger;
    merger.reset();
    for (int i = 0; i < length; ) {
      int end = i + Utf8.sequenceLength(utf8[i]);
      merger.symbol(find(utf8, i, end), end);
      i = end;
    }
    merger.merge((left, right, start, end) -> {
      int id = find(utf8, start, end);
      return id < 0 ? -1 : (long) ranks[id] << 32 | id;
    });
    boolean afterUnknown = false;
    for (int i = 0; i < merger.count(); i++) {
      int id = merger.id(i);
      if (id >= 0) {
        out.add(id);
        afterUnknown = false;
      } else if (unknown.hasBytes(utf8, merger.start(i), merger.end(i))) {
        for (int b = merger.start(i); b < merger.end(i); b++) {
          out.add(unknown.byteId(utf8[b]));
        }
        afterUnknown = false;
      } else {
        unknown.append(afterUnknown, out);
        afterUnknown = true;
      }
    }
  }

  private int find(byte[] utf8, int from, int to) {
    int id = tokens.find(utf8, from, to);
    return id >= 0 && ordinary.test(id) ? id : -1;
  }

  /** For each score its place among the distinct scores, the highest first. */
  private static int[] ranks(float[] scores) {
    float[] sorted = scores.clone();
    Arrays.sort(sorted);
    int distinct = 0;
    for (int i = 0; i < sorted.length; i++) {
      if (i == 0 || sorted[i] != sorted[distinct - 1]) {
        sorted[distinct++] = sorted[i];
      }
    }
    int[] ranks = new int[scores.length];
    for (int i = 0; i < ranks.length; i++) {
      ranks[i] = distinct - 1 - Arrays.binarySearch(sorted, 0, distinct, scores[i]);
    }
    return ranks;
  }
}
