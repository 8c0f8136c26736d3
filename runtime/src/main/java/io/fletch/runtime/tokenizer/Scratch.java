package io.fletch.runtime.tokenizer;

/** Working memory of one encoder call. Not thread-safe. */
final class Scratch {
  final Merger merger = new Merger();
  private byte[] utf8 = new byte[256];

  /** A buffer that holds the UTF-8 form of a number of chars. */
  byte[] utf8(int chars) {
    int bytes = Utf8.maxBytes(chars);
    if (utf8.length < bytes) {
      utf8 = new byte[Math.max(bytes, 256)];
    }
    return utf8;
  }
}
