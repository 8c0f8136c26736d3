package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Map;

/** JSON of the command line: one object per output, on one line. */
final class Json {
  private Json() {}

  /** One object on one line. */
  static String line(Map<String, ?> object) {
    try {
      return JSON.std.asString(object);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Reads one object. */
  static Map<String, Object> object(byte[] utf8) {
    try {
      return JSON.std.mapFrom(utf8);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** A number in full; null where JSON has no way to write it. */
  static Double finite(double value) {
    return Double.isFinite(value) ? Double.valueOf(value) : null;
  }

  /** A number for people and JSON: three decimals; null where it is not a number. */
  static Double rounded(double value) {
    return Double.isFinite(value) ? Double.valueOf(Math.rint(value * 1000) / 1000) : null;
  }
}
