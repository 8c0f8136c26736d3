package io.fletch.sampling;

import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;

/**
 * Writes the GBNF of a JSON schema, see {@link Grammar#ofJsonSchema}. The rule of construction:
 * what it describes validates; where a keyword cannot be guaranteed it is refused. One instance
 * does one schema.
 */
final class JsonSchemaRules {
  /** Keywords that say nothing about validity. */
  private static final Set<String> ANNOTATIONS =
      Set.of(
          "$schema",
          "$id",
          "$anchor",
          "$comment",
          "$defs",
          "definitions",
          "title",
          "description",
          "default",
          "examples",
          "deprecated",
          "readOnly",
          "writeOnly",
          "format",
          "strict",
          "discriminator");

  private static final Set<String> KEYWORDS =
      Set.of(
          "type",
          "enum",
          "const",
          "anyOf",
          "oneOf",
          "allOf",
          "$ref",
          "properties",
          "required",
          "additionalProperties",
          "items",
          "prefixItems",
          "minItems",
          "maxItems",
          "minLength",
          "maxLength",
          "minimum",
          "maximum",
          "exclusiveMinimum",
          "exclusiveMaximum",
          "minProperties");

  private static final List<String> TYPES =
      List.of("object", "array", "string", "number", "integer", "boolean", "null");

  /** Integers are written with at most that many digits. */
  private static final int MOST_DIGITS = 16;

  private static final long MOST_INTEGER = 9_999_999_999_999_999L;

  private static final int MOST_DEPTH = 100;

  private final Map<String, ?> root;
  private final Map<String, String> rules = new LinkedHashMap<>();
  private final Map<String, String> references = new HashMap<>();
  private int count;
  private int depth;

  JsonSchemaRules(Map<String, ?> schema) {
    root = Objects.requireNonNull(schema, "schema");
    rules.put("root", "");
    rules.put("root", any(schema, "#"));
  }

  String text() {
    StringBuilder out = new StringBuilder();
    rules.forEach((name, body) -> out.append(name).append(" ::= ").append(body).append('\n'));
    return out.toString();
  }

  /** Defines a rule and gives its name. */
  private String define(String body) {
    String name = "r" + count++;
    rules.put(name, body);
    return name;
  }

  private String primitive(String name) {
    if (!rules.containsKey(name)) {
      rules.put(name, "");
      rules.put(
          name,
          switch (name) {
            case "ws" -> "[ \\t\\n\\r]{0,8}";
            case "hex" -> "[0-9a-fA-F]";
            // Escaped characters beyond the first plane are surrogates, whose order is not a matter
            // for a grammar: they are written as they are.
            case "escape" ->
                "\"\\\\\" ([\"\\\\/bfnrt] | \"u\" ([0-9abcefABCEF] hex{3} | [dD] [0-7] hex{2}))";
            case "char" -> "[^\"\\\\\\x00-\\x1f] | " + primitive("escape");
            case "string" -> "\"\\\"\" " + primitive("char") + "* \"\\\"\"";
            case "natural" -> "\"0\" | [1-9] [0-9]{0," + (MOST_DIGITS - 1) + "}";
            case "integer" -> "\"-\"? " + primitive("natural");
            case "tail" -> "(\".\" [0-9]{1," + MOST_DIGITS + "})? ([eE] [+-]? [0-9]{1,2})?";
            case "number" -> primitive("integer") + " " + primitive("tail");
            case "positive" -> primitive("natural") + " " + primitive("tail");
            case "boolean" -> "\"true\" | \"false\"";
            case "null" -> "\"null\"";
            case "value" ->
                String.join(
                    " | ",
                    primitive("object"),
                    primitive("array"),
                    primitive("string"),
                    primitive("number"),
                    primitive("boolean"),
                    primitive("null"));
            case "object" -> map(primitive("value"));
            case "array" -> list(primitive("value"), 0, -1);
            default -> throw new IllegalStateException(name);
          });
      if (name.equals("escape")) {
        primitive("hex");
      }
    }
    return name;
  }

  private String map(String value) {
    String ws = primitive("ws");
    String member = primitive("string") + " " + ws + " \":\" " + ws + " " + value;
    return "\"{\" "
        + ws
        + " ("
        + member
        + " "
        + ws
        + " (\",\" "
        + ws
        + " "
        + member
        + " "
        + ws
        + ")*)? \"}\"";
  }

  /** {@code least} to {@code most} values; {@code most} is -1 for any number. */
  private String list(String value, int least, int most) {
    String ws = primitive("ws");
    if (most == 0) {
      return "\"[\" " + ws + " \"]\"";
    }
    String more =
        "(\",\" "
            + ws
            + " "
            + value
            + " "
            + ws
            + "){"
            + Math.max(0, least - 1)
            + ","
            + (most < 0 ? "" : most - 1)
            + "}";
    String body = value + " " + ws + " " + more;
    return "\"[\" " + ws + " " + (least == 0 ? "(" + body + ")?" : body) + " \"]\"";
  }

  /** An expression for any schema, a name or something in parentheses. */
  private String any(Object schema, String where) {
    if (++depth > MOST_DEPTH) {
      throw new SamplingException(
          "JSON schema " + where + ": nested schemas expected<=" + MOST_DEPTH);
    }
    try {
      return switch (schema) {
        case Boolean b when b -> primitive("value");
        case Map<?, ?> map -> define(body(strings(map, where), where));
        case null, default ->
            throw refused(where, "a schema that something matches", String.valueOf(schema));
      };
    } finally {
      depth--;
    }
  }

  private String body(Map<String, Object> schema, String where) {
    for (String key : schema.keySet()) {
      if (!KEYWORDS.contains(key) && !ANNOTATIONS.contains(key)) {
        throw new SamplingException(
            "JSON schema " + where + ": keyword " + key + " cannot be guaranteed by a grammar");
      }
    }
    Map<String, Object> rest = new LinkedHashMap<>(schema);
    rest.keySet().removeAll(ANNOTATIONS);
    for (String key : List.of("$ref", "allOf", "anyOf", "oneOf")) {
      if (rest.containsKey(key)) {
        Object value = rest.remove(key);
        return switch (key) {
          case "$ref" -> reference(value, rest, where);
          case "allOf" -> {
            Map<String, Object> all = rest;
            for (Object part : items(value, where + "/allOf")) {
              all = merge(all, resolved(part, where), where + "/allOf");
            }
            yield body(all, where);
          }
          default -> {
            List<String> branches = new ArrayList<>();
            for (Object branch : items(value, where + "/" + key)) {
              Object whole =
                  rest.isEmpty() ? branch : merge(rest, resolved(branch, where), where + "/" + key);
              branches.add(any(whole, where + "/" + key));
            }
            if (branches.isEmpty()) {
              throw refused(where + "/" + key, "a branch", "none");
            }
            yield String.join(" | ", branches);
          }
        };
      }
    }
    if (rest.containsKey("const")) {
      return literal(alone(rest, "const", where), where);
    }
    if (rest.containsKey("enum")) {
      List<String> values = new ArrayList<>();
      for (Object value : items(alone(rest, "enum", where), where + "/enum")) {
        values.add(literal(value, where));
      }
      if (values.isEmpty()) {
        throw refused(where + "/enum", "a value", "none");
      }
      return String.join(" | ", values);
    }
    List<String> bodies = new ArrayList<>();
    for (String type : types(rest, where)) {
      bodies.add(typed(type, rest, where));
    }
    return String.join(" | ", bodies);
  }

  /** The value of {@code enum} or {@code const}; a type beside it must be that of all values. */
  private static Object alone(Map<String, Object> schema, String key, String where) {
    Object value = schema.get(key);
    for (String other : schema.keySet()) {
      if (!other.equals(key) && !other.equals("type")) {
        throw new SamplingException(
            "JSON schema " + where + ": keyword " + other + " beside " + key + " is not supported");
      }
    }
    if (schema.containsKey("type")) {
      List<String> types = types(schema, where);
      for (Object one : key.equals("enum") ? items(value, where) : Arrays.asList(value)) {
        String type = typeOf(one, where);
        if (!types.contains(type) && !(type.equals("integer") && types.contains("number"))) {
          throw refused(where + "/" + key, "values of type " + types, type);
        }
      }
    }
    return value;
  }

  private static String typeOf(Object value, String where) {
    return switch (value) {
      case null -> "null";
      case Boolean _ -> "boolean";
      case CharSequence _ -> "string";
      case Map<?, ?> _ -> "object";
      case Collection<?> _ -> "array";
      case Number n ->
          new BigDecimal(n.toString()).stripTrailingZeros().scale() <= 0 ? "integer" : "number";
      default -> throw refused(where, "a JSON value", value.getClass().getSimpleName());
    };
  }

  private static List<String> types(Map<String, Object> schema, String where) {
    Object type = schema.get("type");
    if (type == null) {
      Set<String> implied = new LinkedHashSet<>();
      for (String key : schema.keySet()) {
        switch (key) {
          case "properties", "required", "additionalProperties", "minProperties" ->
              implied.add("object");
          case "items", "prefixItems", "minItems", "maxItems" -> implied.add("array");
          case "minLength", "maxLength" -> implied.add("string");
          default -> implied.add("number");
        }
      }
      return implied.isEmpty()
          ? List.of("object", "array", "string", "number", "boolean", "null")
          : List.copyOf(implied);
    }
    List<String> out = new ArrayList<>();
    for (Object one : type instanceof Collection<?> c ? c : List.of(type)) {
      if (!TYPES.contains(one)) {
        throw refused(where + "/type", TYPES.toString(), String.valueOf(one));
      }
      out.add(one.toString());
    }
    if (out.isEmpty()) {
      throw refused(where + "/type", "a type", "none");
    }
    return out;
  }

  private String typed(String type, Map<String, Object> schema, String where) {
    return switch (type) {
      case "object" -> object(schema, where);
      case "array" -> array(schema, where);
      case "string" -> {
        int least = size(schema, "minLength", 0, where);
        int most = size(schema, "maxLength", -1, where);
        checkOrder(least, most, where, "minLength", "maxLength");
        yield least == 0 && most < 0
            ? primitive("string")
            : "\"\\\"\" "
                + primitive("char")
                + "{"
                + least
                + ","
                + (most < 0 ? "" : most)
                + "} \"\\\"\"";
      }
      case "integer" -> integer(schema, where);
      case "number" -> number(schema, where);
      default -> primitive(type);
    };
  }

  private String object(Map<String, Object> schema, String where) {
    Map<String, Object> properties =
        schema.get("properties") == null
            ? Map.of()
            : strings(schema.get("properties"), where + "/properties");
    Map<String, Object> all = new LinkedHashMap<>(properties);
    Set<String> required = new LinkedHashSet<>();
    for (Object name : items(schema.getOrDefault("required", List.of()), where + "/required")) {
      required.add(String.valueOf(name));
      // What is required and not described may be anything that other members may be.
      all.putIfAbsent(
          String.valueOf(name), schema.getOrDefault("additionalProperties", Boolean.TRUE));
    }
    int least = size(schema, "minProperties", 0, where);
    if (least > required.size() && !(all.isEmpty() && least <= 1)) {
      throw new SamplingException(
          "JSON schema "
              + where
              + ": minProperties cannot be guaranteed: expected<="
              + required.size()
              + " actual="
              + least);
    }
    String ws = primitive("ws");
    if (all.isEmpty()) {
      // As where there are some: others come only if they are asked for.
      boolean isOpen = schema.get("properties") == null || least > 0;
      Object others = schema.getOrDefault("additionalProperties", isOpen);
      if (Boolean.FALSE.equals(others)) {
        if (least > 0) {
          throw refused(where + "/minProperties", "0", String.valueOf(least));
        }
        return "\"{\" " + ws + " \"}\"";
      }
      String any = map(any(others, where + "/additionalProperties"));
      return least == 0 ? any : any.replace(")? \"}\"", ") \"}\"");
    }
    // From the last to the first: what may follow, when there was a member before and when not.
    String after = "";
    String begin = "";
    List<Map.Entry<String, Object>> members = new ArrayList<>(all.entrySet());
    for (int i = members.size() - 1; i >= 0; i--) {
      String name = members.get(i).getKey();
      String member =
          define(
              literal(name, where)
                  + " "
                  + ws
                  + " \":\" "
                  + ws
                  + " "
                  + any(members.get(i).getValue(), where + "/properties/" + name)
                  + " "
                  + ws);
      String first = member + " " + after;
      String next = "\",\" " + ws + " " + member + " " + after;
      if (required.contains(name)) {
        begin = define(first);
        after = define(next);
      } else {
        begin = define(first + " | " + (begin.isEmpty() ? "\"\"" : begin));
        after = define(next + " | " + (after.isEmpty() ? "\"\"" : after));
      }
    }
    return "\"{\" " + ws + " " + begin + " \"}\"";
  }

  private String array(Map<String, Object> schema, String where) {
    int least = size(schema, "minItems", 0, where);
    int most = size(schema, "maxItems", -1, where);
    checkOrder(least, most, where, "minItems", "maxItems");
    Object items = schema.getOrDefault("items", Boolean.TRUE);
    List<?> prefix = items(schema.getOrDefault("prefixItems", List.of()), where + "/prefixItems");
    if (prefix.isEmpty()) {
      if (Boolean.FALSE.equals(items)) {
        if (least > 0) {
          throw refused(where + "/minItems", "0", String.valueOf(least));
        }
        return list("", 0, 0);
      }
      return list(most == 0 ? "" : any(items, where + "/items"), least, most);
    }
    // A tuple: as many as there are, and not more.
    if (least > prefix.size() || most >= 0 && most < prefix.size()) {
      throw new SamplingException(
          "JSON schema "
              + where
              + ": a tuple has as many values as prefixItems: expected="
              + prefix.size()
              + " minItems="
              + least
              + " maxItems="
              + most);
    }
    String ws = primitive("ws");
    List<String> values = new ArrayList<>();
    for (int i = 0; i < prefix.size(); i++) {
      values.add(any(prefix.get(i), where + "/prefixItems/" + i) + " " + ws);
    }
    return "\"[\" " + ws + " " + String.join(" \",\" " + ws + " ", values) + " \"]\"";
  }

  private String integer(Map<String, Object> schema, String where) {
    long low = bound(schema, "minimum", "exclusiveMinimum", -MOST_INTEGER, true, where);
    long high = bound(schema, "maximum", "exclusiveMaximum", MOST_INTEGER, false, where);
    if (low > high) {
      throw refused(where, "minimum <= maximum", low + " > " + high);
    }
    if (low == -MOST_INTEGER && high == MOST_INTEGER) {
      return primitive("integer");
    }
    List<String> out = new ArrayList<>();
    if (low < 0) {
      ranges(Math.max(1, -Math.min(high, -1)), -low, "\"-\" ", out);
    }
    if (high >= 0) {
      ranges(Math.max(0, low), high, "", out);
    }
    return String.join(" | ", out);
  }

  /** The integers from {@code low} to {@code high}, both at least 0, by number of digits. */
  private static void ranges(long low, long high, String sign, List<String> out) {
    for (long from = low; from <= high; ) {
      long to = high;
      int digits = Long.toString(from).length();
      if (digits < Long.toString(high).length()) {
        to = Long.parseLong("9".repeat(digits));
      }
      for (String one : digits(Long.toString(from), Long.toString(to))) {
        out.add(sign + one);
      }
      from = to + 1;
    }
  }

  /** Texts of digits of one length from {@code a} to {@code b}. */
  private static List<String> digits(String a, String b) {
    int n = a.length();
    if (n == 0) {
      return List.of("");
    }
    String any = n > 1 ? " [0-9]{" + (n - 1) + "}" : "";
    char x = a.charAt(0);
    char y = b.charAt(0);
    String zeros = "0".repeat(n - 1);
    String nines = "9".repeat(n - 1);
    List<String> out = new ArrayList<>();
    if (a.substring(1).equals(zeros) && b.substring(1).equals(nines)) {
      out.add("[" + x + "-" + y + "]" + any);
    } else if (x == y) {
      digits(a.substring(1), b.substring(1)).forEach(s -> out.add("\"" + x + "\" " + s));
    } else {
      digits(a.substring(1), nines).forEach(s -> out.add("\"" + x + "\" " + s));
      if (y - x > 1) {
        out.add("[" + (char) (x + 1) + "-" + (char) (y - 1) + "]" + any);
      }
      digits(zeros, b.substring(1)).forEach(s -> out.add("\"" + y + "\" " + s));
    }
    return out;
  }

  private static long bound(
      Map<String, Object> schema,
      String key,
      String exclusive,
      long otherwise,
      boolean isLow,
      String where) {
    long out = otherwise;
    for (String one : List.of(key, exclusive)) {
      if (schema.get(one) != null) {
        BigDecimal value = decimal(schema.get(one), where + "/" + one);
        java.math.RoundingMode mode =
            isLow ? java.math.RoundingMode.CEILING : java.math.RoundingMode.FLOOR;
        BigDecimal whole = value.setScale(0, mode);
        if (one.equals(exclusive) && whole.compareTo(value) == 0) {
          whole = whole.add(BigDecimal.valueOf(isLow ? 1 : -1));
        }
        if (whole.abs().compareTo(BigDecimal.valueOf(MOST_INTEGER)) > 0) {
          throw refused(where + "/" + one, "at most " + MOST_DIGITS + " digits", value.toString());
        }
        long bound = whole.longValueExact();
        out = isLow ? Math.max(out, bound) : Math.min(out, bound);
      }
    }
    return out;
  }

  private String number(Map<String, Object> schema, String where) {
    if (schema.get("maximum") != null
        || schema.get("exclusiveMaximum") != null
        || schema.get("exclusiveMinimum") != null
        || schema.get("minimum") != null && decimal(schema.get("minimum"), where).signum() != 0) {
      throw new SamplingException(
          "JSON schema "
              + where
              + ": bounds of numbers that are not integers cannot be guaranteed, except minimum 0");
    }
    return primitive(schema.get("minimum") == null ? "number" : "positive");
  }

  private static BigDecimal decimal(Object value, String where) {
    if (value instanceof Number) {
      try {
        BigDecimal out = new BigDecimal(value.toString());
        // Numbers like 1e999999999 would take memory to write out.
        if (Math.abs((long) out.scale()) <= 400) {
          return out;
        }
      } catch (NumberFormatException _) {
        // Reported below.
      }
    }
    throw refused(where, "a number", String.valueOf(value));
  }

  private static int size(Map<String, Object> schema, String key, int otherwise, String where) {
    Object value = schema.get(key);
    if (value == null) {
      return otherwise;
    }
    BigDecimal size = decimal(value, where + "/" + key);
    if (size.signum() < 0
        || size.compareTo(BigDecimal.valueOf(10_000)) > 0
        || size.stripTrailingZeros().scale() > 0) {
      throw refused(where + "/" + key, "a whole number from 0 to 10000", size.toString());
    }
    return size.intValueExact();
  }

  private static void checkOrder(int least, int most, String where, String low, String high) {
    if (most >= 0 && most < least) {
      throw refused(where, low + " <= " + high, least + " > " + most);
    }
  }

  private String reference(Object value, Map<String, Object> rest, String where) {
    String pointer = String.valueOf(value);
    Object target = target(pointer, where);
    if (!rest.isEmpty()) {
      return body(merge(rest, resolved(target, where), where), where);
    }
    String known = references.get(pointer);
    if (known == null) {
      known = "r" + count++;
      references.put(pointer, known);
      rules.put(known, "");
      rules.put(known, any(target, pointer));
    }
    return known;
  }

  /** A schema in which a reference on top has been followed. */
  private Map<String, Object> resolved(Object schema, String where) {
    Set<Object> seen = new HashSet<>();
    Object out = schema;
    while (out instanceof Map<?, ?> map && map.get("$ref") != null) {
      if (!seen.add(map.get("$ref"))) {
        throw refused(where, "references that end", String.valueOf(map.get("$ref")));
      }
      Map<String, Object> rest = new LinkedHashMap<>(strings(map, where));
      Object target = target(String.valueOf(rest.remove("$ref")), where);
      rest.keySet().removeAll(ANNOTATIONS);
      if (!rest.isEmpty()) {
        return merge(rest, resolved(target, where), where);
      }
      out = target;
    }
    if (Boolean.TRUE.equals(out)) {
      return Map.of();
    }
    return strings(out, where);
  }

  private Object target(String pointer, String where) {
    if (!pointer.startsWith("#")) {
      throw refused(where + "/$ref", "a reference within the schema (#/...)", pointer);
    }
    Object out = root;
    for (String part : pointer.substring(1).split("/", -1)) {
      if (part.isEmpty()) {
        continue;
      }
      String key = part.replace("~1", "/").replace("~0", "~");
      out =
          switch (out) {
            case Map<?, ?> map -> map.get(key);
            case List<?> list
                when key.matches("[0-9]{1,6}") && Integer.parseInt(key) < list.size() ->
                list.get(Integer.parseInt(key));
            case null, default -> null;
          };
    }
    if (out == null) {
      throw refused(where + "/$ref", "a place in the schema", pointer);
    }
    return out;
  }

  /** Both of two schemas, where that can be written as one. */
  private Map<String, Object> merge(Map<String, Object> a, Map<String, Object> b, String where) {
    Map<String, Object> out = new LinkedHashMap<>(a);
    b.forEach((key, value) -> {
      Object mine = out.get(key);
      if (ANNOTATIONS.contains(key) || mine == null || mine.equals(value)) {
        out.put(key, value);
      } else if (key.equals("required")) {
        Set<Object> both = new LinkedHashSet<>(items(mine, where));
        both.addAll(items(value, where));
        out.put(key, new ArrayList<>(both));
      } else if (key.equals("properties")) {
        Map<String, Object> both = new LinkedHashMap<>(strings(mine, where));
        strings(value, where)
            .forEach((name, schema) -> {
              Object other = both.putIfAbsent(name, schema);
              if (other != null && !other.equals(schema)) {
                throw refused(where + "/properties/" + name, "one schema in all parts", "two");
              }
            });
        out.put(key, both);
      } else {
        throw refused(where, "keyword " + key + " with one value in all parts", "two");
      }
    });
    // Each part forbids other members than its own: the other part's then, too.
    if ((Boolean.FALSE.equals(a.get("additionalProperties"))
            || Boolean.FALSE.equals(b.get("additionalProperties")))
        && !Objects.equals(a.get("properties"), b.get("properties"))
        && b.get("properties") != null
        && a.get("properties") != null) {
      throw refused(where, "additionalProperties true where parts are joined", "false");
    }
    return out;
  }

  private static Map<String, Object> strings(Object map, String where) {
    if (!(map instanceof Map<?, ?> m)) {
      throw refused(where, "an object", String.valueOf(map));
    }
    Map<String, Object> out = new LinkedHashMap<>();
    m.forEach((key, value) -> out.put(String.valueOf(key), value));
    return out;
  }

  private static List<?> items(Object list, String where) {
    if (!(list instanceof List<?> l)) {
      throw refused(where, "an array", String.valueOf(list));
    }
    return l;
  }

  private static SamplingException refused(String where, String expected, String actual) {
    return new SamplingException(
        "JSON schema " + where + ": expected=" + expected + " actual=" + actual);
  }

  /** A GBNF literal for a value, in compact JSON. */
  private static String literal(Object value, String where) {
    StringBuilder json = new StringBuilder();
    write(value, json, where, 0);
    StringBuilder out = new StringBuilder("\"");
    json.codePoints()
        .forEach(c -> {
          switch (c) {
            case '"' -> out.append("\\\"");
            case '\\' -> out.append("\\\\");
            default -> out.appendCodePoint(c);
          }
        });
    return out.append('"').toString();
  }

  private static void write(Object value, StringBuilder out, String where, int depth) {
    if (depth > MOST_DEPTH) {
      throw refused(where, "values nested at most " + MOST_DEPTH + " deep", "more");
    }
    switch (value) {
      case null -> out.append("null");
      case Boolean b -> out.append(b);
      case Number n -> out.append(n);
      case CharSequence s -> writeText(s, out);
      case Map<?, ?> map -> {
        out.append('{');
        String comma = "";
        for (Map.Entry<?, ?> e : map.entrySet()) {
          out.append(comma);
          writeText(String.valueOf(e.getKey()), out);
          out.append(':');
          write(e.getValue(), out, where, depth + 1);
          comma = ",";
        }
        out.append('}');
      }
      case Collection<?> all -> {
        out.append('[');
        String comma = "";
        for (Object e : all) {
          out.append(comma);
          write(e, out, where, depth + 1);
          comma = ",";
        }
        out.append(']');
      }
      default -> throw refused(where, "a JSON value", value.getClass().getSimpleName());
    }
  }

  private static void writeText(CharSequence text, StringBuilder out) {
    out.append('"');
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      boolean isHalf =
          Character.isHighSurrogate(c)
                  && (i + 1 == text.length() || !Character.isLowSurrogate(text.charAt(i + 1)))
              || Character.isLowSurrogate(c)
                  && (i == 0 || !Character.isHighSurrogate(text.charAt(i - 1)));
      if (c == '"' || c == '\\') {
        out.append('\\').append(c);
      } else if (c < 0x20 || isHalf) {
        out.append(String.format("\\u%04x", (int) c));
      } else {
        out.append(c);
      }
    }
    out.append('"');
  }
}
