package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import io.fletch.Tokenizer;
import io.fletch.quant.Metadata;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.OptionalInt;
import java.util.function.Predicate;

/**
 * Reads {@code tokenizer.ggml.*}. Models: {@code gpt2} (byte-level BPE, pre-tokenizer by name),
 * {@code llama} (SentencePiece BPE) and {@code bert} (WordPiece). Everything is checked before it
 * is used; messages name the key.
 */
final class GgufTokenizers {
  private static final String PREFIX = "tokenizer.ggml.";
  private static final String WORD_MARK = Character.toString(Normalizer.SPACE_MARK);

  private final Metadata metadata;

  /** Number of tokens; known after {@link #tokens}. */
  private int count;

  GgufTokenizers(Metadata metadata) {
    this.metadata = metadata;
  }

  Tokenizer read() {
    String model =
        metadata
            .string(PREFIX + "model")
            .orElseThrow(() -> new FletchException(PREFIX + "model: missing"));
    return switch (model) {
      case "gpt2" -> bytePair();
      case "llama" -> sentencePiece();
      case "bert" -> wordPiece();
      default ->
          throw new FletchException(
              PREFIX
                  + "model: tokenizer not supported, expected=gpt2, llama or bert actual="
                  + model);
    };
  }

  private byte[][] tokens() {
    byte[][] tokens =
        metadata
            .bytes(PREFIX + "tokens")
            .orElseThrow(() -> new FletchException(PREFIX + "tokens: missing"));
    if (tokens.length == 0) {
      throw new FletchException(PREFIX + "tokens: expected at least 1 token, actual=0");
    }
    count = tokens.length;
    return tokens;
  }

  private Vocabulary.Kind[] kinds() {
    String key = PREFIX + "token_type";
    Vocabulary.Kind[] kinds = new Vocabulary.Kind[count];
    long[] types = metadata.integers(key).orElse(null);
    if (types == null) {
      Arrays.fill(kinds, Vocabulary.Kind.NORMAL);
      return kinds;
    }
    checkCount(key, types.length);
    Vocabulary.Kind[] all = Vocabulary.Kind.values();
    for (int i = 0; i < count; i++) {
      // 0 is "undefined" in the format; files have it for padding.
      if (types[i] < 0 || types[i] > all.length) {
        throw new FletchException(
            key + "[" + i + "]: expected=0 to " + all.length + " actual=" + types[i]);
      }
      kinds[i] = types[i] == 0 ? Vocabulary.Kind.NORMAL : all[(int) types[i] - 1];
    }
    return kinds;
  }

  private void checkCount(String key, int actual) {
    if (actual != count) {
      throw new FletchException(key + ": length, expected=" + count + " (tokens) actual=" + actual);
    }
  }

  private TokenTable spellings(byte[][] tokens) {
    return TokenTable.build(
        tokens,
        (first, second) -> {
          throw new FletchException(
              PREFIX
                  + "tokens["
                  + second
                  + "]: same token as tokens["
                  + first
                  + "]: "
                  + new String(tokens[first], StandardCharsets.UTF_8));
        });
  }

  private Tokenizer bytePair() {
    byte[][] tokens = tokens();
    Vocabulary.Kind[] kinds = kinds();
    TokenTable spellings = spellings(tokens);
    byte[][] bytes = new byte[tokens.length][];
    for (int i = 0; i < tokens.length; i++) {
      boolean text = kinds[i] == Vocabulary.Kind.NORMAL || kinds[i] == Vocabulary.Kind.UNUSED;
      byte[] decoded = text ? ByteAlphabet.bytes(tokens[i]) : null;
      bytes[i] = decoded == null ? tokens[i] : decoded;
      if (text && decoded == null) {
        // Not spelled in the byte alphabet: no text leads to it, but it can be decoded.
        kinds[i] = Vocabulary.Kind.BYTE;
      }
    }
    // Two spellings of the same bytes: an ordinary token and an added one.
    TokenTable byBytes = TokenTable.build(order(bytes, kinds), (first, second) -> {});
    Vocabulary vocabulary = new Vocabulary(spellings, TokenBytes.of(bytes), kinds);
    String pre = metadata.string(PREFIX + "pre").orElse("default");
    PreTokenizer preTokenizer = PreTokenizers.named(pre);
    OptionalInt unknown = special("unknown");
    BytePairEncoder encoder =
        new BytePairEncoder(
            BytePairEncoder.Symbols.BYTES,
            byBytes,
            vocabulary::isOrdinary,
            merges(spellings),
            PreTokenizers.ignoresMerges(pre),
            new Unknown(null, unknown.orElse(-1), false));
    return tokenizer(
        vocabulary,
        Normalizer.NONE,
        preTokenizer,
        new CachedEncoder(encoder),
        PreTokenizers.addsBos(pre),
        false,
        false,
        OptionalInt.empty(),
        OptionalInt.empty());
  }

  /** Only ordinary tokens, so that a lookup by bytes cannot end at a control token. */
  private static byte[][] order(byte[][] bytes, Vocabulary.Kind[] kinds) {
    byte[][] ordinary = new byte[bytes.length][];
    for (int i = 0; i < bytes.length; i++) {
      if (kinds[i] == Vocabulary.Kind.NORMAL || kinds[i] == Vocabulary.Kind.UNUSED) {
        ordinary[i] = bytes[i];
      }
    }
    return ordinary;
  }

  private PairTable merges(TokenTable spellings) {
    String key = PREFIX + "merges";
    byte[][] merges = metadata.bytes(key).orElseThrow(() -> new FletchException(key + ": missing"));
    PairTable table = new PairTable(merges.length);
    byte[] joined = new byte[64];
    for (int rank = 0; rank < merges.length; rank++) {
      byte[] merge = merges[rank];
      int space = -1;
      for (int i = 1; i < merge.length && space < 0; i++) {
        space = merge[i] == ' ' ? i : -1;
      }
      if (space < 0) {
        throw new FletchException(
            key + "[" + rank + "]: expected two tokens and a space, actual=" + text(merge));
      }
      if (joined.length < merge.length) {
        joined = new byte[merge.length];
      }
      System.arraycopy(merge, 0, joined, 0, space);
      System.arraycopy(merge, space + 1, joined, space, merge.length - space - 1);
      int left = spellings.find(merge, 0, space);
      int right = spellings.find(merge, space + 1, merge.length);
      int merged = spellings.find(joined, 0, merge.length - 1);
      if (left < 0 || right < 0 || merged < 0) {
        throw new FletchException(
            key
                + "["
                + rank
                + "]: names a token that is not in "
                + PREFIX
                + "tokens: "
                + text(merge));
      }
      table.put(left, right, rank, merged);
    }
    return table;
  }

  private static String text(byte[] bytes) {
    return new String(bytes, 0, Math.min(bytes.length, 100), StandardCharsets.UTF_8);
  }

  private Tokenizer sentencePiece() {
    byte[][] tokens = tokens();
    Vocabulary.Kind[] kinds = kinds();
    float[] scores =
        metadata
            .floats(PREFIX + "scores")
            .orElseThrow(() -> new FletchException(PREFIX + "scores: missing"));
    checkCount(PREFIX + "scores", scores.length);
    for (int i = 0; i < scores.length; i++) {
      if (!Float.isFinite(scores[i])) {
        throw new FletchException(
            PREFIX + "scores[" + i + "]: expected a finite number, actual=" + scores[i]);
      }
      scores[i] += 0f; // no negative zero
    }
    Pieces pieces = Pieces.of(tokens, kinds);
    Vocabulary vocabulary = new Vocabulary(spellings(tokens), TokenBytes.of(pieces.bytes()), kinds);
    OptionalInt unknown = or(special("unknown"), 0);
    ScoreEncoder encoder =
        new ScoreEncoder(
            vocabulary.bySpelling(),
            vocabulary::isOrdinary,
            scores,
            new Unknown(pieces.byteIds(), unknown.orElse(-1), false));
    boolean spacePrefix = metadata.bool(PREFIX + "add_space_prefix").orElse(true);
    Normalizer normalizer =
        (text, first) ->
            (spacePrefix ? Normalizer.SPACE_MARK + text : text).replace(' ', Normalizer.SPACE_MARK);
    PreTokenizer words = pieces.crossesWords() ? sink -> sink : Pieces::splitWords;
    return tokenizer(
        vocabulary,
        normalizer,
        words,
        pieces.crossesWords() ? encoder : new CachedEncoder(encoder),
        true,
        false,
        spacePrefix,
        or(special("bos"), 1),
        or(special("eos"), 2));
  }

  /**
   * BERT's, as llama.cpp's converter writes it: words begin with U+2581, what goes on with a word
   * lacks its {@code ##}. How a text is normalised the file does not say: lower case and without
   * accents unless a token has a capital letter.
   */
  private Tokenizer wordPiece() {
    byte[][] tokens = tokens();
    Vocabulary.Kind[] kinds = kinds();
    String[] spellings = new String[count];
    boolean isMarked = false;
    boolean isCased = false;
    for (int id = 0; id < count; id++) {
      spellings[id] = new String(tokens[id], StandardCharsets.UTF_8);
      // Files without token types, and what the vocabulary keeps free.
      boolean isBracketed = spellings[id].startsWith("[") && spellings[id].endsWith("]");
      if (kinds[id] == Vocabulary.Kind.NORMAL && !isBracketed) {
        isMarked |= spellings[id].startsWith(WORD_MARK);
        isCased |= spellings[id].chars().anyMatch(c -> c >= 'A' && c <= 'Z');
      }
    }
    for (String name : List.of("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]")) {
      int id = Arrays.asList(spellings).indexOf(name);
      if (id >= 0 && kinds[id] == Vocabulary.Kind.NORMAL) {
        kinds[id] = Vocabulary.Kind.CONTROL;
      }
    }
    String begins = isMarked ? WORD_MARK : "";
    String goesOn = isMarked ? "" : "##";
    Vocabulary vocabulary =
        new Vocabulary(
            spellings(tokens), WordPieces.bytes(spellings, kinds, begins, goesOn), kinds);
    OptionalInt unknown = first(special("unknown"), vocabulary.id("[UNK]"));
    if (unknown.isEmpty()) {
      throw new FletchException(PREFIX + "unknown_token_id: missing, and there is no [UNK]");
    }
    WordPieceEncoder encoder =
        new WordPieceEncoder(
            vocabulary.bySpelling(),
            vocabulary::isOrdinary,
            begins,
            goesOn,
            WordPieces.LONGEST_WORD,
            unknown.getAsInt());
    return tokenizer(
        vocabulary,
        BertText.normalizer(true, true, !isCased, !isCased),
        BertText.WORDS,
        new CachedEncoder(encoder),
        true,
        true,
        true,
        first(special("cls"), vocabulary.id("[CLS]")),
        // Converters of all years have misspelled it.
        first(first(special("seperator"), special("separator")), vocabulary.id("[SEP]")));
  }

  private static OptionalInt first(OptionalInt id, OptionalInt other) {
    return id.isPresent() ? id : other;
  }

  private OptionalInt or(OptionalInt id, int other) {
    return id.isPresent() || other >= count ? id : OptionalInt.of(other);
  }

  private Tokenizer tokenizer(
      Vocabulary vocabulary,
      Normalizer normalizer,
      PreTokenizer preTokenizer,
      PieceEncoder encoder,
      boolean addsBos,
      boolean addsEos,
      boolean stripSpace,
      OptionalInt defaultBos,
      OptionalInt defaultEos) {
    OptionalInt bos = special("bos").isPresent() ? special("bos") : defaultBos;
    OptionalInt eos = special("eos").isPresent() ? special("eos") : defaultEos;
    List<AddedTokens.Added> added = new ArrayList<>();
    List<AddedTokens.Added> addedText = new ArrayList<>();
    Predicate<String> stripsRight = stripsRight();
    for (int id = 0; id < vocabulary.size(); id++) {
      boolean userDefined = vocabulary.kind(id) == Vocabulary.Kind.USER_DEFINED;
      if (userDefined || vocabulary.isSpecial(id)) {
        String text = vocabulary.spelling(id);
        AddedTokens.Added token =
            new AddedTokens.Added(id, text, false, false, stripsRight.test(text));
        added.add(token);
        if (userDefined) {
          addedText.add(token);
        }
      }
    }
    List<Integer> ends = new ArrayList<>();
    eos.ifPresent(ends::add);
    for (String name : List.of("eot", "eom", "fim_pad", "fim_rep", "fim_sep")) {
      special(name).ifPresent(ends::add);
    }
    boolean addBos = metadata.bool(PREFIX + "add_bos_token").orElse(addsBos);
    boolean addEos = metadata.bool(PREFIX + "add_eos_token").orElse(addsEos);
    if (addEos && eos.isEmpty()) {
      throw new FletchException(PREFIX + "add_eos_token: true, but there is no eos_token_id");
    }
    if (metadata.bool(PREFIX + "add_bos_token").orElse(false) && bos.isEmpty()) {
      throw new FletchException(PREFIX + "add_bos_token: true, but there is no bos_token_id");
    }
    return new TextTokenizer(
        new TextTokenizer.Parts(
            vocabulary,
            new AddedTokens(added),
            new AddedTokens(addedText),
            normalizer,
            preTokenizer,
            encoder,
            addBos && bos.isPresent() ? new int[] {bos.getAsInt()} : new int[0],
            addEos ? new int[] {eos.getAsInt()} : new int[0],
            stripSpace,
            bos,
            eos,
            special("mask").isPresent() ? special("mask") : vocabulary.id("[MASK]"),
            EndTokens.of(vocabulary, ends)));
  }

  /** GGUF has no place for the flag; of the models in use only Phi-3 has it. */
  private Predicate<String> stripsRight() {
    String name = metadata.string("general.name").orElse("").toLowerCase(Locale.ROOT);
    if (!name.contains("phi-3") && !name.contains("phi3")) {
      return token -> false;
    }
    return token -> !List.of("<unk>", "<s>", "<|endoftext|>").contains(token);
  }

  /** A declared token id, checked. */
  private OptionalInt special(String name) {
    String key = PREFIX + name + "_token_id";
    return metadata
        .integer(key)
        .map(id -> {
          if (id < 0 || id >= count) {
            throw new FletchException(key + ": expected=0 to " + (count - 1) + " actual=" + id);
          }
          return OptionalInt.of((int) (long) id);
        })
        .orElse(OptionalInt.empty());
  }
}
