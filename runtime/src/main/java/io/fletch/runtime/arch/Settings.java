package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.quant.Metadata;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Optional;
import java.util.Set;

/**
 * Range-checked reading of metadata below a key prefix; remembers which keys were asked for, so
 * that a reader can refuse those it does not know.
 */
final class Settings {
  private final Metadata metadata;
  private final String prefix;
  private final Set<String> asked = new HashSet<>();

  Settings(Metadata metadata, String prefix) {
    this.metadata = metadata;
    this.prefix = prefix;
  }

  Metadata metadata() {
    return metadata;
  }

  String key(String key) {
    return prefix + key;
  }

  boolean has(String key) {
    asked.add(key(key));
    return metadata.has(key(key));
  }

  boolean wasAsked(String fullKey) {
    return asked.contains(fullKey);
  }

  int integer(String key, int min, int max) {
    return optionalInteger(key, min, max)
        .orElseThrow(() -> new FletchException(key(key) + ": missing"));
  }

  int integer(String key, int fallback, int min, int max) {
    return optionalInteger(key, min, max).orElse(fallback);
  }

  Optional<Integer> optionalInteger(String key, int min, int max) {
    asked.add(key(key));
    return metadata.integer(key(key)).map(v -> checkRange(key, v, min, max));
  }

  /** One value per layer: an array of {@code layers} entries, or one value for all. */
  int[] perLayer(String key, int layers, int min, int max) {
    asked.add(key(key));
    long[] values =
        metadata.integers(key(key)).orElseThrow(() -> new FletchException(key(key) + ": missing"));
    int[] out = new int[layers];
    if (values.length == 1) {
      Arrays.fill(out, checkRange(key, values[0], min, max));
      return out;
    }
    if (values.length != layers) {
      throw new FletchException(
          key(key) + ": expected=" + layers + " values, one per layer, actual=" + values.length);
    }
    for (int i = 0; i < layers; i++) {
      out[i] = checkRange(key + "[" + i + "]", values[i], min, max);
    }
    return out;
  }

  int[] perLayer(String key, int[] fallback, int min, int max) {
    return has(key) ? perLayer(key, fallback.length, min, max) : fallback;
  }

  double number(String key) {
    return optionalNumber(key).orElseThrow(() -> new FletchException(key(key) + ": missing"));
  }

  double number(String key, double fallback) {
    return optionalNumber(key).orElse(fallback);
  }

  Optional<Double> optionalNumber(String key) {
    asked.add(key(key));
    Optional<Double> value = metadata.number(key(key));
    value.ifPresent(v -> {
      if (!Double.isFinite(v)) {
        throw new FletchException(key(key) + ": expected=a finite number actual=" + v);
      }
    });
    return value;
  }

  boolean bool(String key, boolean fallback) {
    asked.add(key(key));
    return metadata.bool(key(key)).orElse(fallback);
  }

  Optional<String> string(String key) {
    asked.add(key(key));
    return metadata.string(key(key));
  }

  Optional<float[]> floats(String key) {
    asked.add(key(key));
    return metadata.floats(key(key));
  }

  Optional<String[]> strings(String key) {
    asked.add(key(key));
    return metadata.strings(key(key));
  }

  /** Refuses a setting unless it is absent or has the only supported value. */
  void requireBool(String key, boolean supported) {
    boolean actual = bool(key, supported);
    if (actual != supported) {
      throw new FletchException(key(key) + ": not supported: " + actual);
    }
  }

  /** Refuses a setting unless it is absent or has the only supported value. */
  void requireString(String key, String supported) {
    String actual = string(key).orElse(supported);
    if (!actual.equals(supported)) {
      throw new FletchException(
          key(key) + ": not supported: \"" + actual + "\", supported=\"" + supported + "\"");
    }
  }

  private int checkRange(String key, long value, int min, int max) {
    if (value < min || value > max) {
      throw new FletchException(key(key) + ": expected=[" + min + ", " + max + "] actual=" + value);
    }
    return (int) value;
  }
}
