package io.fletch.runtime.template;

import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The values of a template and what Python does with them: null, Boolean, Long, Double, String,
 * List (list), {@link Tuple}, Map (dict, insertion order), {@link Iter}, {@link Undefined},
 * functions and namespaces.
 */
final class Values {
  private Values() {}

  /** A value that was never given; prints as nothing, is false, fails when used. */
  record Undefined(String message) {
    @Override
    public boolean equals(Object other) {
      return other instanceof Undefined;
    }

    @Override
    public int hashCode() {
      return 0;
    }
  }

  /**
   * An immutable sequence.
   *
   * @param names names of the items, if they have any
   */
  record Tuple(List<Object> items, List<String> names) {
    Tuple(List<Object> items) {
      this(items, List.of());
    }
  }

  /**
   * A generator or a view: can be walked through; a generator has no length and no items.
   *
   * @param sized whether it is a view with a length
   */
  record Iter(String type, List<Object> items, boolean sized) {}

  /** Named values that can be assigned to from inner scopes. */
  record Namespace(Map<Object, Object> fields) {}

  /** Something that can be called. */
  @FunctionalInterface
  interface Function {
    Object call(Args args);
  }

  /** Evaluated arguments of a call, filter or test. */
  record Args(List<Object> positional, Map<String, Object> named) {
    /** Checks number and names; the result has one entry per parameter, absent ones null. */
    Object[] bind(String function, int required, String... parameters) {
      if (positional.size() > parameters.length) {
        throw new TemplateError(
            function
                + "() takes at most "
                + parameters.length
                + " arguments, actual="
                + positional.size());
      }
      Object[] bound = new Object[parameters.length];
      boolean[] given = new boolean[parameters.length];
      for (int i = 0; i < positional.size(); i++) {
        bound[i] = positional.get(i);
        given[i] = true;
      }
      for (Map.Entry<String, Object> entry : named.entrySet()) {
        int at = List.of(parameters).indexOf(entry.getKey());
        if (at < 0 || given[at]) {
          throw new TemplateError(
              function + "() got an unexpected argument '" + entry.getKey() + "'");
        }
        bound[at] = entry.getValue();
        given[at] = true;
      }
      for (int i = 0; i < required; i++) {
        if (!given[i]) {
          throw new TemplateError(function + "() misses argument '" + parameters[i] + "'");
        }
      }
      return bound;
    }

    Object get(int index) {
      return positional.get(index);
    }

    int count() {
      return positional.size() + named.size();
    }
  }

  /** Takes over a value from outside; copies containers. */
  static Object fromJava(Object value, int depth) {
    if (depth > 100) {
      throw new TemplateError("context nested deeper than 100");
    }
    return switch (value) {
      case null -> null;
      case Boolean b -> b;
      case String s -> s;
      case Long l -> l;
      case Integer i -> (long) i;
      case Short i -> (long) i;
      case Byte i -> (long) i;
      case Double d -> d;
      case Float f -> (double) f;
      case java.math.BigInteger big -> {
        try {
          yield big.longValueExact();
        } catch (ArithmeticException e) {
          throw new TemplateError("integer out of range: " + big);
        }
      }
      case BigDecimal big -> big.doubleValue();
      case Map<?, ?> map -> {
        Map<Object, Object> copy = new LinkedHashMap<>();
        map.forEach((key, item) -> copy.put(fromJava(key, depth + 1), fromJava(item, depth + 1)));
        yield copy;
      }
      case Iterable<?> list -> {
        List<Object> copy = new ArrayList<>();
        list.forEach(item -> copy.add(fromJava(item, depth + 1)));
        yield copy;
      }
      case Object[] array -> fromJava(java.util.Arrays.asList(array), depth);
      case Function function -> function;
      default -> throw new TemplateError("context value of unsupported " + value.getClass());
    };
  }

  static boolean isSpace(int c) {
    return c == ' '
        || c >= 9 && c <= 13
        || c >= 0x1C && c <= 0x1F
        || c == 0x85
        || c == 0xA0
        || c > 0xFF && (Character.isSpaceChar(c));
  }

  static boolean truth(Object value) {
    return switch (value) {
      case null -> false;
      case Boolean b -> b;
      case Long l -> l != 0;
      case Double d -> d != 0;
      case String s -> !s.isEmpty();
      case List<?> list -> !list.isEmpty();
      case Tuple tuple -> !tuple.items.isEmpty();
      case Map<?, ?> map -> !map.isEmpty();
      case Iter iter -> !iter.sized || !iter.items.isEmpty();
      case Undefined undefined -> false;
      default -> true;
    };
  }

  /** Python's name of the type. */
  static String type(Object value) {
    return switch (value) {
      case null -> "NoneType";
      case Boolean b -> "bool";
      case Long l -> "int";
      case Double d -> "float";
      case String s -> "str";
      case List<?> list -> "list";
      case Tuple tuple -> "tuple";
      case Map<?, ?> map -> "dict";
      case Iter iter -> iter.type;
      case Undefined undefined -> "Undefined";
      case Namespace namespace -> "Namespace";
      case Function function -> "function";
      default -> "object";
    };
  }

  /** Fails if the value is undefined. */
  static Object defined(Object value) {
    if (value instanceof Undefined undefined) {
      throw new TemplateError(undefined.message);
    }
    return value;
  }

  /** The text of a value in the output. */
  static String str(Object value) {
    return switch (value) {
      case String s -> s;
      case Undefined undefined -> "";
      case null, default -> repr(value);
    };
  }

  static String repr(Object value) {
    StringBuilder out = new StringBuilder();
    repr(value, out, 0);
    return out.toString();
  }

  private static void repr(Object value, StringBuilder out, int depth) {
    if (depth > 200) {
      throw new TemplateError("value nested deeper than 200");
    }
    switch (value) {
      case null -> out.append("None");
      case Boolean b -> out.append(b ? "True" : "False");
      case Long l -> out.append((long) l);
      case Double d -> out.append(number(d));
      case String s -> quote(s, out);
      case Undefined undefined -> out.append("Undefined");
      case List<?> list -> items(list, "[", "]", out, depth);
      case Tuple tuple -> items(tuple.items, "(", tuple.items.size() == 1 ? ",)" : ")", out, depth);
      case Iter iter -> {
        if (!iter.sized) {
          throw new TemplateError("cannot print a " + iter.type + "; use the filter 'list'");
        }
        items(iter.items, iter.type + "([", "])", out, depth);
      }
      case Map<?, ?> map -> {
        out.append('{');
        String separator = "";
        for (Map.Entry<?, ?> entry : map.entrySet()) {
          out.append(separator);
          repr(entry.getKey(), out, depth + 1);
          out.append(": ");
          repr(entry.getValue(), out, depth + 1);
          separator = ", ";
        }
        out.append('}');
      }
      case Namespace namespace -> {
        out.append("<Namespace ");
        repr(namespace.fields, out, depth + 1);
        out.append('>');
      }
      default -> throw new TemplateError("cannot print a " + type(value));
    }
  }

  private static void items(
      List<?> items, String open, String close, StringBuilder out, int depth) {
    out.append(open);
    for (int i = 0; i < items.size(); i++) {
      out.append(i == 0 ? "" : ", ");
      repr(items.get(i), out, depth + 1);
    }
    out.append(close);
  }

  private static void quote(String s, StringBuilder out) {
    char quote = s.indexOf('\'') >= 0 && s.indexOf('"') < 0 ? '"' : '\'';
    out.append(quote);
    s.codePoints()
        .forEach(c -> {
          switch (c) {
            case '\\' -> out.append("\\\\");
            case '\n' -> out.append("\\n");
            case '\r' -> out.append("\\r");
            case '\t' -> out.append("\\t");
            default -> {
              if (c == quote) {
                out.append('\\').append(quote);
              } else if (printable(c)) {
                out.appendCodePoint(c);
              } else if (c < 0x100) {
                out.append(String.format("\\x%02x", c));
              } else if (c < 0x10000) {
                out.append(String.format("\\u%04x", c));
              } else {
                out.append(String.format("\\U%08x", c));
              }
            }
          }
        });
    out.append(quote);
  }

  private static boolean printable(int c) {
    return switch (Character.getType(c)) {
      case Character.CONTROL,
          Character.FORMAT,
          Character.SURROGATE,
          Character.PRIVATE_USE,
          Character.UNASSIGNED,
          Character.LINE_SEPARATOR,
          Character.PARAGRAPH_SEPARATOR ->
          false;
      case Character.SPACE_SEPARATOR -> c == ' ';
      default -> true;
    };
  }

  /** A float as Python's repr writes it: the shortest digits that give the number back. */
  static String number(double d) {
    if (Double.isNaN(d)) {
      return "nan";
    }
    if (Double.isInfinite(d)) {
      return d > 0 ? "inf" : "-inf";
    }
    if (d == 0) {
      return 1 / d < 0 ? "-0.0" : "0.0";
    }
    BigDecimal decimal = new BigDecimal(Double.toString(Math.abs(d))).stripTrailingZeros();
    String digits = decimal.unscaledValue().toString();
    int exponent = digits.length() - 1 - decimal.scale();
    StringBuilder out = new StringBuilder(d < 0 ? "-" : "");
    if (exponent < -4 || exponent >= 16) {
      out.append(digits.charAt(0));
      if (digits.length() > 1) {
        out.append('.').append(digits, 1, digits.length());
      }
      out.append(exponent < 0 ? "e-" : "e+").append(Math.abs(exponent) < 10 ? "0" : "");
      return out.append(Math.abs(exponent)).toString();
    }
    if (exponent < 0) {
      return out.append("0.").repeat("0", -exponent - 1).append(digits).toString();
    }
    if (exponent >= digits.length() - 1) {
      return out.append(digits).repeat("0", exponent + 1 - digits.length()).append(".0").toString();
    }
    return out.append(digits, 0, exponent + 1)
        .append('.')
        .append(digits, exponent + 1, digits.length())
        .toString();
  }

  /** The items of anything that can be walked through. */
  static List<Object> iterate(Object value) {
    return switch (value) {
      case List<?> list -> cast(list);
      case Tuple tuple -> tuple.items;
      case Iter iter -> iter.items;
      case Map<?, ?> map -> new ArrayList<>(map.keySet());
      case Undefined undefined -> List.of();
      case String s -> {
        List<Object> characters = new ArrayList<>();
        s.codePoints().forEach(c -> characters.add(Character.toString(c)));
        yield characters;
      }
      case null, default -> throw new TemplateError("'" + type(value) + "' object is not iterable");
    };
  }

  @SuppressWarnings("unchecked")
  private static List<Object> cast(List<?> list) {
    return (List<Object>) list;
  }

  static boolean isIterable(Object value) {
    return value instanceof List
        || value instanceof Tuple
        || value instanceof Iter
        || value instanceof Map
        || value instanceof Undefined
        || value instanceof String;
  }

  static long length(Object value) {
    return switch (value) {
      case String s -> s.codePointCount(0, s.length());
      case List<?> list -> list.size();
      case Tuple tuple -> tuple.items.size();
      case Map<?, ?> map -> map.size();
      case Undefined undefined -> 0;
      case Iter iter when iter.sized -> iter.items.size();
      case null, default ->
          throw new TemplateError("object of type '" + type(value) + "' has no len()");
    };
  }

  static boolean isNumber(Object value) {
    return value instanceof Long || value instanceof Double || value instanceof Boolean;
  }

  static double real(Object value) {
    return switch (value) {
      case Long l -> l;
      case Double d -> d;
      case Boolean b -> b ? 1 : 0;
      case null, default ->
          throw new TemplateError("expected a number, actual='" + type(value) + "'");
    };
  }

  static long integer(Object value) {
    return switch (value) {
      case Long l -> l;
      case Boolean b -> b ? 1 : 0;
      case null, default -> {
        defined(value);
        throw new TemplateError("expected an integer, actual='" + type(value) + "'");
      }
    };
  }

  static String string(Object value, String what) {
    if (value instanceof String s) {
      return s;
    }
    defined(value);
    throw new TemplateError(what + " must be str, not " + type(value));
  }

  static boolean equal(Object a, Object b) {
    if (isNumber(a) && isNumber(b)) {
      return a instanceof Double || b instanceof Double
          ? real(a) == real(b)
          : integer(a) == integer(b);
    }
    return switch (a) {
      case null -> b == null;
      case List<?> left -> b instanceof List<?> right && sameItems(left, right);
      case Tuple left -> b instanceof Tuple right && sameItems(left.items, right.items);
      case Map<?, ?> left -> {
        if (!(b instanceof Map<?, ?> right) || left.size() != right.size()) {
          yield false;
        }
        for (Map.Entry<?, ?> entry : left.entrySet()) {
          if (!right.containsKey(entry.getKey())
              || !equal(entry.getValue(), right.get(entry.getKey()))) {
            yield false;
          }
        }
        yield true;
      }
      default -> a.equals(b);
    };
  }

  private static boolean sameItems(List<?> a, List<?> b) {
    if (a.size() != b.size()) {
      return false;
    }
    for (int i = 0; i < a.size(); i++) {
      if (!equal(a.get(i), b.get(i))) {
        return false;
      }
    }
    return true;
  }

  /** Order of two values; an error where Python has none. */
  static int compare(Object a, Object b, String operator) {
    if (isNumber(a) && isNumber(b)) {
      return a instanceof Double || b instanceof Double
          ? Double.compare(real(a) + 0.0, real(b) + 0.0)
          : Long.compare(integer(a), integer(b));
    }
    if (a instanceof String left && b instanceof String right) {
      return compareStrings(left, right);
    }
    List<?> left = a instanceof Tuple t ? t.items : a instanceof List<?> l ? l : null;
    List<?> right = b instanceof Tuple t ? t.items : b instanceof List<?> l ? l : null;
    if (left != null && right != null && a instanceof Tuple == b instanceof Tuple) {
      for (int i = 0; i < Math.min(left.size(), right.size()); i++) {
        if (!equal(left.get(i), right.get(i))) {
          return compare(left.get(i), right.get(i), operator);
        }
      }
      return Integer.compare(left.size(), right.size());
    }
    defined(a);
    defined(b);
    throw new TemplateError(
        "'"
            + operator
            + "' not supported between instances of '"
            + type(a)
            + "' and '"
            + type(b)
            + "'");
  }

  /** By code point, not by UTF-16 unit. */
  static int compareStrings(String a, String b) {
    int length = Math.min(a.length(), b.length());
    for (int i = 0; i < length; i++) {
      char x = a.charAt(i);
      char y = b.charAt(i);
      if (x != y) {
        boolean surrogates = Character.isSurrogate(x) != Character.isSurrogate(y);
        return surrogates ? (Character.isSurrogate(x) ? 1 : -1) : Character.compare(x, y);
      }
    }
    return Integer.compare(a.length(), b.length());
  }

  static Comparator<Object> order() {
    return (a, b) -> compare(a, b, "<");
  }

  static boolean contains(Object container, Object item) {
    return switch (container) {
      case String s -> {
        if (!(item instanceof String part)) {
          defined(item);
          throw new TemplateError(
              "'in <string>' requires string as left operand, not " + type(item));
        }
        yield s.contains(part);
      }
      case Map<?, ?> map -> map.containsKey(key(item));
      case Namespace namespace ->
          throw new TemplateError("argument of type 'Namespace' is not iterable");
      case null, default -> {
        for (Object element : iterate(container)) {
          if (equal(element, item)) {
            yield true;
          }
        }
        yield false;
      }
    };
  }

  /** A value as a dictionary key, if it can be one. */
  static Object key(Object value) {
    if (value instanceof List || value instanceof Map) {
      throw new TemplateError("unhashable type: '" + type(value) + "'");
    }
    return value;
  }

  /** An item of a sequence with Python's negative indices; null if out of range. */
  static List<Object> slice(List<Object> items, Object from, Object to, Object step) {
    long size = items.size();
    long stride = step == null ? 1 : integer(step);
    if (stride == 0) {
      throw new TemplateError("slice step cannot be zero");
    }
    long lower = stride > 0 ? 0 : -1;
    long upper = stride > 0 ? size : size - 1;
    long start =
        from == null ? (stride > 0 ? lower : upper) : clamp(integer(from), size, lower, upper);
    long stop = to == null ? (stride > 0 ? upper : lower) : clamp(integer(to), size, lower, upper);
    List<Object> result = new ArrayList<>();
    for (long i = start; stride > 0 ? i < stop : i > stop; i += stride) {
      result.add(items.get((int) i));
      if (stride > 0 ? i > Long.MAX_VALUE - stride : i < Long.MIN_VALUE - stride) {
        break;
      }
    }
    return result;
  }

  private static long clamp(long index, long size, long lower, long upper) {
    long absolute = index < 0 ? index + size : index;
    return Math.max(lower, Math.min(upper, absolute));
  }

  static String concat(List<Object> characters) {
    StringBuilder out = new StringBuilder();
    characters.forEach(out::append);
    return out.toString();
  }

  static List<Object> reversed(List<Object> items) {
    List<Object> copy = new ArrayList<>(items);
    Collections.reverse(copy);
    return copy;
  }
}
