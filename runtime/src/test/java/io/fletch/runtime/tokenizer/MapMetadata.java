package io.fletch.runtime.tokenizer;

import io.fletch.quant.Metadata;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Metadata made by a test. */
final class MapMetadata implements Metadata {
  private final Map<String, Object> entries = new LinkedHashMap<>();

  MapMetadata with(String key, Object value) {
    entries.put(key, value);
    return this;
  }

  /** A byte-level vocabulary: 256 bytes, "he", "llo" and its steps, two control tokens. */
  static MapMetadata small() {
    String[] tokens = new String[262];
    for (int b = 0; b < 256; b++) {
      tokens[b] = Character.toString(ByteAlphabet.character(b));
    }
    tokens[256] = "he";
    tokens[257] = "lo";
    tokens[258] = "llo";
    tokens[259] = "<s>";
    tokens[260] = "<s>>";
    tokens[261] = "<word>";
    long[] types = new long[262];
    Arrays.fill(types, 1);
    types[259] = 3;
    types[260] = 3;
    types[261] = 4;
    return new MapMetadata()
        .with("tokenizer.ggml.model", "gpt2")
        .with("tokenizer.ggml.pre", "qwen2")
        .with("tokenizer.ggml.tokens", tokens)
        .with("tokenizer.ggml.token_type", types)
        .with("tokenizer.ggml.merges", new String[] {"h e", "l o", "l lo"})
        .with("tokenizer.ggml.bos_token_id", 259L);
  }

  private <T> Optional<T> get(String key, Class<T> type) {
    return Optional.ofNullable(entries.get(key)).map(type::cast);
  }

  @Override
  public boolean has(String key) {
    return entries.containsKey(key);
  }

  @Override
  public Map<String, Object> entries() {
    return entries;
  }

  @Override
  public Optional<String> string(String key) {
    return get(key, String.class);
  }

  @Override
  public Optional<Long> integer(String key) {
    return get(key, Long.class);
  }

  @Override
  public Optional<Double> number(String key) {
    return get(key, Double.class);
  }

  @Override
  public Optional<Boolean> bool(String key) {
    return get(key, Boolean.class);
  }

  @Override
  public Optional<long[]> integers(String key) {
    return get(key, long[].class);
  }

  @Override
  public Optional<float[]> floats(String key) {
    return get(key, float[].class);
  }

  @Override
  public Optional<String[]> strings(String key) {
    return get(key, String[].class);
  }

  @Override
  public Optional<byte[][]> bytes(String key) {
    return strings(key)
        .map(strings ->
            Arrays.stream(strings)
                .map(text -> text.getBytes(StandardCharsets.UTF_8))
                .toArray(byte[][]::new));
  }

  @Override
  public String toString() {
    return List.copyOf(entries.keySet()).toString();
  }
}
