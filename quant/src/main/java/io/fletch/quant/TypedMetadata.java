package io.fletch.quant;

import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Optional;

/** The type checks of {@link Metadata}, over values of the kinds that {@link #entries} lists. */
abstract class TypedMetadata implements Metadata {
  private final Object source;

  /**
   * Creates the metadata of a file.
   *
   * @param source names the file in messages
   */
  TypedMetadata(Object source) {
    this.source = source;
  }

  /** The value of a key, or null. */
  abstract Object value(String key);

  /** What to call the type of the value of an existing key. */
  String typeName(String key) {
    return kind(value(key));
  }

  @Override
  public final Optional<String> string(String key) {
    return scalar(key, String.class, "string");
  }

  @Override
  public final Optional<Long> integer(String key) {
    return scalar(key, Long.class, "integer within 64 bits");
  }

  @Override
  public final Optional<Double> number(String key) {
    return scalar(key, Number.class, "number").map(Number::doubleValue);
  }

  @Override
  public final Optional<Boolean> bool(String key) {
    return scalar(key, Boolean.class, "bool");
  }

  @Override
  public Optional<long[]> integers(String key) {
    Object value = value(key);
    return switch (value) {
      case null -> Optional.empty();
      case Long one -> Optional.of(new long[] {one});
      case List<?> list -> {
        long[] result = new long[list.size()];
        for (int i = 0; i < result.length; i++) {
          result[i] = element(key, list, i, Long.class, "integers");
        }
        yield Optional.of(result);
      }
      default -> throw mismatch(key, "array of integers", typeName(key));
    };
  }

  @Override
  public Optional<float[]> floats(String key) {
    Object value = value(key);
    return switch (value) {
      case null -> Optional.empty();
      case Number one -> Optional.of(new float[] {one.floatValue()});
      case List<?> list -> {
        float[] result = new float[list.size()];
        for (int i = 0; i < result.length; i++) {
          result[i] = element(key, list, i, Number.class, "numbers").floatValue();
        }
        yield Optional.of(result);
      }
      default -> throw mismatch(key, "array of numbers", typeName(key));
    };
  }

  @Override
  public Optional<String[]> strings(String key) {
    Object value = value(key);
    if (value == null) {
      return Optional.empty();
    }
    if (!(value instanceof List<?> list)) {
      throw mismatch(key, "array of strings", typeName(key));
    }
    String[] result = new String[list.size()];
    for (int i = 0; i < result.length; i++) {
      result[i] = element(key, list, i, String.class, "strings");
    }
    return Optional.of(result);
  }

  @Override
  public Optional<byte[][]> bytes(String key) {
    return strings(key)
        .map(strings -> {
          byte[][] result = new byte[strings.length][];
          for (int i = 0; i < result.length; i++) {
            result[i] = strings[i].getBytes(StandardCharsets.UTF_8);
          }
          return result;
        });
  }

  final WeightFileException mismatch(String key, String wanted, String actual) {
    return new WeightFileException(
        source + ": metadata key " + key + ": expected=" + wanted + " actual=" + actual);
  }

  private <T> Optional<T> scalar(String key, Class<T> type, String wanted) {
    Object value = value(key);
    if (value != null && !type.isInstance(value)) {
      throw mismatch(key, wanted, typeName(key));
    }
    return Optional.ofNullable(type.cast(value));
  }

  private <T> T element(String key, List<?> list, int index, Class<T> type, String wanted) {
    Object value = list.get(index);
    if (!type.isInstance(value)) {
      throw mismatch(key, "array of " + wanted, kind(value) + " at index " + index);
    }
    return type.cast(value);
  }

  private static String kind(Object value) {
    return switch (value) {
      case null -> "null";
      case String _ -> "string";
      case Long _ -> "integer";
      case BigInteger _ -> "integer beyond 64 bits";
      case Number _ -> "number";
      case Boolean _ -> "bool";
      case List<?> _ -> "array";
      default -> "object";
    };
  }
}
