package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import io.fletch.Tokenizer;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Objects;
import java.util.OptionalInt;

/**
 * The one tokenizer: added tokens are cut out, texts between them go through normalizer,
 * pre-tokenizer and piece encoder. All parts are immutable (the encoder has a cache that tolerates
 * races), so it is thread-safe.
 *
 * <p>A Java string can hold unpaired surrogates, UTF-8 cannot: each is encoded as U+FFFD, which is
 * what decoding then gives.
 */
final class TextTokenizer implements Tokenizer {
  /**
   * What a tokenizer is made of.
   *
   * @param added all added tokens
   * @param addedText those that count even in untrusted text: added tokens that are not special
   * @param prefix ids added before a text
   * @param suffix ids added after it
   * @param stripSpace decoding drops one space at the beginning (encoding had put it there)
   */
  record Parts(
      Vocabulary vocabulary,
      AddedTokens added,
      AddedTokens addedText,
      Normalizer normalizer,
      PreTokenizer preTokenizer,
      PieceEncoder encoder,
      int[] prefix,
      int[] suffix,
      boolean stripSpace,
      OptionalInt bos,
      OptionalInt eos,
      OptionalInt mask,
      List<Integer> endOfGeneration) {}

  private final Parts parts;
  private final Vocabulary vocabulary;

  TextTokenizer(Parts parts) {
    this.parts = parts;
    this.vocabulary = parts.vocabulary();
  }

  @Override
  public int vocabularySize() {
    return vocabulary.size();
  }

  @Override
  public int[] encode(String text) {
    return encode(text, true, true);
  }

  @Override
  public int[] encode(String text, boolean addSpecial, boolean parseSpecial) {
    Objects.requireNonNull(text, "text");
    IntList out = new IntList();
    if (addSpecial) {
      out.addAll(parts.prefix());
    }
    Scratch scratch = new Scratch();
    PieceSink chain =
        parts
            .preTokenizer()
            .before((piece, from, to) -> parts.encoder().encode(piece, from, to, scratch, out));
    AddedTokens added = parseSpecial ? parts.added() : parts.addedText();
    int from = 0;
    while (from < text.length()) {
      AddedTokens.Hit hit = added.isEmpty() ? null : added.find(text, from);
      int to = hit == null ? text.length() : hit.from();
      if (to > from) {
        String segment = from == 0 && to == text.length() ? text : text.substring(from, to);
        String normal = parts.normalizer().apply(segment, from == 0);
        if (!normal.isEmpty()) {
          chain.accept(normal, 0, normal.length());
        }
      }
      if (hit == null) {
        break;
      }
      out.add(hit.id());
      from = hit.to();
    }
    if (addSpecial) {
      out.addAll(parts.suffix());
    }
    return out.toArray();
  }

  @Override
  public String decode(int[] ids) {
    return decode(ids, false);
  }

  @Override
  public String decode(int[] ids, boolean special) {
    ByteList bytes = new ByteList();
    boolean strip = parts.stripSpace();
    for (int id : ids) {
      checkId(id);
      if (vocabulary.isSpecial(id)) {
        if (special) {
          vocabulary.appendSpelling(id, bytes);
        }
      } else {
        strip = append(id, strip, bytes);
      }
    }
    return bytes.take(bytes.size());
  }

  /** Appends the bytes of a token that is text; returns whether a space is still to be dropped. */
  private boolean append(int id, boolean strip, ByteList bytes) {
    int before = bytes.size();
    vocabulary.appendBytes(id, bytes);
    if (strip && bytes.size() > before) {
      if (bytes.at(before) == ' ') {
        bytes.remove(before);
      }
      return false;
    }
    return strip;
  }

  @Override
  public byte[] bytes(int id) {
    checkId(id);
    return vocabulary.isSpecial(id) ? new byte[0] : vocabulary.bytes(id);
  }

  @Override
  public String token(int id) {
    checkId(id);
    return vocabulary.spelling(id);
  }

  @Override
  public OptionalInt id(String token) {
    return vocabulary.id(token);
  }

  @Override
  public boolean isSpecial(int id) {
    checkId(id);
    return vocabulary.isSpecial(id);
  }

  @Override
  public OptionalInt bos() {
    return parts.bos();
  }

  @Override
  public OptionalInt eos() {
    return parts.eos();
  }

  @Override
  public OptionalInt mask() {
    return parts.mask();
  }

  @Override
  public List<Integer> endOfGeneration() {
    return parts.endOfGeneration();
  }

  @Override
  public StreamDecoder streamDecoder() {
    return new Stream();
  }

  private void checkId(int id) {
    if (id < 0 || id >= vocabulary.size()) {
      throw new FletchException(
          "token id out of range, expected=0 to " + (vocabulary.size() - 1) + " actual=" + id);
    }
  }

  /** Keeps the bytes of a character back until the character is whole. */
  private final class Stream implements StreamDecoder {
    private final ByteList pending = new ByteList();
    private boolean strip = parts.stripSpace();

    @Override
    public String accept(int id) {
      checkId(id);
      if (vocabulary.isSpecial(id)) {
        return "";
      }
      strip = append(id, strip, pending);
      return pending.take(pending.size() - pending.incompleteTail());
    }

    @Override
    public String finish() {
      return pending.take(pending.size());
    }
  }

  @Override
  public String toString() {
    return "Tokenizer["
        + vocabulary.size()
        + " tokens, end="
        + parts.endOfGeneration().stream().map(vocabulary::spelling).toList()
        + "]";
  }

  /** UTF-8 of a spelling. */
  static byte[] utf8(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }
}
