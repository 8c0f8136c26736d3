package io.fletch.quant;

import java.util.Map;
import java.util.Optional;

/**
 * Typed access to the key/values of a weight file. Keys of JSON objects inside objects are joined
 * with a dot ({@code rope_scaling.factor}). A value of another type than asked for is a {@link
 * WeightFileException} naming key, wanted and actual type.
 */
public interface Metadata {
  /** Whether the key exists. */
  boolean has(String key);

  /**
   * All entries in file order; values are Boolean, Long (BigInteger for integers beyond 64 bits),
   * Double, String, or arrays boxed as {@link java.util.List}.
   */
  Map<String, Object> entries();

  /** A string. */
  Optional<String> string(String key);

  /** An integer of any width. */
  Optional<Long> integer(String key);

  /** A number of any kind as double. */
  Optional<Double> number(String key);

  /** A boolean. */
  Optional<Boolean> bool(String key);

  /** An array of integers; a scalar is an array of one. */
  Optional<long[]> integers(String key);

  /** An array of numbers. */
  Optional<float[]> floats(String key);

  /** An array of strings. Bytes that are not UTF-8 are replaced; see {@link #bytes}. */
  Optional<String[]> strings(String key);

  /** An array of strings as raw bytes. */
  Optional<byte[][]> bytes(String key);
}
