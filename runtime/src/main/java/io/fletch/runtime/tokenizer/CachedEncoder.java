package io.fletch.runtime.tokenizer;

/**
 * Remembers the tokens of recent short pieces: most pieces of a text are words seen before. A
 * direct-mapped table of immutable entries; threads may overwrite each other's, which costs a miss.
 */
final class CachedEncoder implements PieceEncoder {
  private static final int ENTRIES = 1 << 14;
  private static final int LONGEST = 32;

  private record Entry(String piece, int[] ids) {}

  private final PieceEncoder encoder;
  private final Entry[] entries = new Entry[ENTRIES];

  CachedEncoder(PieceEncoder encoder) {
    this.encoder = encoder;
  }

  @Override
  public void encode(String text, int from, int to, Scratch scratch, IntList out) {
    int length = to - from;
    if (length > LONGEST) {
      encoder.encode(text, from, to, scratch, out);
      return;
    }
    int hash = 0;
    for (int i = from; i < to; i++) {
      hash = 31 * hash + text.charAt(i);
    }
    int slot = (hash ^ hash >>> 15) & ENTRIES - 1;
    Entry entry = entries[slot];
    if (entry != null
        && entry.piece.length() == length
        && entry.piece.regionMatches(0, text, from, length)) {
      out.addAll(entry.ids);
      return;
    }
    int before = out.size();
    encoder.encode(text, from, to, scratch, out);
    entries[slot] = new Entry(text.substring(from, to), out.tail(before));
  }
}
