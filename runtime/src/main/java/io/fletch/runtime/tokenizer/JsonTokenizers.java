package io.fletch.runtime.tokenizer;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import io.fletch.FletchException;
import io.fletch.Tokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.OptionalInt;

/**
 * Reads the files of a Hugging Face folder: {@code tokenizer.json} (vocabulary, merges, normalizer,
 * pre-tokenizer, decoder, post-processor, added tokens) and, where present, {@code
 * tokenizer_config.json}, {@code special_tokens_map.json}, {@code generation_config.json} and
 * {@code config.json} (which token is which). A component that is not supported is an error naming
 * it.
 */
final class JsonTokenizers {
  private static final int MAX_TOKENS = 1 << 24;
  private static final String WORD_PIECE = "WordPiece";

  private final Path folder;
  private final Map<String, Object> parts = new LinkedHashMap<>();
  private final Map<String, Object> model = new LinkedHashMap<>();
  private final List<String> spellings = new ArrayList<>();
  private final List<String[]> merges = new ArrayList<>();

  /** Set when a byte-level step is found. */
  private BytePairEncoder.Symbols symbols = BytePairEncoder.Symbols.CHARACTERS;

  /** Normalization that a pre-tokenizer does on each text. */
  private final List<Normalizer> preNormalizers = new ArrayList<>();

  JsonTokenizers(Path folder) {
    this.folder = folder;
  }

  private FletchException error(String message) {
    return new FletchException(folder.resolve("tokenizer.json") + ": " + message);
  }

  Tokenizer read() {
    try {
      parse();
    } catch (IOException e) {
      throw new FletchException(folder.resolve("tokenizer.json") + ": " + e.getMessage(), e);
    }
    Map<String, Object> config = optional("tokenizer_config.json");
    Map<String, Object> special = optional("special_tokens_map.json");
    Map<String, Object> generation = optional("generation_config.json");
    Map<String, Object> architecture = optional("config.json");

    List<Map<String, Object>> added = objects(parts.get("added_tokens"), "added_tokens");
    Vocabulary.Kind[] kinds = kinds(added);
    Normalizer normalizer = normalizer(parts.get("normalizer"));
    PreTokenizer preTokenizer = preTokenizer(parts.get("pre_tokenizer"));
    byte[][] utf8 = new byte[spellings.size()][];
    for (int i = 0; i < utf8.length; i++) {
      utf8[i] = spellings.get(i) == null ? new byte[0] : TextTokenizer.utf8(spellings.get(i));
    }
    boolean byteLevel = symbols != BytePairEncoder.Symbols.CHARACTERS;
    Decoding decoding = decoding(parts.get("decoder"), byteLevel);
    byte[][] bytes = isWordPiece() ? new byte[0][] : decoding.bytes(utf8, kinds);
    TokenTable bySpelling =
        TokenTable.build(
            utf8,
            (first, second) -> {
              throw error("model.vocab: ids " + first + " and " + second + " are the same token");
            });
    TokenBytes texts = isWordPiece() ? wordPieces(kinds) : TokenBytes.of(bytes);
    Vocabulary vocabulary = new Vocabulary(bySpelling, texts, kinds);
    PieceEncoder encoder =
        isWordPiece() ? wordPiece(vocabulary) : encoder(vocabulary, bytes, utf8, kinds);

    List<AddedTokens.Added> all = new ArrayList<>();
    List<AddedTokens.Added> text = new ArrayList<>();
    for (Map<String, Object> token : added) {
      AddedTokens.Added entry =
          new AddedTokens.Added(
              id(token.get("id"), "added_tokens.id"),
              string(token, "content", "added_tokens"),
              bool(token, "single_word", false),
              bool(token, "lstrip", false),
              bool(token, "rstrip", false));
      all.add(entry);
      if (!bool(token, "special", false)) {
        text.add(entry);
      }
    }

    OptionalInt bos = named(vocabulary, "bos_token", config, special);
    OptionalInt eos = named(vocabulary, "eos_token", config, special);
    List<Integer> ends = new ArrayList<>();
    List<Integer> declared = new ArrayList<>(ids(generation.get("eos_token_id"), vocabulary));
    declared.addAll(ids(architecture.get("eos_token_id"), vocabulary));
    if (eos.isEmpty() && !declared.isEmpty()) {
      eos = OptionalInt.of(declared.getFirst());
    }
    eos.ifPresent(ends::add);
    ends.addAll(declared);
    OptionalInt mask = named(vocabulary, "mask_token", config, special);
    if (mask.isEmpty()) {
      List<Integer> masks = ids(architecture.get("mask_token_id"), vocabulary);
      mask = masks.isEmpty() ? mask : OptionalInt.of(masks.getFirst());
    }
    Affixes affixes = affixes(vocabulary, bos, eos, config);
    return new TextTokenizer(
        new TextTokenizer.Parts(
            vocabulary,
            new AddedTokens(all),
            new AddedTokens(text),
            preNormalizers.isEmpty()
                ? normalizer
                : Normalizer.sequence(concat(normalizer, preNormalizers)),
            preTokenizer,
            encoder,
            affixes.prefix(),
            affixes.suffix(),
            decoding.strip(),
            bos,
            eos,
            mask,
            EndTokens.of(vocabulary, ends)));
  }

  private static List<Normalizer> concat(Normalizer first, List<Normalizer> rest) {
    List<Normalizer> steps = new ArrayList<>(List.of(first));
    steps.addAll(rest);
    return steps;
  }

  // Files

  private void parse() throws IOException {
    Path file = folder.resolve("tokenizer.json");
    if (!Files.isRegularFile(file)) {
      throw error("no such file");
    }
    try (JsonParser parser = JsonFiles.FACTORY.createParser(file.toFile())) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw error("expected a JSON object");
      }
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String name = parser.currentName();
        parser.nextToken();
        if (name.equals("model") && parser.currentToken() == JsonToken.START_OBJECT) {
          parseModel(parser);
        } else {
          parts.put(name, JsonFiles.value(parser));
        }
      }
    }
    Object type = model.getOrDefault("type", "BPE");
    if (!type.equals("BPE") && !type.equals(WORD_PIECE)) {
      throw error("model.type: not supported, expected=BPE or WordPiece actual=" + type);
    }
    if (spellings.isEmpty()) {
      throw error("model.vocab: missing or empty");
    }
  }

  private void parseModel(JsonParser parser) throws IOException {
    while (parser.nextToken() == JsonToken.FIELD_NAME) {
      String name = parser.currentName();
      JsonToken token = parser.nextToken();
      if (name.equals("vocab") && token == JsonToken.START_OBJECT) {
        while (parser.nextToken() == JsonToken.FIELD_NAME) {
          String spelling = parser.currentName();
          if (parser.nextToken() != JsonToken.VALUE_NUMBER_INT) {
            throw error("model.vocab: id of '" + spelling + "' is not an integer");
          }
          put(id(parser.getLongValue(), "model.vocab"), spelling, "model.vocab");
        }
      } else if (name.equals("merges") && token == JsonToken.START_ARRAY) {
        while (parser.nextToken() != JsonToken.END_ARRAY) {
          merges.add(merge(parser));
        }
      } else {
        model.put(name, JsonFiles.value(parser));
      }
    }
  }

  private String[] merge(JsonParser parser) throws IOException {
    if (parser.currentToken() == JsonToken.VALUE_STRING) {
      String text = parser.getText();
      int space = text.indexOf(' ', 1);
      if (space > 0) {
        return new String[] {text.substring(0, space), text.substring(space + 1)};
      }
    } else if (JsonFiles.value(parser) instanceof List<?> pair
        && pair.size() == 2
        && pair.get(0) instanceof String left
        && pair.get(1) instanceof String right) {
      return new String[] {left, right};
    }
    throw error("model.merges[" + merges.size() + "]: expected two tokens");
  }

  private void put(int id, String spelling, String field) {
    while (spellings.size() <= id) {
      spellings.add(null);
    }
    String known = spellings.get(id);
    if (known != null && !known.equals(spelling)) {
      throw error(field + ": id " + id + " is '" + known + "' and '" + spelling + "'");
    }
    spellings.set(id, spelling);
  }

  private int id(Object value, String field) {
    if (!(value instanceof Long id) || id < 0 || id >= MAX_TOKENS) {
      throw error(field + ": id, expected=0 to " + (MAX_TOKENS - 1) + " actual=" + value);
    }
    return (int) (long) id;
  }

  private Map<String, Object> optional(String name) {
    Path file = folder.resolve(name);
    if (!Files.isRegularFile(file)) {
      return Map.of();
    }
    try (JsonParser parser = JsonFiles.FACTORY.createParser(file.toFile())) {
      parser.nextToken();
      return object(JsonFiles.value(parser), name);
    } catch (IOException e) {
      throw new FletchException(file + ": " + e.getMessage(), e);
    }
  }

  @SuppressWarnings("unchecked")
  private Map<String, Object> object(Object value, String field) {
    if (!(value instanceof Map<?, ?> map)) {
      throw error(field + ": expected an object");
    }
    return (Map<String, Object>) map;
  }

  private List<Map<String, Object>> objects(Object value, String field) {
    List<Map<String, Object>> list = new ArrayList<>();
    if (value instanceof List<?> items) {
      items.forEach(item -> list.add(object(item, field)));
    } else if (value != null) {
      throw error(field + ": expected an array");
    }
    return list;
  }

  private String string(Map<String, Object> object, String name, String field) {
    if (!(object.get(name) instanceof String text)) {
      throw error(field + "." + name + ": expected a string, actual=" + object.get(name));
    }
    return text;
  }

  private static boolean bool(Map<String, Object> object, String name, boolean otherwise) {
    return object.get(name) instanceof Boolean b ? b : otherwise;
  }

  // Vocabulary

  private Vocabulary.Kind[] kinds(List<Map<String, Object>> added) {
    for (Map<String, Object> token : added) {
      put(
          id(token.get("id"), "added_tokens.id"),
          string(token, "content", "added_tokens"),
          "added_tokens");
    }
    Vocabulary.Kind[] kinds = new Vocabulary.Kind[spellings.size()];
    int holes = 0;
    boolean byteFallback = bool(model, "byte_fallback", false);
    for (int i = 0; i < kinds.length; i++) {
      String spelling = spellings.get(i);
      holes += spelling == null ? 1 : 0;
      kinds[i] =
          spelling == null
              ? Vocabulary.Kind.CONTROL
              : byteFallback && Pieces.byteValue(spelling) >= 0
                  ? Vocabulary.Kind.BYTE
                  : Vocabulary.Kind.NORMAL;
    }
    if (holes > kinds.length / 2) {
      throw error("model.vocab: " + holes + " of " + kinds.length + " ids have no token");
    }
    for (Map<String, Object> token : added) {
      kinds[id(token.get("id"), "added_tokens.id")] =
          bool(token, "special", false) ? Vocabulary.Kind.CONTROL : Vocabulary.Kind.USER_DEFINED;
    }
    return kinds;
  }

  private boolean isWordPiece() {
    return WORD_PIECE.equals(model.get("type"));
  }

  /** Written before tokens that go on with a word. */
  private String continuing() {
    String prefix =
        model.get("continuing_subword_prefix") == null
            ? "##"
            : string(model, "continuing_subword_prefix", "model");
    if (prefix.isEmpty()) {
      throw error("model.continuing_subword_prefix: expected=a text that is not empty");
    }
    return prefix;
  }

  private TokenBytes wordPieces(Vocabulary.Kind[] kinds) {
    String[] all = new String[spellings.size()];
    for (int i = 0; i < all.length; i++) {
      all[i] = spellings.get(i) == null ? "" : spellings.get(i);
    }
    return WordPieces.bytes(all, kinds, "", continuing());
  }

  private PieceEncoder wordPiece(Vocabulary vocabulary) {
    Object most = model.getOrDefault("max_input_chars_per_word", (long) WordPieces.LONGEST_WORD);
    if (!(most instanceof Long longest) || longest < 1 || longest > 1 << 16) {
      throw error("model.max_input_chars_per_word: expected=1 to 65536 actual=" + most);
    }
    String unknown = string(model, "unk_token", "model");
    return new CachedEncoder(
        new WordPieceEncoder(
            vocabulary.bySpelling(),
            vocabulary::isOrdinary,
            "",
            continuing(),
            (int) (long) longest,
            vocabulary
                .id(unknown)
                .orElseThrow(() -> error("model.unk_token: not in model.vocab: " + unknown))));
  }

  private PieceEncoder encoder(
      Vocabulary vocabulary, byte[][] bytes, byte[][] utf8, Vocabulary.Kind[] kinds) {
    for (String unsupported :
        List.of("continuing_subword_prefix", "end_of_word_suffix", "dropout")) {
      Object value = model.get(unsupported);
      if (value != null && !value.equals("") && !value.equals(0.0) && !value.equals(0L)) {
        throw error("model." + unsupported + ": not supported, actual=" + value);
      }
    }
    TokenTable lookup = vocabulary.bySpelling();
    int[] byteIds = null;
    if (symbols != BytePairEncoder.Symbols.CHARACTERS) {
      byte[][] ordinary = new byte[bytes.length][];
      for (int i = 0; i < bytes.length; i++) {
        boolean text = kinds[i] == Vocabulary.Kind.NORMAL;
        ordinary[i] = text ? ByteAlphabet.bytes(spellings.get(i)) : null;
      }
      lookup = TokenTable.build(ordinary, (first, second) -> {});
    } else if (bool(model, "byte_fallback", false)) {
      byteIds = Pieces.of(utf8, kinds).byteIds();
    }
    PairTable table = new PairTable(merges.size());
    for (int rank = 0; rank < merges.size(); rank++) {
      String[] pair = merges.get(rank);
      int left = vocabulary.id(pair[0]).orElse(-1);
      int right = vocabulary.id(pair[1]).orElse(-1);
      int merged = vocabulary.id(pair[0] + pair[1]).orElse(-1);
      if (left < 0 || right < 0 || merged < 0) {
        throw error(
            "model.merges["
                + rank
                + "]: names a token that is not in model.vocab: "
                + pair[0]
                + " "
                + pair[1]);
      }
      table.put(left, right, rank, merged);
    }
    int unknown = -1;
    if (model.get("unk_token") instanceof String token) {
      unknown =
          vocabulary
              .id(token)
              .orElseThrow(() -> error("model.unk_token: not in model.vocab: " + token));
    }
    return new CachedEncoder(
        new BytePairEncoder(
            symbols,
            lookup,
            vocabulary::isOrdinary,
            table,
            bool(model, "ignore_merges", false),
            new Unknown(byteIds, unknown, bool(model, "fuse_unk", false))));
  }

  // Which token is which

  private OptionalInt named(
      Vocabulary vocabulary, String name, Map<String, Object> config, Map<String, Object> special) {
    for (Map<String, Object> source : List.of(config, special)) {
      Object value = source.get(name);
      if (value instanceof Map<?, ?> token) {
        value = token.get("content");
      }
      if (value instanceof String text) {
        return vocabulary.id(text);
      }
    }
    return OptionalInt.empty();
  }

  private List<Integer> ids(Object value, Vocabulary vocabulary) {
    List<Integer> ids = new ArrayList<>();
    for (Object entry : value instanceof List<?> list ? list : Arrays.asList(value)) {
      // Files name ids beyond the vocabulary where a model has padded embeddings.
      if (entry instanceof Long id && id >= 0 && id < vocabulary.size()) {
        ids.add((int) (long) id);
      }
    }
    return ids;
  }

  private record Affixes(int[] prefix, int[] suffix) {}

  private Affixes affixes(
      Vocabulary vocabulary, OptionalInt bos, OptionalInt eos, Map<String, Object> config) {
    List<Map<String, Object>> processors = new ArrayList<>();
    if (parts.get("post_processor") != null) {
      Map<String, Object> processor = object(parts.get("post_processor"), "post_processor");
      if ("Sequence".equals(processor.get("type"))) {
        processors.addAll(objects(processor.get("processors"), "post_processor.processors"));
      } else {
        processors.add(processor);
      }
    }
    for (Map<String, Object> processor : processors) {
      switch (string(processor, "type", "post_processor")) {
        case "ByteLevel" -> {}
        case "BertProcessing" -> {
          return new Affixes(pair(processor, "cls"), pair(processor, "sep"));
        }
        case "TemplateProcessing" -> {
          return template(processor, vocabulary);
        }
        default ->
            throw error("post_processor.type: not supported, actual=" + processor.get("type"));
      }
    }
    boolean addBos = bool(config, "add_bos_token", false) && bos.isPresent();
    boolean addEos = bool(config, "add_eos_token", false) && eos.isPresent();
    return new Affixes(
        addBos ? new int[] {bos.getAsInt()} : new int[0],
        addEos ? new int[] {eos.getAsInt()} : new int[0]);
  }

  /** The id of {@code [token, id]}. */
  private int[] pair(Map<String, Object> processor, String name) {
    if (!(processor.get(name) instanceof List<?> pair) || pair.size() != 2) {
      throw error("post_processor." + name + ": expected=[token, id]");
    }
    int id = id(pair.get(1), "post_processor." + name);
    if (id >= spellings.size()) {
      throw error("post_processor." + name + ": no such token: " + id);
    }
    return new int[] {id};
  }

  private Affixes template(Map<String, Object> processor, Vocabulary vocabulary) {
    IntList prefix = new IntList();
    IntList suffix = new IntList();
    boolean afterText = false;
    for (Map<String, Object> piece : objects(processor.get("single"), "post_processor.single")) {
      if (piece.containsKey("Sequence")) {
        afterText = true;
      } else {
        String token =
            string(
                object(piece.get("SpecialToken"), "post_processor.single"),
                "id",
                "post_processor.single");
        int id =
            vocabulary
                .id(token)
                .orElseThrow(() -> error("post_processor.single: no such token: " + token));
        (afterText ? suffix : prefix).add(id);
      }
    }
    return new Affixes(prefix.toArray(), suffix.toArray());
  }

  // Normalizer

  private Normalizer normalizer(Object value) {
    if (value == null) {
      return Normalizer.NONE;
    }
    Map<String, Object> spec = object(value, "normalizer");
    String type = string(spec, "type", "normalizer");
    return switch (type) {
      case "Sequence" ->
          Normalizer.sequence(
              objects(spec.get("normalizers"), "normalizer.normalizers").stream()
                  .map(this::normalizer)
                  .toList());
      case "Prepend" -> {
        String prefix = string(spec, "prepend", "normalizer");
        yield (text, first) -> prefix + text;
      }
      case "Replace" -> {
        Map<String, Object> pattern = object(spec.get("pattern"), "normalizer.pattern");
        String content = string(spec, "content", "normalizer");
        if (pattern.get("String") instanceof String literal && !literal.isEmpty()) {
          yield (text, first) -> text.replace(literal, content);
        }
        SplitPattern regex = SplitPattern.compile(string(pattern, "Regex", "normalizer.pattern"));
        yield (text, first) -> replace(text, regex, content);
      }
      case "BertNormalizer" -> {
        boolean lowercase = bool(spec, "lowercase", true);
        yield BertText.normalizer(
            bool(spec, "clean_text", true),
            bool(spec, "handle_chinese_chars", true),
            bool(spec, "strip_accents", lowercase),
            lowercase);
      }
      case "NFC" -> form(java.text.Normalizer.Form.NFC);
      case "NFD" -> form(java.text.Normalizer.Form.NFD);
      case "NFKC" -> form(java.text.Normalizer.Form.NFKC);
      case "NFKD" -> form(java.text.Normalizer.Form.NFKD);
      case "Lowercase" -> (text, first) -> text.toLowerCase(Locale.ROOT);
      case "Strip" -> {
        boolean left = bool(spec, "strip_left", true);
        boolean right = bool(spec, "strip_right", true);
        yield (text, first) -> strip(text, left, right);
      }
      default -> throw error("normalizer.type: not supported, actual=" + type);
    };
  }

  private static Normalizer form(java.text.Normalizer.Form form) {
    return (text, first) ->
        java.text.Normalizer.isNormalized(text, form)
            ? text
            : java.text.Normalizer.normalize(text, form);
  }

  private static String replace(String text, SplitPattern regex, String content) {
    StringBuilder out = new StringBuilder();
    SplitPattern.Finder finder = regex.new Finder(text, 0, text.length());
    int done = 0;
    while (finder.find()) {
      out.append(text, done, finder.start()).append(content);
      done = finder.end();
    }
    return out.append(text, done, text.length()).toString();
  }

  private static String strip(String text, boolean left, boolean right) {
    int from = 0;
    int to = text.length();
    while (left && from < to && CharSet.isSpace(text.charAt(from))) {
      from++;
    }
    while (right && to > from && CharSet.isSpace(text.charAt(to - 1))) {
      to--;
    }
    return text.substring(from, to);
  }

  // Pre-tokenizer

  private PreTokenizer preTokenizer(Object value) {
    List<PreTokenizer> steps = new ArrayList<>();
    if (value != null) {
      Map<String, Object> spec = object(value, "pre_tokenizer");
      List<Map<String, Object>> specs =
          "Sequence".equals(spec.get("type"))
              ? objects(spec.get("pretokenizers"), "pre_tokenizer.pretokenizers")
              : List.of(spec);
      for (int i = 0; i < specs.size(); i++) {
        add(steps, specs.get(i), i == specs.size() - 1);
      }
    }
    return PreTokenizer.sequence(steps);
  }

  private void add(List<PreTokenizer> steps, Map<String, Object> spec, boolean last) {
    String type = string(spec, "type", "pre_tokenizer");
    switch (type) {
      case "ByteLevel" -> {
        if (bool(spec, "add_prefix_space", true)) {
          if (!steps.isEmpty()) {
            throw error("pre_tokenizer ByteLevel: add_prefix_space is supported as first step");
          }
          preNormalizers.add((text, first) -> text.startsWith(" ") ? text : " " + text);
        }
        if (bool(spec, "use_regex", true)) {
          steps.add(PreTokenizer.isolate(PreTokenizers.GPT2));
        }
        if (last) {
          symbols = BytePairEncoder.Symbols.BYTES;
        } else {
          symbols = BytePairEncoder.Symbols.SPELLED_BYTES;
          steps.add(PreTokenizer.spellBytes());
        }
      }
      case "Split" -> steps.add(split(spec));
      case "Digits" ->
          steps.add(
              PreTokenizer.splitCharacters(
                  CharSet::isNumeric,
                  bool(spec, "individual_digits", false)
                      ? PreTokenizer.Behavior.ISOLATED
                      : PreTokenizer.Behavior.CONTIGUOUS));
      case "Punctuation" ->
          steps.add(
              PreTokenizer.splitCharacters(
                  CharSet::isPunctuation,
                  behavior((String) spec.getOrDefault("behavior", "Isolated"))));
      case "Whitespace" ->
          steps.add(PreTokenizer.split("\\w+|[^\\w\\s]+", PreTokenizer.Behavior.REMOVED, true));
      case "WhitespaceSplit" ->
          steps.add(PreTokenizer.splitCharacters(CharSet::isSpace, PreTokenizer.Behavior.REMOVED));
      case "BertPreTokenizer" -> steps.add(BertText.WORDS);
      case "Metaspace" -> metaspace(steps, spec);
      default -> throw error("pre_tokenizer.type: not supported, actual=" + type);
    }
  }

  private PreTokenizer split(Map<String, Object> spec) {
    PreTokenizer.Behavior behavior = behavior(string(spec, "behavior", "pre_tokenizer.Split"));
    boolean invert = bool(spec, "invert", false);
    Map<String, Object> pattern = object(spec.get("pattern"), "pre_tokenizer.pattern");
    if (pattern.get("String") instanceof String literal && !literal.isEmpty()) {
      return PreTokenizer.splitLiteral(literal, behavior, invert);
    }
    String regex = string(pattern, "Regex", "pre_tokenizer.pattern");
    PreTokenizer known =
        behavior == PreTokenizer.Behavior.ISOLATED ? PreTokenizers.known(regex).orElse(null) : null;
    return known != null ? known : PreTokenizer.split(regex, behavior, invert);
  }

  private PreTokenizer.Behavior behavior(String name) {
    return switch (name) {
      case "Removed" -> PreTokenizer.Behavior.REMOVED;
      case "Isolated" -> PreTokenizer.Behavior.ISOLATED;
      case "MergedWithPrevious" -> PreTokenizer.Behavior.MERGED_WITH_PREVIOUS;
      case "MergedWithNext" -> PreTokenizer.Behavior.MERGED_WITH_NEXT;
      case "Contiguous" -> PreTokenizer.Behavior.CONTIGUOUS;
      default -> throw error("pre_tokenizer.behavior: not supported, actual=" + name);
    };
  }

  private void metaspace(List<PreTokenizer> steps, Map<String, Object> spec) {
    if (!steps.isEmpty()) {
      throw error("pre_tokenizer Metaspace: supported as first step");
    }
    String mark = string(spec, "replacement", "pre_tokenizer.Metaspace");
    if (!mark.equals(Character.toString(Normalizer.SPACE_MARK))) {
      throw error("pre_tokenizer.Metaspace.replacement: not supported, actual=" + mark);
    }
    String scheme = prependScheme(spec);
    preNormalizers.add((text, first) -> {
      String marked = text.replace(' ', Normalizer.SPACE_MARK);
      boolean prepend = scheme.equals("always") || scheme.equals("first") && first;
      return prepend && !marked.startsWith(mark) ? mark + marked : marked;
    });
    if (bool(spec, "split", true)) {
      steps.add(PreTokenizer.splitLiteral(mark, PreTokenizer.Behavior.MERGED_WITH_NEXT, false));
    }
  }

  private static String prependScheme(Map<String, Object> spec) {
    if (spec.get("prepend_scheme") instanceof String scheme) {
      return scheme;
    }
    return bool(spec, "add_prefix_space", true) ? "always" : "never";
  }

  // Decoder

  /**
   * How tokens become bytes.
   *
   * @param byteLevel tokens spell bytes
   * @param strip one space at the beginning is dropped
   */
  private record Decoding(boolean byteLevel, boolean strip) {
    byte[][] bytes(byte[][] utf8, Vocabulary.Kind[] kinds) {
      if (!byteLevel) {
        return Pieces.of(utf8, kinds).bytes();
      }
      byte[][] bytes = new byte[utf8.length][];
      for (int i = 0; i < bytes.length; i++) {
        byte[] spelled = kinds[i] == Vocabulary.Kind.CONTROL ? null : ByteAlphabet.bytes(utf8[i]);
        bytes[i] = spelled == null ? utf8[i] : spelled;
      }
      return bytes;
    }
  }

  private Decoding decoding(Object value, boolean byteLevel) {
    boolean strip = isWordPiece();
    boolean bytes = byteLevel;
    if (value != null) {
      Map<String, Object> spec = object(value, "decoder");
      List<Map<String, Object>> specs =
          "Sequence".equals(spec.get("type"))
              ? objects(spec.get("decoders"), "decoder.decoders")
              : List.of(spec);
      for (Map<String, Object> step : specs) {
        String type = string(step, "type", "decoder");
        switch (type) {
          case "ByteLevel" -> bytes = true;
          case "ByteFallback", "Fuse" -> {}
          case "WordPiece" -> strip = true;
          case "Metaspace" -> strip = !prependScheme(step).equals("never");
          case "Replace" -> {
            Map<String, Object> pattern = object(step.get("pattern"), "decoder.pattern");
            if (!Character.toString(Normalizer.SPACE_MARK).equals(pattern.get("String"))
                || !" ".equals(step.get("content"))) {
              throw error("decoder.Replace: only of U+2581 by a space, actual=" + step);
            }
          }
          case "Strip" -> {
            if (!" ".equals(step.get("content"))
                || !Long.valueOf(1).equals(step.get("start"))
                || !Long.valueOf(0).equals(step.get("stop"))) {
              throw error("decoder.Strip: only of one leading space, actual=" + step);
            }
            strip = true;
          }
          default -> throw error("decoder.type: not supported, actual=" + type);
        }
      }
    }
    return new Decoding(bytes, strip);
  }
}
