package io.fletch.quant;

import java.util.Collections;
import java.util.Map;

/** The flattened content of a {@code config.json}. Immutable. */
final class JsonMetadata extends TypedMetadata {
  private final Map<String, Object> entries;

  JsonMetadata(Object source, Map<String, Object> entries) {
    super(source);
    this.entries = Collections.unmodifiableMap(entries);
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
  Object value(String key) {
    return entries.get(key);
  }
}
