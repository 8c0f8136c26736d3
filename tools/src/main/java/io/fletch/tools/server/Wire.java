package io.fletch.tools.server;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A JSON object of a request with checked access: what is of the wrong type or out of range is an
 * {@link ApiException} that names the field. Null counts as absent, as clients send it.
 */
record Wire(Map<String, Object> map, String path) {
  private static final JSON WITH_NULLS = JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES);

  /** A value as JSON, nulls included. */
  static byte[] bytes(Object value) {
    try {
      return WITH_NULLS.asString(value).getBytes(StandardCharsets.UTF_8);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static Wire parse(byte[] body) {
    return of(any(body), "");
  }

  /** A body that is an array. */
  static List<?> parseList(byte[] body) {
    Object value = any(body);
    if (!(value instanceof List<?> list)) {
      throw ApiException.invalid(null, "the body: expected=an array actual=" + kind(value));
    }
    return list;
  }

  private static Object any(byte[] body) {
    try (JsonParser parser = JSON.std.createParser(body)) {
      Object value = JSON.std.anyFrom(parser);
      if (parser.nextToken() != null) {
        throw ApiException.invalid(null, "the body: expected=one JSON value actual=more behind it");
      }
      return value;
    } catch (ApiException e) {
      throw e;
    } catch (IOException | RuntimeException e) {
      // What Jackson says contains pieces of the body; the place is what helps.
      String message = String.valueOf(e.getMessage());
      int line = message.indexOf('\n');
      throw ApiException.invalid(
          null, "the body is not JSON: " + (line < 0 ? message : message.substring(0, line)));
    }
  }

  @SuppressWarnings("unchecked")
  static Wire of(Object value, String path) {
    if (!(value instanceof Map<?, ?>)) {
      throw ApiException.invalid(
          path.isEmpty() ? null : path,
          (path.isEmpty() ? "the body" : path) + ": expected=an object actual=" + kind(value));
    }
    return new Wire((Map<String, Object>) value, path);
  }

  /** Refuses fields that would be ignored silently. */
  void only(Set<String> known) {
    for (Map.Entry<String, Object> e : map.entrySet()) {
      if (!known.contains(e.getKey()) && e.getValue() != null) {
        throw ApiException.invalid(
            name(e.getKey()), "unknown or unsupported parameter: " + name(e.getKey()));
      }
    }
  }

  private String name(String key) {
    return path.isEmpty() ? key : path + "." + key;
  }

  boolean has(String key) {
    return map.get(key) != null;
  }

  Object get(String key) {
    return map.get(key);
  }

  String text(String key, String otherwise) {
    return switch (map.get(key)) {
      case null -> otherwise;
      case String s -> s;
      case Object o -> throw wrong(key, "text", o);
    };
  }

  boolean flag(String key, boolean otherwise) {
    return switch (map.get(key)) {
      case null -> otherwise;
      case Boolean b -> b;
      case Object o -> throw wrong(key, "true or false", o);
    };
  }

  double real(String key, double otherwise, double least, double most) {
    return switch (map.get(key)) {
      case null -> otherwise;
      case Number n when n.doubleValue() >= least && n.doubleValue() <= most -> n.doubleValue();
      case Object o -> throw wrong(key, "a number from " + least + " to " + most, o);
    };
  }

  long whole(String key, long otherwise, long least, long most) {
    Object value = map.get(key);
    if (value == null) {
      return otherwise;
    }
    if (value instanceof Number n) {
      try {
        long whole = new BigDecimal(n.toString()).longValueExact();
        if (whole >= least && whole <= most) {
          return whole;
        }
      } catch (ArithmeticException | NumberFormatException _) {
        // Reported below.
      }
    }
    throw wrong(key, "a whole number from " + least + " to " + most, value);
  }

  List<?> list(String key) {
    return switch (map.get(key)) {
      case null -> List.of();
      case List<?> l -> l;
      case Object o -> throw wrong(key, "an array", o);
    };
  }

  Wire object(String key) {
    return of(map.get(key), name(key));
  }

  ApiException wrong(String key, String expected, Object actual) {
    return ApiException.invalid(
        name(key), name(key) + ": expected=" + expected + " actual=" + kind(actual));
  }

  /** What a value is, without repeating long ones. */
  private static String kind(Object value) {
    return switch (value) {
      case null -> "nothing";
      case Number n when n.toString().length() < 40 -> n.toString();
      case Boolean b -> b.toString();
      case String s -> s.length() < 40 ? '"' + s + '"' : "a text of " + s.length() + " characters";
      case List<?> _ -> "an array";
      case Map<?, ?> _ -> "an object";
      default -> "a " + value.getClass().getSimpleName();
    };
  }
}
