package io.fletch.runtime.template;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Writes JSON as Python's {@code json.dumps}. */
final class Json {
  private final String itemSeparator;
  private final String keySeparator;
  private final String indent;
  private final boolean ascii;
  private final boolean sortKeys;
  private final StringBuilder out = new StringBuilder();

  /**
   * A writer.
   *
   * @param indent text of one level, or null for one line
   */
  Json(String itemSeparator, String keySeparator, String indent, boolean ascii, boolean sortKeys) {
    this.itemSeparator = itemSeparator;
    this.keySeparator = keySeparator;
    this.indent = indent;
    this.ascii = ascii;
    this.sortKeys = sortKeys;
  }

  String write(Object value) {
    value(value, 0);
    return out.toString();
  }

  private void value(Object value, int depth) {
    if (depth > 200) {
      throw new TemplateError("value nested deeper than 200");
    }
    switch (value) {
      case null -> out.append("null");
      case Boolean b -> out.append(b);
      case Long l -> out.append((long) l);
      case Double d -> out.append(number(d));
      case String s -> string(s);
      case List<?> list -> array(list, depth);
      case Values.Tuple tuple -> array(tuple.items(), depth);
      case Map<?, ?> map -> object(map, depth);
      case Values.Undefined undefined ->
          throw new TemplateError("Object of type Undefined is not JSON serializable");
      default ->
          throw new TemplateError(
              "Object of type " + Values.type(value) + " is not JSON serializable");
    }
  }

  private static String number(double d) {
    return Double.isNaN(d)
        ? "NaN"
        : Double.isInfinite(d) ? d > 0 ? "Infinity" : "-Infinity" : Values.number(d);
  }

  private void array(List<?> items, int depth) {
    if (items.isEmpty()) {
      out.append("[]");
      return;
    }
    out.append('[');
    for (int i = 0; i < items.size(); i++) {
      out.append(i == 0 ? "" : itemSeparator);
      line(depth + 1);
      value(items.get(i), depth + 1);
    }
    line(depth);
    out.append(']');
  }

  private void object(Map<?, ?> map, int depth) {
    if (map.isEmpty()) {
      out.append("{}");
      return;
    }
    out.append('{');
    List<Map.Entry<?, ?>> entries = new ArrayList<>(map.entrySet());
    if (sortKeys) {
      entries.sort((a, b) -> Values.compare(a.getKey(), b.getKey(), "<"));
    }
    boolean first = true;
    for (Map.Entry<?, ?> entry : entries) {
      out.append(first ? "" : itemSeparator);
      first = false;
      line(depth + 1);
      string(key(entry.getKey()));
      out.append(keySeparator);
      value(entry.getValue(), depth + 1);
    }
    line(depth);
    out.append('}');
  }

  private static String key(Object key) {
    return switch (key) {
      case null -> "null";
      case String s -> s;
      case Boolean b -> b.toString();
      case Long l -> l.toString();
      case Double d -> number(d);
      default ->
          throw new TemplateError(
              "keys must be str, int, float, bool or None, not " + Values.type(key));
    };
  }

  private void line(int depth) {
    if (indent != null) {
      out.append('\n').repeat(indent, depth);
    }
  }

  private void string(String s) {
    out.append('"');
    for (int i = 0; i < s.length(); i++) {
      char c = s.charAt(i);
      switch (c) {
        case '"' -> out.append("\\\"");
        case '\\' -> out.append("\\\\");
        case '\n' -> out.append("\\n");
        case '\r' -> out.append("\\r");
        case '\t' -> out.append("\\t");
        case '\b' -> out.append("\\b");
        case '\f' -> out.append("\\f");
        default -> {
          if (c < 0x20 || ascii && c > 0x7E) {
            out.append(String.format("\\u%04x", (int) c));
          } else {
            out.append(c);
          }
        }
      }
    }
    out.append('"');
  }
}
