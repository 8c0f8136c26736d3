package io.fletch.runtime.convert;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.Tokenizer;
import io.fletch.quant.GgufType;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.Metadata;
import io.fletch.runtime.tokenizer.Tokenizers;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Byte-level BPE tokenizers between {@code tokenizer.json} and the keys of GGUF, and BERT's
 * WordPiece to GGUF. Other kinds are refused: their data do not survive the way.
 */
final class TokenizerConversion {
  private static final String PREFIX = "tokenizer.ggml.";
  private static final long NORMAL = 1;
  private static final long CONTROL = 3;
  private static final long USER_DEFINED = 4;
  private static final long UNUSED = 5;

  /** Pre-tokenizers that both sides can say: the name of GGUF, and the regular expression. */
  private static final Map<String, String> PATTERNS =
      Map.of(
          "qwen2",
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
              + " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          "llama-bpe",
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
              + " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+");

  private TokenizerConversion() {}

  private static Map<String, Object> read(Path file) {
    try {
      return JSON.std.mapFrom(file.toFile());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** The tokenizer of a folder as key/values. */
  static void toGguf(Path model, int rows, GgufWriter writer, List<String> notes) {
    Path folder = Files.isDirectory(model) ? model : model.toAbsolutePath().getParent();
    Path file = folder.resolve("tokenizer.json");
    if (!Files.isRegularFile(file)) {
      throw new FletchException(file + ": expected=present actual=absent");
    }
    Map<String, Object> root = read(file);
    Map<?, ?> bpe = map(root.get("model"), "model");
    if ("WordPiece".equals(bpe.get("type"))) {
      wordPiece(root, bpe, Tokenizers.fromFolder(folder), rows, writer);
      return;
    }
    if (!"BPE".equals(bpe.get("type"))
        || Boolean.TRUE.equals(bpe.get("byte_fallback"))
        || root.get("normalizer") != null) {
      throw refused(
          "type="
              + bpe.get("type")
              + " byte_fallback="
              + bpe.get("byte_fallback")
              + " normalizer="
              + root.get("normalizer"));
    }
    String pre = preTokenizer(root.get("pre_tokenizer"));
    String[] tokens = new String[rows];
    long[] types = new long[rows];
    map(bpe.get("vocab"), "model.vocab")
        .forEach((token, id) -> set(tokens, types, id, (String) token, NORMAL));
    if (root.get("added_tokens") instanceof List<?> added) {
      for (Object entry : added) {
        Map<?, ?> token = map(entry, "added_tokens");
        boolean special = Boolean.TRUE.equals(token.get("special"));
        set(
            tokens,
            types,
            token.get("id"),
            (String) token.get("content"),
            special ? CONTROL : USER_DEFINED);
      }
    }
    int padded = 0;
    for (int i = 0; i < rows; i++) {
      if (tokens[i] == null) {
        tokens[i] = "[PAD" + i + "]";
        types[i] = UNUSED;
        padded++;
      }
    }
    if (padded > 0) {
      notes.add(padded + " rows of the embedding have no token: they are named [PADn]");
    }
    List<String> merges = new ArrayList<>();
    for (Object merge : (List<?>) bpe.get("merges")) {
      merges.add(merge instanceof List<?> pair ? pair.get(0) + " " + pair.get(1) : (String) merge);
    }
    writer.put(PREFIX + "model", "gpt2");
    writer.put(PREFIX + "pre", pre);
    writer.putArray(PREFIX + "tokens", GgufType.STRING, Arrays.asList(tokens));
    writer.putArray(PREFIX + "token_type", GgufType.INT32, Arrays.stream(types).boxed().toList());
    writer.putArray(PREFIX + "merges", GgufType.STRING, merges);
    Path settings = folder.resolve("tokenizer_config.json");
    Map<String, Object> config = Files.isRegularFile(settings) ? read(settings) : Map.of();
    for (String name : List.of("bos", "eos", "pad", "mask", "unk")) {
      String key =
          switch (name) {
            case "pad" -> "padding";
            case "unk" -> "unknown";
            default -> name;
          };
      content(config.get(name + "_token"))
          .ifPresent(text -> {
            int id = Arrays.asList(tokens).indexOf(text);
            if (id >= 0) {
              writer.put(PREFIX + key + "_token_id", id);
            }
          });
    }
    writer.put(PREFIX + "add_bos_token", Boolean.TRUE.equals(config.get("add_bos_token")));
    end(Tokenizers.fromFolder(folder), writer);
    Path template = folder.resolve("chat_template.jinja");
    try {
      if (Files.isRegularFile(template)) {
        writer.put("tokenizer.chat_template", Files.readString(template));
      } else if (config.get("chat_template") instanceof String text) {
        writer.put("tokenizer.chat_template", text);
      } else {
        notes.add("no chat template was found");
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** A token that the tokenizer adds after every text, as those of embedding models do. */
  private static void end(Tokenizer tokenizer, GgufWriter writer) {
    int[] plain = tokenizer.encode("a", false, true);
    int[] whole = tokenizer.encode("a");
    int last = plain.length == 0 ? -1 : plain[plain.length - 1];
    int after = 0;
    while (after < whole.length && whole[whole.length - 1 - after] != last) {
      after++;
    }
    if (after == 0) {
      return;
    }
    if (after > 1) {
      throw refused(after + " tokens after every text");
    }
    writer.put(PREFIX + "eos_token_id", whole[whole.length - 1]);
    writer.put(PREFIX + "add_eos_token", true);
  }

  /** As llama.cpp reads it: words begin with U+2581, what goes on with one lacks its mark. */
  private static void wordPiece(
      Map<String, Object> root, Map<?, ?> model, Tokenizer tokenizer, int rows, GgufWriter writer) {
    Map<?, ?> normalizer = map(root.get("normalizer"), "normalizer");
    Map<?, ?> splits = map(root.get("pre_tokenizer"), "pre_tokenizer");
    boolean lowercase = !Boolean.FALSE.equals(normalizer.get("lowercase"));
    Object accents = normalizer.get("strip_accents");
    Object longest = model.get("max_input_chars_per_word");
    if (!"BertNormalizer".equals(normalizer.get("type"))
        || !"BertPreTokenizer".equals(splits.get("type"))
        || accents instanceof Boolean strips && strips != lowercase
        || Boolean.FALSE.equals(normalizer.get("clean_text"))
        || Boolean.FALSE.equals(normalizer.get("handle_chinese_chars"))
        || !"##".equals(model.get("continuing_subword_prefix"))
        || longest != null && !longest.equals(100)) {
      throw refused(
          "WordPiece with normalizer="
              + normalizer
              + " pre_tokenizer="
              + splits
              + " max_input_chars_per_word="
              + longest);
    }
    String[] tokens = new String[rows];
    long[] types = new long[rows];
    map(model.get("vocab"), "model.vocab")
        .forEach((token, id) -> set(tokens, types, id, (String) token, NORMAL));
    if (root.get("added_tokens") instanceof List<?> added) {
      for (Object entry : added) {
        Map<?, ?> token = map(entry, "added_tokens");
        set(tokens, types, token.get("id"), (String) token.get("content"), CONTROL);
      }
    }
    boolean isCased = false;
    for (int i = 0; i < rows; i++) {
      String token = tokens[i] == null ? "[PAD" + i + "]" : tokens[i];
      boolean isBracketed = token.startsWith("[") && token.endsWith("]");
      if (types[i] == NORMAL && !isBracketed) {
        isCased |= token.chars().anyMatch(c -> c >= 'A' && c <= 'Z');
        token = token.startsWith("##") ? token.substring(2) : "\u2581" + token;
      }
      types[i] = tokens[i] == null ? UNUSED : types[i];
      tokens[i] = token;
    }
    if (isCased == lowercase) {
      throw refused(
          "a vocabulary with capital letters="
              + isCased
              + " and lowercase="
              + lowercase
              + ": GGUF keeps the vocabulary alone");
    }
    writer.put(PREFIX + "model", "bert");
    writer.put(PREFIX + "token_type_count", 2);
    writer.putArray(PREFIX + "tokens", GgufType.STRING, Arrays.asList(tokens));
    writer.putArray(PREFIX + "token_type", GgufType.INT32, Arrays.stream(types).boxed().toList());
    int[] around = tokenizer.encode("");
    if (around.length != 2) {
      throw refused("tokens around a text: expected=2 actual=" + around.length);
    }
    writer.put(PREFIX + "cls_token_id", around[0]);
    writer.put(PREFIX + "bos_token_id", around[0]);
    writer.put(PREFIX + "seperator_token_id", around[1]);
    Map.of("unknown", String.valueOf(model.get("unk_token")), "padding", "[PAD]", "mask", "[MASK]")
        .forEach((key, token) ->
            tokenizer.id(token).ifPresent(id -> writer.put(PREFIX + key + "_token_id", id)));
  }

  private static Optional<String> content(Object token) {
    return switch (token) {
      case String text -> Optional.of(text);
      case Map<?, ?> map when map.get("content") instanceof String text -> Optional.of(text);
      case null, default -> Optional.empty();
    };
  }

  private static void set(String[] tokens, long[] types, Object id, String token, long type) {
    if (!(id instanceof Integer at) || at < 0 || at >= tokens.length) {
      throw new FletchException(
          "tokenizer.json: token "
              + token
              + ": id: expected=0.."
              + (tokens.length - 1)
              + " (rows of the embedding) actual="
              + id);
    }
    tokens[at] = token;
    types[at] = type;
  }

  private static String preTokenizer(Object spec) {
    String found = null;
    boolean bytes = false;
    Map<?, ?> top = map(spec, "pre_tokenizer");
    List<?> steps =
        "Sequence".equals(top.get("type")) ? (List<?>) top.get("pretokenizers") : List.of(top);
    for (Object step : steps) {
      Map<?, ?> s = map(step, "pre_tokenizer");
      if ("Split".equals(s.get("type")) && s.get("pattern") instanceof Map<?, ?> pattern) {
        Object regex = pattern.get("Regex");
        found =
            PATTERNS.entrySet().stream()
                .filter(e -> e.getValue().equals(regex))
                .map(Map.Entry::getKey)
                .findFirst()
                .orElseThrow(() -> refused("pre_tokenizer pattern " + regex));
      } else if ("ByteLevel".equals(s.get("type"))) {
        bytes = true;
        if (found == null && !Boolean.FALSE.equals(s.get("use_regex"))) {
          found = "gpt-2";
        }
        if (Boolean.TRUE.equals(s.get("add_prefix_space"))) {
          throw refused("add_prefix_space=true");
        }
      } else {
        throw refused("pre_tokenizer " + s.get("type"));
      }
    }
    if (!bytes || found == null) {
      throw refused("pre_tokenizer without ByteLevel");
    }
    return found;
  }

  private static Map<?, ?> map(Object value, String what) {
    if (value instanceof Map<?, ?> map) {
      return map;
    }
    throw new FletchException("tokenizer.json: " + what + ": expected=an object actual=" + value);
  }

  private static FletchException refused(String what) {
    return new FletchException(
        "tokenizer: only byte-level BPE with a known pre-tokenizer, and BERT's WordPiece to GGUF,"
            + " can be converted: "
            + what);
  }

  /** Key/values as {@code tokenizer.json} and {@code tokenizer_config.json}. */
  static void toHuggingFace(Metadata metadata, Map<String, String> files, List<String> notes) {
    String model = metadata.string(PREFIX + "model").orElse("none");
    String pre = metadata.string(PREFIX + "pre").orElse("default");
    if (!model.equals("gpt2") || !PATTERNS.containsKey(pre) && !pre.equals("gpt-2")) {
      throw refused("tokenizer.ggml.model=" + model + " pre=" + pre);
    }
    String[] tokens = metadata.strings(PREFIX + "tokens").orElse(new String[0]);
    long[] types = metadata.integers(PREFIX + "token_type").orElse(new long[tokens.length]);
    Map<String, Object> vocabulary = new LinkedHashMap<>();
    List<Object> added = new ArrayList<>();
    for (int i = 0; i < tokens.length; i++) {
      boolean special = types[i] == CONTROL;
      if (special || types[i] == USER_DEFINED) {
        Map<String, Object> entry = new LinkedHashMap<>();
        entry.put("id", i);
        entry.put("content", tokens[i]);
        entry.put("single_word", false);
        entry.put("lstrip", false);
        entry.put("rstrip", false);
        entry.put("normalized", false);
        entry.put("special", special);
        added.add(entry);
      } else if (types[i] != UNUSED) {
        vocabulary.put(tokens[i], i);
      }
    }
    Map<String, Object> bytes = new LinkedHashMap<>();
    bytes.put("type", "ByteLevel");
    bytes.put("add_prefix_space", false);
    bytes.put("trim_offsets", false);
    bytes.put("use_regex", pre.equals("gpt-2"));
    List<Object> steps = new ArrayList<>();
    if (!pre.equals("gpt-2")) {
      Map<String, Object> split = new LinkedHashMap<>();
      split.put("type", "Split");
      split.put("pattern", Map.of("Regex", PATTERNS.get(pre)));
      split.put("behavior", "Isolated");
      split.put("invert", false);
      steps.add(split);
    }
    steps.add(bytes);
    Map<String, Object> bpe = new LinkedHashMap<>();
    bpe.put("type", "BPE");
    bpe.put("dropout", null);
    bpe.put("unk_token", null);
    bpe.put("continuing_subword_prefix", "");
    bpe.put("end_of_word_suffix", "");
    bpe.put("fuse_unk", false);
    bpe.put("byte_fallback", false);
    bpe.put("ignore_merges", pre.equals("llama-bpe"));
    bpe.put("vocab", vocabulary);
    bpe.put("merges", List.of(metadata.strings(PREFIX + "merges").orElse(new String[0])));
    Map<String, Object> root = new LinkedHashMap<>();
    root.put("version", "1.0");
    root.put("truncation", null);
    root.put("padding", null);
    root.put("added_tokens", added);
    root.put("normalizer", null);
    Map<String, Object> sequence = new LinkedHashMap<>();
    sequence.put("type", "Sequence");
    sequence.put("pretokenizers", steps);
    root.put("pre_tokenizer", sequence);
    root.put("post_processor", null);
    root.put("decoder", bytes);
    root.put("model", bpe);
    files.put("tokenizer.json", ModelConversion.json(root));
    Map<String, Object> config = new LinkedHashMap<>();
    config.put("tokenizer_class", "PreTrainedTokenizerFast");
    for (String name : List.of("bos", "eos", "pad", "mask", "unk")) {
      String key =
          switch (name) {
            case "pad" -> "padding";
            case "unk" -> "unknown";
            default -> name;
          };
      metadata
          .integer(PREFIX + key + "_token_id")
          .filter(id -> id >= 0 && id < tokens.length)
          .ifPresent(id -> config.put(name + "_token", tokens[(int) (long) id]));
    }
    boolean addsBos = metadata.bool(PREFIX + "add_bos_token").orElse(pre.equals("llama-bpe"));
    config.put("add_bos_token", addsBos);
    if (addsBos) {
      notes.add(
          "the token that starts a text is written as add_bos_token, not as a post-processor");
    }
    metadata
        .string("tokenizer.chat_template")
        .ifPresent(template -> config.put("chat_template", template));
    files.put("tokenizer_config.json", ModelConversion.json(config));
  }
}
