package io.fletch.runtime.arch;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.quant.Metadata;
import io.fletch.quant.WeightFileException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Metadata made of a map, for tests of what is read from it. */
public final class MapMetadata implements Metadata {
  private final Map<String, Object> entries = new LinkedHashMap<>();

  static MapMetadata empty() {
    return new MapMetadata();
  }

  /** The content of a configuration among the test resources. */
  static MapMetadata config(String name) throws IOException {
    try (InputStream in = MapMetadata.class.getResourceAsStream("configs/" + name + ".json")) {
      return of(JSON.std.mapFrom(in.readAllBytes()));
    }
  }

  /** Nested maps as keys with dots. */
  public static MapMetadata of(Map<String, ?> content) {
    MapMetadata out = new MapMetadata();
    out.flatten("", content);
    return out;
  }

  private void flatten(String prefix, Map<String, ?> map) {
    map.forEach((key, value) -> {
      switch (value) {
        case null -> {}
        case Map<?, ?> inner -> {
          Map<String, Object> named = new LinkedHashMap<>();
          inner.forEach((k, v) -> named.put((String) k, v));
          flatten(prefix + key + ".", named);
        }
        default -> with(prefix + key, value);
      }
    });
  }

  MapMetadata with(String key, Object value) {
    entries.put(key, value instanceof Integer i ? (Object) i.longValue() : value);
    return this;
  }

  MapMetadata without(String key) {
    entries.remove(key);
    return this;
  }

  @Override
  public boolean has(String key) {
    return entries.containsKey(key);
  }

  @Override
  public Map<String, Object> entries() {
    return entries;
  }

  private <T> Optional<T> as(String key, Class<T> type) {
    Object value = entries.get(key);
    if (value != null && !type.isInstance(value)) {
      throw new WeightFileException(key + ": expected=" + type + " actual=" + value.getClass());
    }
    return Optional.ofNullable(type.cast(value));
  }

  @Override
  public Optional<String> string(String key) {
    return as(key, String.class);
  }

  @Override
  public Optional<Long> integer(String key) {
    return as(key, Long.class);
  }

  @Override
  public Optional<Double> number(String key) {
    return as(key, Number.class).map(Number::doubleValue);
  }

  @Override
  public Optional<Boolean> bool(String key) {
    return as(key, Boolean.class);
  }

  private List<?> list(String key) {
    Object value = entries.get(key);
    return value instanceof List<?> l ? l : List.of(value);
  }

  @Override
  public Optional<long[]> integers(String key) {
    return has(key)
        ? Optional.of(list(key).stream().mapToLong(v -> ((Number) v).longValue()).toArray())
        : Optional.empty();
  }

  @Override
  public Optional<float[]> floats(String key) {
    if (!has(key)) {
      return Optional.empty();
    }
    float[] out = new float[list(key).size()];
    for (int i = 0; i < out.length; i++) {
      out[i] = ((Number) list(key).get(i)).floatValue();
    }
    return Optional.of(out);
  }

  @Override
  public Optional<String[]> strings(String key) {
    return has(key)
        ? Optional.of(list(key).stream().map(String.class::cast).toArray(String[]::new))
        : Optional.empty();
  }

  @Override
  public Optional<byte[][]> bytes(String key) {
    return strings(key)
        .map(s -> {
          byte[][] out = new byte[s.length][];
          for (int i = 0; i < s.length; i++) {
            out[i] = s[i].getBytes(StandardCharsets.UTF_8);
          }
          return out;
        });
  }
}
