package io.fletch.runtime.tokenizer;

import java.util.function.IntPredicate;

/**
 * BPE by ranked merges. The first symbols are bytes (byte-level vocabularies, GPT-2 and its heirs)
 * or characters with bytes as fallback (SentencePiece vocabularies in tokenizer.json).
 */
final class BytePairEncoder implements PieceEncoder {
  /** What a piece is made of. */
  enum Symbols {
    /** Bytes of the UTF-8 form. */
    BYTES,
    /** Bytes already spelled by characters of {@link ByteAlphabet}. */
    SPELLED_BYTES,
    /** Code points. */
    CHARACTERS
  }

  private final Symbols symbols;
  private final TokenTable tokens;
  private final IntPredicate ordinary;
  private final PairTable merges;
  private final boolean ignoreMerges;
  private final Unknown unknown;
  private final int[] byteIds = new int[256];

  /**
   * An encoder.
   *
   * @param tokens bytes (or text) of the tokens by which pieces are looked up
   * @param ordinary ids that text may become; others only by name
   * @param ignoreMerges a piece that is a token is that token
   */
  BytePairEncoder(
      Symbols symbols,
      TokenTable tokens,
      IntPredicate ordinary,
      PairTable merges,
      boolean ignoreMerges,
      Unknown unknown) {
    this.symbols = symbols;
    this.tokens = tokens;
    this.ordinary = ordinary;
    this.merges = merges;
    this.ignoreMerges = ignoreMerges;
    this.unknown = unknown;
    byte[] one = new byte[1];
    for (int b = 0; b < 256; b++) {
      one[0] = (byte) b;
      byteIds[b] = find(one, 0, 1);
    }
  }

  private int find(byte[] bytes, int from, int to) {
    int id = tokens.find(bytes, from, to);
    return id >= 0 && ordinary.test(id) ? id : -1;
  }

  @Override
  public void encode(String text, int from, int to, Scratch scratch, IntList out) {
    byte[] utf8 = scratch.utf8(to - from);
    int length;
    if (symbols == Symbols.SPELLED_BYTES) {
      length = to - from;
      for (int i = 0; i < length; i++) {
        utf8[i] = (byte) ByteAlphabet.toByte(text.charAt(from + i));
      }
    } else {
      length = Utf8.encode(text, from, to, utf8);
    }
    if (ignoreMerges) {
      int id = find(utf8, 0, length);
      if (id >= 0) {
        out.add(id);
        return;
      }
    }
    Merger merger = scratch.merger;
    merger.reset();
    if (symbols == Symbols.CHARACTERS) {
      for (int i = 0; i < length; ) {
        int end = i + Utf8.sequenceLength(utf8[i]);
        int id = find(utf8, i, end);
        if (id < 0 && unknown.hasBytes(utf8, i, end)) {
          for (int b = i; b < end; b++) {
            merger.symbol(unknown.byteId(utf8[b]), b + 1);
          }
        } else {
          merger.symbol(id, end);
        }
        i = end;
      }
    } else {
      for (int i = 0; i < length; i++) {
        merger.symbol(byteIds[utf8[i] & 0xFF], i + 1);
      }
    }
    merger.merge((left, right, leftStart, rightEnd) -> merges.get(left, right));
    boolean afterUnknown = false;
    for (int i = 0; i < merger.count(); i++) {
      int id = merger.id(i);
      if (id >= 0) {
        out.add(id);
        afterUnknown = false;
      } else {
        unknown.append(afterUnknown, out);
        afterUnknown = true;
      }
    }
  }
}
