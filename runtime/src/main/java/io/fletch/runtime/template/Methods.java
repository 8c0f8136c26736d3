package io.fletch.runtime.template;

import io.fletch.runtime.template.Values.Args;
import io.fletch.runtime.template.Values.Function;
import io.fletch.runtime.template.Values.Iter;
import io.fletch.runtime.template.Values.Tuple;
import java.math.BigDecimal;
import java.math.RoundingMode;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.function.IntPredicate;

/** Methods of Python's str, list, tuple and dict. Those that change their object are refused. */
final class Methods {
  private static final Set<String> LIST_CHANGES =
      Set.of("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse");
  private static final Set<String> DICT_CHANGES =
      Set.of("pop", "popitem", "update", "setdefault", "clear");
  private static final Set<String> STRING_METHODS =
      Set.of(
          "upper",
          "lower",
          "casefold",
          "strip",
          "lstrip",
          "rstrip",
          "split",
          "rsplit",
          "splitlines",
          "startswith",
          "endswith",
          "replace",
          "title",
          "capitalize",
          "swapcase",
          "join",
          "find",
          "rfind",
          "index",
          "rindex",
          "count",
          "format",
          "isdigit",
          "isdecimal",
          "isnumeric",
          "isalpha",
          "isalnum",
          "isspace",
          "isupper",
          "islower",
          "zfill",
          "ljust",
          "rjust",
          "center",
          "partition",
          "rpartition",
          "removeprefix",
          "removesuffix");

  private Methods() {}

  /** A method bound to its object, or null if the type has none of that name. */
  static Function find(Object object, String name) {
    return switch (object) {
      case String s -> STRING_METHODS.contains(name) ? args -> string(s, name, args) : null;
      case Map<?, ?> map -> dict(map, name);
      case List<?> list -> {
        if (LIST_CHANGES.contains(name)) {
          yield refuse(name, "list");
        }
        yield name.equals("copy") ? args -> new ArrayList<Object>(list) : sequence(list, name);
      }
      case Tuple tuple -> sequence(tuple.items(), name);
      case null, default -> null;
    };
  }

  private static Function refuse(String name, String type) {
    return args -> {
      throw new TemplateError(
          "access to attribute '" + name + "' of '" + type + "' object is unsafe");
    };
  }

  private static Function sequence(List<?> items, String name) {
    return switch (name) {
      case "index" ->
          args -> {
            Object item = args.bind("index", 1, "value")[0];
            for (int i = 0; i < items.size(); i++) {
              if (Values.equal(items.get(i), item)) {
                return (long) i;
              }
            }
            throw new TemplateError(Values.repr(item) + " is not in list");
          };
      case "count" ->
          args -> {
            Object item = args.bind("count", 1, "value")[0];
            return items.stream().filter(other -> Values.equal(other, item)).count();
          };
      default -> null;
    };
  }

  private static Function dict(Map<?, ?> map, String name) {
    if (DICT_CHANGES.contains(name)) {
      return refuse(name, "dict");
    }
    return switch (name) {
      case "get" ->
          args -> {
            Object[] bound = args.bind("get", 1, "key", "default");
            Object key = Values.key(bound[0]);
            return map.containsKey(key) ? map.get(key) : bound[1];
          };
      case "keys" -> args -> new Iter("dict_keys", new ArrayList<>(map.keySet()), true);
      case "values" -> args -> new Iter("dict_values", new ArrayList<>(map.values()), true);
      case "items" -> args -> new Iter("dict_items", pairs(map), true);
      case "copy" -> args -> new LinkedHashMap<Object, Object>(map);
      default -> null;
    };
  }

  /** The entries of a map as tuples. */
  static List<Object> pairs(Map<?, ?> map) {
    List<Object> pairs = new ArrayList<>();
    map.forEach((key, value) -> {
      List<Object> pair = new ArrayList<>(2);
      pair.add(key);
      pair.add(value);
      pairs.add(new Tuple(pair));
    });
    return pairs;
  }

  private static Object string(String s, String name, Args args) {
    return switch (name) {
      case "upper" -> s.toUpperCase(Locale.ROOT);
      case "lower", "casefold" -> s.toLowerCase(Locale.ROOT);
      case "strip", "lstrip", "rstrip" ->
          strip(s, args.bind(name, 0, "chars")[0], !name.equals("rstrip"), !name.equals("lstrip"));
      case "split" -> split(s, args.bind(name, 0, "sep", "maxsplit"), false);
      case "rsplit" -> split(s, args.bind(name, 0, "sep", "maxsplit"), true);
      case "splitlines" -> lines(s, Values.truth(args.bind(name, 0, "keepends")[0]));
      case "startswith" -> affix(args.bind(name, 1, "prefix")[0], s::startsWith);
      case "endswith" -> affix(args.bind(name, 1, "suffix")[0], s::endsWith);
      case "replace" -> {
        Object[] bound = args.bind(name, 2, "old", "new", "count");
        yield replace(
            s,
            Values.string(bound[0], "replace() argument 1"),
            Values.string(bound[1], "replace() argument 2"),
            bound[2] == null ? -1 : Values.integer(bound[2]));
      }
      case "title" -> title(s);
      case "capitalize" -> capitalize(s);
      case "swapcase" -> {
        StringBuilder out = new StringBuilder();
        s.codePoints()
            .forEach(c ->
                out.appendCodePoint(
                    Character.isUpperCase(c)
                        ? Character.toLowerCase(c)
                        : Character.toUpperCase(c)));
        yield out.toString();
      }
      case "join" -> {
        StringBuilder out = new StringBuilder();
        String separator = "";
        for (Object item : Values.iterate(args.bind(name, 1, "iterable")[0])) {
          out.append(separator).append(Values.string(item, "sequence item"));
          separator = s;
        }
        yield out.toString();
      }
      case "find", "index" -> {
        Object[] bound = args.bind(name, 1, "sub", "start");
        int from = s.offsetByCodePoints(0, (int) clamp(s, bound[1]));
        yield position(s, s.indexOf(Values.string(bound[0], name + "() argument"), from), name);
      }
      case "rfind", "rindex" ->
          position(
              s,
              s.lastIndexOf(Values.string(args.bind(name, 1, "sub")[0], name + "() argument")),
              name);
      case "count" -> {
        String part = Values.string(args.bind(name, 1, "sub")[0], "count() argument");
        if (part.isEmpty()) {
          yield Values.length(s) + 1;
        }
        long count = 0;
        for (int at = s.indexOf(part); at >= 0; at = s.indexOf(part, at + part.length())) {
          count++;
        }
        yield count;
      }
      case "format" -> braces(s, args);
      case "isdigit", "isdecimal" -> all(s, Character::isDigit);
      case "isnumeric" ->
          all(
              s,
              c ->
                  Character.isDigit(c)
                      || Character.getType(c) == Character.LETTER_NUMBER
                      || Character.getType(c) == Character.OTHER_NUMBER);
      case "isalpha" -> all(s, Character::isLetter);
      case "isalnum" -> all(s, Character::isLetterOrDigit);
      case "isspace" -> all(s, Values::isSpace);
      case "isupper" -> isCased(s, false);
      case "islower" -> isCased(s, true);
      case "zfill" -> {
        int width = width(args.bind(name, 1, "width")[0]);
        boolean sign = s.startsWith("-") || s.startsWith("+");
        String zeros = "0".repeat((int) Math.max(0, width - Values.length(s)));
        yield sign ? s.charAt(0) + zeros + s.substring(1) : zeros + s;
      }
      case "ljust", "rjust", "center" -> {
        Object[] bound = args.bind(name, 1, "width", "fillchar");
        String fill = bound[1] == null ? " " : Values.string(bound[1], "fillchar");
        yield pad(s, width(bound[0]), fill, name);
      }
      case "partition", "rpartition" -> {
        String separator = Values.string(args.bind(name, 1, "sep")[0], "separator");
        boolean first = name.equals("partition");
        int at = first ? s.indexOf(separator) : s.lastIndexOf(separator);
        yield at < 0
            ? new Tuple(first ? List.of(s, "", "") : List.of("", "", s))
            : new Tuple(
                List.of(s.substring(0, at), separator, s.substring(at + separator.length())));
      }
      case "removeprefix" -> {
        String prefix = Values.string(args.bind(name, 1, "prefix")[0], "prefix");
        yield s.startsWith(prefix) ? s.substring(prefix.length()) : s;
      }
      case "removesuffix" -> {
        String suffix = Values.string(args.bind(name, 1, "suffix")[0], "suffix");
        yield s.endsWith(suffix) ? s.substring(0, s.length() - suffix.length()) : s;
      }
      default -> throw new TemplateError("'str' object has no method '" + name + "'");
    };
  }

  private static long clamp(String s, Object start) {
    long size = Values.length(s);
    long at = start == null ? 0 : Values.integer(start);
    return Math.max(0, Math.min(size, at < 0 ? at + size : at));
  }

  private static Object position(String s, int at, String name) {
    if (at < 0) {
      if (name.endsWith("index")) {
        throw new TemplateError("substring not found");
      }
      return -1L;
    }
    return (long) s.codePointCount(0, at);
  }

  private static int width(Object value) {
    long width = Values.integer(value);
    if (width > 1_000_000) {
      throw new TemplateError("width, expected<=1000000 actual=" + width);
    }
    return (int) Math.max(0, width);
  }

  static String pad(String s, int width, String fill, String how) {
    int missing = (int) Math.max(0, width - Values.length(s));
    // Python puts the odd one to the left if the width is odd.
    int left =
        switch (how) {
          case "ljust" -> 0;
          case "rjust" -> missing;
          default -> missing / 2 + (missing & width & 1);
        };
    return fill.repeat(left) + s + fill.repeat(missing - left);
  }

  private static boolean all(String s, IntPredicate test) {
    return !s.isEmpty() && s.codePoints().allMatch(test);
  }

  /** Whether there are cased letters and all are of one case. */
  static boolean isCased(String s, boolean lower) {
    boolean any = s.codePoints().anyMatch(lower ? Character::isLowerCase : Character::isUpperCase);
    return any
        && s.codePoints()
            .noneMatch(c ->
                Character.isTitleCase(c)
                    || (lower ? Character.isUpperCase(c) : Character.isLowerCase(c)));
  }

  static String capitalize(String s) {
    if (s.isEmpty()) {
      return s;
    }
    int first = s.offsetByCodePoints(0, 1);
    return Character.toString(Character.toTitleCase(s.codePointAt(0)))
        + s.substring(first).toLowerCase(Locale.ROOT);
  }

  private static String title(String s) {
    StringBuilder out = new StringBuilder();
    boolean inWord = false;
    for (int c : s.codePoints().toArray()) {
      boolean cased =
          Character.isUpperCase(c) || Character.isLowerCase(c) || Character.isTitleCase(c);
      out.appendCodePoint(inWord ? Character.toLowerCase(c) : Character.toTitleCase(c));
      inWord = cased;
    }
    return out.toString();
  }

  static String strip(String s, Object chars, boolean left, boolean right) {
    IntPredicate drop;
    if (chars == null) {
      drop = Values::isSpace;
    } else {
      String set = Values.string(chars, "strip() argument");
      drop = c -> set.indexOf(c) >= 0;
    }
    int from = 0;
    int to = s.length();
    while (left && from < to && drop.test(s.codePointAt(from))) {
      from += Character.charCount(s.codePointAt(from));
    }
    while (right && to > from && drop.test(s.codePointBefore(to))) {
      to -= Character.charCount(s.codePointBefore(to));
    }
    return s.substring(from, to);
  }

  private static boolean affix(Object value, java.util.function.Predicate<String> test) {
    if (value instanceof Tuple tuple) {
      return tuple.items().stream().anyMatch(item -> test.test(Values.string(item, "affix")));
    }
    return test.test(Values.string(value, "affix"));
  }

  static String replace(String s, String old, String by, long count) {
    if (count < 0 && !old.isEmpty()) {
      checkGrowth(s, old, by);
      return s.replace(old, by);
    }
    StringBuilder out = new StringBuilder();
    int at = 0;
    for (long done = 0; count < 0 || done < count; done++) {
      int hit = old.isEmpty() ? at : s.indexOf(old, at);
      if (hit < 0 || hit > s.length()) {
        break;
      }
      out.append(s, at, hit).append(by);
      at = hit + old.length();
      if (old.isEmpty()) {
        if (at >= s.length()) {
          return out.toString();
        }
        int next = s.offsetByCodePoints(at, 1);
        out.append(s, at, next);
        at = next;
      }
      if (out.length() > Interpreter.MAX_CHARACTERS) {
        throw new TemplateError("more than " + Interpreter.MAX_CHARACTERS + " characters");
      }
    }
    return out.append(s, Math.min(at, s.length()), s.length()).toString();
  }

  private static void checkGrowth(String s, String old, String by) {
    if (by.length() > old.length()
        && (long) s.length() / old.length() * (by.length() - old.length()) + s.length()
            > Interpreter.MAX_CHARACTERS) {
      throw new TemplateError("more than " + Interpreter.MAX_CHARACTERS + " characters");
    }
  }

  private static List<Object> split(String s, Object[] bound, boolean fromRight) {
    long max = bound[1] == null ? -1 : Values.integer(bound[1]);
    List<Object> parts = new ArrayList<>();
    if (bound[0] == null) {
      return splitSpace(s, max, fromRight);
    }
    String separator = Values.string(bound[0], "separator");
    if (separator.isEmpty()) {
      throw new TemplateError("empty separator");
    }
    if (fromRight) {
      int end = s.length();
      int at;
      while ((max < 0 || parts.size() < max)
          && end >= separator.length()
          && (at = s.lastIndexOf(separator, end - separator.length())) >= 0) {
        parts.addFirst(s.substring(at + separator.length(), end));
        end = at;
      }
      parts.addFirst(s.substring(0, end));
      return parts;
    }
    int from = 0;
    int at;
    while ((max < 0 || parts.size() < max) && (at = s.indexOf(separator, from)) >= 0) {
      parts.add(s.substring(from, at));
      from = at + separator.length();
    }
    parts.add(s.substring(from));
    return parts;
  }

  private static List<Object> splitSpace(String s, long max, boolean fromRight) {
    List<Object> parts = new ArrayList<>();
    if (fromRight) {
      int end = strip(s, null, false, true).length();
      while (end > 0) {
        if (max >= 0 && parts.size() == max) {
          parts.addFirst(s.substring(0, end));
          break;
        }
        int start = end;
        while (start > 0 && !Values.isSpace(s.charAt(start - 1))) {
          start--;
        }
        parts.addFirst(s.substring(start, end));
        end = strip(s.substring(0, start), null, false, true).length();
      }
      return parts;
    }
    int at = 0;
    while (true) {
      while (at < s.length() && Values.isSpace(s.charAt(at))) {
        at++;
      }
      if (at == s.length()) {
        return parts;
      }
      if (max >= 0 && parts.size() == max) {
        parts.add(s.substring(at));
        return parts;
      }
      int start = at;
      while (at < s.length() && !Values.isSpace(s.charAt(at))) {
        at++;
      }
      parts.add(s.substring(start, at));
    }
  }

  static List<Object> lines(String s, boolean keepEnds) {
    List<Object> lines = new ArrayList<>();
    int start = 0;
    for (int i = 0; i < s.length(); i++) {
      char c = s.charAt(i);
      if (c >= '\n' && c <= '\r'
          || c >= 0x1C && c <= 0x1E
          || c == 0x85
          || c == 0x2028
          || c == 0x2029) {
        int end = i;
        if (c == '\r' && i + 1 < s.length() && s.charAt(i + 1) == '\n') {
          i++;
        }
        lines.add(s.substring(start, keepEnds ? i + 1 : end));
        start = i + 1;
      }
    }
    if (start < s.length()) {
      lines.add(s.substring(start));
    }
    return lines;
  }

  /** {@code '...{}...{name}'.format(...)} without format specifications. */
  private static String braces(String s, Args args) {
    StringBuilder out = new StringBuilder();
    int automatic = 0;
    for (int i = 0; i < s.length(); i++) {
      char c = s.charAt(i);
      if (c != '{' && c != '}') {
        out.append(c);
      } else if (i + 1 < s.length() && s.charAt(i + 1) == c) {
        out.append(c);
        i++;
      } else {
        int end = c == '{' ? s.indexOf('}', i) : -1;
        if (end < 0) {
          throw new TemplateError("single '" + c + "' in format string");
        }
        String field = s.substring(i + 1, end);
        Object value;
        if (field.isEmpty() || field.matches("\\d{1,6}")) {
          int index = field.isEmpty() ? automatic++ : Integer.parseInt(field);
          if (index >= args.positional().size()) {
            throw new TemplateError("format() misses argument " + index);
          }
          value = args.get(index);
        } else if (args.named().containsKey(field)) {
          value = args.named().get(field);
        } else {
          throw new TemplateError("format field '{" + field + "}' is not supported");
        }
        out.append(Values.str(value));
        i = end;
      }
    }
    return out.toString();
  }

  /** printf-style formatting: s, r, d, i, f, x and %% with flags, width and precision. */
  static String format(String s, List<Object> values) {
    StringBuilder out = new StringBuilder();
    int used = 0;
    for (int i = 0; i < s.length(); i++) {
      char c = s.charAt(i);
      if (c != '%') {
        out.append(c);
        continue;
      }
      int at = i + 1;
      while (at < s.length() && "-+ 0123456789.".indexOf(s.charAt(at)) >= 0) {
        at++;
      }
      if (at >= s.length()) {
        throw new TemplateError("incomplete format");
      }
      String options = s.substring(i + 1, at);
      char conversion = s.charAt(at);
      i = at;
      if (conversion == '%') {
        out.append('%');
        continue;
      }
      if (used >= values.size()) {
        throw new TemplateError("not enough arguments for format string");
      }
      Object value = values.get(used++);
      if (!options.matches("[-+ 0]*\\d{0,4}(\\.\\d{1,3})?")) {
        throw new TemplateError("format '%" + options + conversion + "' is not supported");
      }
      int dot = options.indexOf('.');
      int precision = dot < 0 ? -1 : Integer.parseInt(options.substring(dot + 1));
      String flags = options.replaceAll("[1-9.].*", "");
      String widthDigits =
          (dot < 0 ? options : options.substring(0, dot)).substring(flags.length());
      String text =
          switch (conversion) {
            case 's' -> cut(Values.str(value), precision);
            case 'r' -> cut(Values.repr(value), precision);
            case 'd', 'i' ->
                Long.toString(
                    value instanceof Double d ? (long) (double) d : Values.integer(value));
            case 'x' -> Long.toHexString(Values.integer(value));
            case 'f' ->
                new BigDecimal(Values.real(value))
                    .setScale(precision < 0 ? 6 : precision, RoundingMode.HALF_EVEN)
                    .toPlainString();
            default -> throw new TemplateError("format '%" + conversion + "' is not supported");
          };
      if (flags.contains("+") && "dif".indexOf(conversion) >= 0 && !text.startsWith("-")) {
        text = "+" + text;
      }
      int width = widthDigits.isEmpty() ? 0 : Integer.parseInt(widthDigits);
      int missing = (int) Math.max(0, width - Values.length(text));
      if (flags.contains("-")) {
        out.append(text).repeat(" ", missing);
      } else if (flags.contains("0") && "dixf".indexOf(conversion) >= 0) {
        boolean sign = text.startsWith("-") || text.startsWith("+");
        out.append(sign ? text.substring(0, 1) : "").repeat("0", missing);
        out.append(sign ? text.substring(1) : text);
      } else {
        out.repeat(" ", missing).append(text);
      }
    }
    if (used < values.size()) {
      throw new TemplateError("not all arguments converted during string formatting");
    }
    return out.toString();
  }

  private static String cut(String s, int precision) {
    return precision < 0 || Values.length(s) <= precision
        ? s
        : s.substring(0, s.offsetByCodePoints(0, precision));
  }
}
