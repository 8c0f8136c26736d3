package io.fletch.quant;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Strict JSON: valid UTF-8, no key twice in an object, bounded depth. What is wrong with a text is
 * a {@link WeightFileException}. Stateless.
 */
final class Json {
  private static final int MAX_DEPTH = 64;

  private static final JsonFactory FACTORY =
      JsonFactory.builder()
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .streamReadConstraints(
              StreamReadConstraints.builder()
                  .maxNestingDepth(MAX_DEPTH)
                  .maxStringLength(Integer.MAX_VALUE)
                  .build())
          .build();

  /** Python writes NaN and Infinity, which are not JSON, into configurations. */
  private static final JsonFactory PYTHON =
      FACTORY.rebuild().enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS).build();

  private Json() {}

  /** Does something with the tokens of a text. */
  interface Reader<T> {
    T read(JsonParser parser) throws IOException;
  }

  /**
   * Parses one JSON object and nothing after it.
   *
   * @param source names the text in messages
   * @param reader called with the parser at the opening brace; returns with it at the closing one
   */
  static <T> T object(Object source, byte[] utf8, Reader<T> reader) {
    return object(FACTORY, source, utf8, reader);
  }

  private static <T> T object(JsonFactory factory, Object source, byte[] utf8, Reader<T> reader) {
    try {
      // Decoded here since the parser would guess other encodings and let some bad bytes pass.
      String text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(utf8)).toString();
      try (JsonParser parser = factory.createParser(text)) {
        if (parser.nextToken() != JsonToken.START_OBJECT) {
          throw fail(source, "JSON", "an object", parser.currentToken());
        }
        T result = reader.read(parser);
        if (parser.nextToken() != null) {
          throw fail(source, "JSON", "nothing after the object", parser.currentToken());
        }
        return result;
      }
    } catch (CharacterCodingException e) {
      throw fail(source, "JSON", "valid UTF-8", "malformed bytes");
    } catch (IOException e) {
      throw new WeightFileException(source + ": invalid JSON: " + e.getMessage(), e);
    }
  }

  /**
   * The content of a small file.
   *
   * @throws WeightFileException if it is larger than {@code maxBytes}
   * @throws UncheckedIOException if it cannot be read
   */
  static byte[] bytes(Path file, int maxBytes) {
    try {
      long size = Files.size(file);
      if (size > maxBytes) {
        throw fail(file, "file size", "at most " + maxBytes, size);
      }
      return Files.readAllBytes(file);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /**
   * The leaves of an object: keys of objects inside objects are joined with a dot, nulls are left
   * out, arrays become lists (in which objects stay maps).
   *
   * @throws WeightFileException also if two keys become equal by joining
   */
  static Map<String, Object> flatten(Path file, byte[] utf8) {
    return object(
        PYTHON,
        file,
        utf8,
        parser -> {
          Map<String, Object> result = new LinkedHashMap<>();
          flatten(file, parser, "", result);
          return result;
        });
  }

  private static void flatten(Path file, JsonParser p, String prefix, Map<String, Object> to)
      throws IOException {
    while (p.nextToken() != JsonToken.END_OBJECT) {
      String key = prefix + p.currentName();
      if (p.nextToken() == JsonToken.START_OBJECT) {
        flatten(file, p, key + ".", to);
      } else {
        Object value = value(p);
        if (value != null && to.putIfAbsent(key, value) != null) {
          throw fail(file, "key " + key, "each key once", "a second one, by joining with dots");
        }
      }
    }
  }

  private static Object value(JsonParser p) throws IOException {
    return switch (p.currentToken()) {
      case VALUE_STRING -> p.getText();
      case VALUE_TRUE -> true;
      case VALUE_FALSE -> false;
      case VALUE_NULL -> null;
      case VALUE_NUMBER_FLOAT -> p.getDoubleValue();
      case VALUE_NUMBER_INT ->
          p.getNumberType() == JsonParser.NumberType.BIG_INTEGER
              ? p.getBigIntegerValue()
              : (Object) p.getLongValue();
      case START_ARRAY -> {
        List<Object> list = new ArrayList<>();
        while (p.nextToken() != JsonToken.END_ARRAY) {
          list.add(value(p));
        }
        yield list;
      }
      case START_OBJECT -> {
        Map<String, Object> map = new LinkedHashMap<>();
        while (p.nextToken() != JsonToken.END_OBJECT) {
          String key = p.currentName();
          p.nextToken();
          map.put(key, value(p));
        }
        yield map;
      }
      default -> throw new IOException("unexpected " + p.currentToken());
    };
  }

  static WeightFileException fail(Object source, String field, Object expected, Object actual) {
    return new WeightFileException(
        source + ": " + field + ": expected=" + expected + " actual=" + actual);
  }
}
