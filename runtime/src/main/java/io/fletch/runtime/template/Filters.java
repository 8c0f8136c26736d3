package io.fletch.runtime.template;

import io.fletch.runtime.template.Values.Args;
import io.fletch.runtime.template.Values.Tuple;
import io.fletch.runtime.template.Values.Undefined;
import java.math.BigDecimal;
import java.math.RoundingMode;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The filters of Jinja, and {@code tojson} as the transformers library defines it. There is no
 * automatic escaping, so {@code safe} leaves its text as it is.
 */
final class Filters {
  private static final Set<String> NAMES =
      Set.of(
          "abs",
          "attr",
          "batch",
          "capitalize",
          "center",
          "count",
          "d",
          "default",
          "dictsort",
          "e",
          "escape",
          "first",
          "float",
          "forceescape",
          "format",
          "groupby",
          "indent",
          "int",
          "items",
          "join",
          "last",
          "length",
          "list",
          "lower",
          "map",
          "max",
          "min",
          "reject",
          "rejectattr",
          "replace",
          "reverse",
          "round",
          "safe",
          "select",
          "selectattr",
          "slice",
          "sort",
          "string",
          "sum",
          "title",
          "tojson",
          "trim",
          "truncate",
          "unique",
          "upper",
          "wordcount");

  private static final Pattern WORD_START = Pattern.compile("([-\\s({\\[<]+)");
  private static final Pattern WORDS = Pattern.compile("\\w+", Pattern.UNICODE_CHARACTER_CLASS);

  private Filters() {}

  static boolean exists(String name) {
    return NAMES.contains(name);
  }

  static Object apply(String name, Object value, Args args, Interpreter interpreter) {
    return switch (name) {
      case "abs" -> {
        args.bind(name, 0);
        Values.defined(value);
        yield value instanceof Double d
            ? (Object) Math.abs(d)
            : (Object) Math.abs(Values.integer(value));
      }
      case "attr" -> {
        String attribute = Values.str(args.bind(name, 1, "name")[0]);
        yield value instanceof Map
            ? new Undefined("'dict' has no attribute '" + attribute + "'")
            : Interpreter.attribute(value, attribute);
      }
      case "batch" -> batch(value, args.bind(name, 1, "linecount", "fill_with"));
      case "slice" -> slice(value, args.bind(name, 1, "slices", "fill_with"));
      case "capitalize" -> {
        args.bind(name, 0);
        yield Methods.capitalize(Values.str(value));
      }
      case "center" -> {
        Object width = args.bind(name, 0, "width")[0];
        long columns = width == null ? 80 : Values.integer(width);
        if (columns > 1_000_000) {
          throw new TemplateError("width, expected<=1000000 actual=" + columns);
        }
        yield Methods.pad(Values.str(value), (int) Math.max(0, columns), " ", "center");
      }
      case "count", "length" -> {
        args.bind(name, 0);
        yield Values.length(value);
      }
      case "d", "default" -> {
        Object[] bound = args.bind(name, 0, "default_value", "boolean");
        boolean given =
            args.count() > 0 && !(args.count() == 1 && args.named().containsKey("boolean"));
        yield value instanceof Undefined || Values.truth(bound[1]) && !Values.truth(value)
            ? given ? bound[0] : ""
            : value;
      }
      case "dictsort" -> dictSort(value, args.bind(name, 0, "case_sensitive", "by", "reverse"));
      case "e", "escape", "forceescape" -> {
        args.bind(name, 0);
        yield Values.str(value)
            .replace("&", "&amp;")
            .replace(">", "&gt;")
            .replace("<", "&lt;")
            .replace("'", "&#39;")
            .replace("\"", "&#34;");
      }
      case "first" -> {
        List<Object> items = Values.iterate(value);
        yield items.isEmpty()
            ? new Undefined("no first item, sequence was empty")
            : items.getFirst();
      }
      case "last" -> {
        List<Object> items = Values.iterate(value);
        yield items.isEmpty() ? new Undefined("no last item, sequence was empty") : items.getLast();
      }
      case "float" -> toFloat(value, args.bind(name, 0, "default"));
      case "int" -> toInt(value, args.bind(name, 0, "default", "base"));
      case "format" -> {
        if (!args.named().isEmpty()) {
          throw new TemplateError("filter 'format' with named arguments is not supported");
        }
        yield Methods.format(Values.str(value), args.positional());
      }
      case "groupby" ->
          groupBy(value, args.bind(name, 1, "attribute", "default", "case_sensitive"));
      case "indent" -> indent(Values.str(value), args.bind(name, 0, "width", "first", "blank"));
      case "items" -> {
        if (value instanceof Undefined) {
          yield Interpreter.generator(List.of());
        }
        if (!(value instanceof Map<?, ?> map)) {
          throw new TemplateError("Can only get item pairs from a mapping.");
        }
        yield Interpreter.generator(Methods.pairs(map));
      }
      case "join" -> {
        Object[] bound = args.bind(name, 0, "d", "attribute");
        StringBuilder out = new StringBuilder();
        String separator = "";
        for (Object item : Values.iterate(value)) {
          out.append(separator).append(Values.str(path(item, bound[1])));
          separator = bound[0] == null ? "" : Values.str(bound[0]);
        }
        yield out.toString();
      }
      case "list" -> new ArrayList<>(Values.iterate(value));
      case "lower" -> Values.str(value).toLowerCase(Locale.ROOT);
      case "upper" -> Values.str(value).toUpperCase(Locale.ROOT);
      case "map" -> map(value, args, interpreter);
      case "max" -> extreme(value, args.bind(name, 0, "case_sensitive", "attribute"), 1);
      case "min" -> extreme(value, args.bind(name, 0, "case_sensitive", "attribute"), -1);
      case "select" -> choose(value, args, false, true);
      case "reject" -> choose(value, args, false, false);
      case "selectattr" -> choose(value, args, true, true);
      case "rejectattr" -> choose(value, args, true, false);
      case "replace" -> {
        Object[] bound = args.bind(name, 2, "old", "new", "count");
        yield Methods.replace(
            Values.str(value),
            Values.str(bound[0]),
            Values.str(bound[1]),
            bound[2] == null ? -1 : Values.integer(bound[2]));
      }
      case "reverse" ->
          value instanceof String s
              ? new StringBuilder(s).reverse().toString()
              : Interpreter.generator(Values.reversed(Values.iterate(value)));
      case "round" -> round(value, args.bind(name, 0, "precision", "method"));
      case "safe", "string" -> {
        args.bind(name, 0);
        yield Values.str(value);
      }
      case "sort" -> sort(value, args.bind(name, 0, "reverse", "case_sensitive", "attribute"));
      case "sum" -> sum(value, args.bind(name, 0, "attribute", "start"));
      case "title" -> title(Values.str(value));
      case "tojson" -> toJson(value, args);
      case "trim" -> Methods.strip(Values.str(value), args.bind(name, 0, "chars")[0], true, true);
      case "truncate" ->
          truncate(Values.str(value), args.bind(name, 0, "length", "killwords", "end", "leeway"));
      case "unique" -> unique(value, args.bind(name, 0, "case_sensitive", "attribute"));
      case "wordcount" -> WORDS.matcher(Values.str(value)).results().count();
      default -> throw new TemplateError("no filter named '" + name + "'");
    };
  }

  /** A value reached by a dotted path; null as path is the value itself. */
  private static Object path(Object item, Object path) {
    if (path == null) {
      return item;
    }
    if (path instanceof Long index) {
      return Interpreter.item(item, index);
    }
    Object value = item;
    for (String part : Values.string(path, "attribute").split("\\.", -1)) {
      value =
          Interpreter.item(value, part.matches("\\d{1,9}") ? (Object) Long.valueOf(part) : part);
    }
    return value;
  }

  private static Object fold(Object value, boolean caseSensitive) {
    return !caseSensitive && value instanceof String s ? s.toLowerCase(Locale.ROOT) : value;
  }

  private static Object batch(Object value, Object[] bound) {
    long size = Values.integer(bound[0]);
    if (size < 1) {
      throw new TemplateError("batch size, expected>=1 actual=" + size);
    }
    List<Object> batches = new ArrayList<>();
    List<Object> row = new ArrayList<>();
    for (Object item : Values.iterate(value)) {
      if (row.size() == size) {
        batches.add(row);
        row = new ArrayList<>();
      }
      row.add(item);
    }
    if (!row.isEmpty()) {
      while (bound[1] != null && row.size() < Math.min(size, 1_000_000)) {
        row.add(bound[1]);
      }
      batches.add(row);
    }
    return Interpreter.generator(batches);
  }

  private static Object slice(Object value, Object[] bound) {
    List<Object> items = Values.iterate(value);
    long slices = Values.integer(bound[0]);
    if (slices < 1 || slices > 1_000_000) {
      throw new TemplateError("slices, expected=1 to 1000000 actual=" + slices);
    }
    int each = (int) (items.size() / slices);
    int longer = (int) (items.size() % slices);
    List<Object> result = new ArrayList<>();
    int from = 0;
    for (int i = 0; i < slices; i++) {
      int to = from + each + (i < longer ? 1 : 0);
      List<Object> part = new ArrayList<>(items.subList(from, to));
      if (bound[1] != null && i >= longer) {
        part.add(bound[1]);
      }
      result.add(part);
      from = to;
    }
    return Interpreter.generator(result);
  }

  private static Object dictSort(Object value, Object[] bound) {
    if (!(value instanceof Map<?, ?> map)) {
      throw new TemplateError("dictsort needs a mapping, actual='" + Values.type(value) + "'");
    }
    String by = bound[1] == null ? "key" : Values.str(bound[1]);
    if (!by.equals("key") && !by.equals("value")) {
      throw new TemplateError("You can only sort by either \"key\" or \"value\"");
    }
    boolean caseSensitive = Values.truth(bound[0]);
    List<Object> pairs = Methods.pairs(map);
    Comparator<Object> order =
        Comparator.comparing(
            pair -> fold(((Tuple) pair).items().get(by.equals("key") ? 0 : 1), caseSensitive),
            Values.order());
    pairs.sort(Values.truth(bound[2]) ? order.reversed() : order);
    return pairs;
  }

  private static Object toFloat(Object value, Object[] bound) {
    Object otherwise = bound[0] == null ? 0.0 : bound[0];
    if (Values.isNumber(value)) {
      return Values.real(value);
    }
    try {
      return value instanceof String s ? Double.valueOf(s.strip()) : otherwise;
    } catch (NumberFormatException e) {
      return otherwise;
    }
  }

  private static Object toInt(Object value, Object[] bound) {
    Object otherwise = bound[0] == null ? 0L : bound[0];
    int base = bound[1] == null ? 10 : (int) Values.integer(bound[1]);
    if (value instanceof Double d) {
      return Double.isFinite(d) ? (Object) (long) (double) d : otherwise;
    }
    if (Values.isNumber(value)) {
      return Values.integer(value);
    }
    if (!(value instanceof String s)) {
      return otherwise;
    }
    String digits = s.strip().replace("_", "");
    try {
      return Long.valueOf(base == 16 ? digits.replaceFirst("^0[xX]", "") : digits, base);
    } catch (NumberFormatException e) {
      try {
        return (long) Double.parseDouble(digits);
      } catch (NumberFormatException notEither) {
        return otherwise;
      }
    }
  }

  private static Object groupBy(Object value, Object[] bound) {
    boolean caseSensitive = Values.truth(bound[2]);
    Function<Object, Object> key =
        item -> {
          Object found = path(item, bound[0]);
          return fold(
              found instanceof Undefined && bound[1] != null ? bound[1] : found, caseSensitive);
        };
    List<Object> sorted = new ArrayList<>(Values.iterate(value));
    sorted.sort(Comparator.comparing(key, Values.order()));
    List<Object> groups = new ArrayList<>();
    List<Object> group = null;
    Object last = null;
    for (Object item : sorted) {
      Object current = key.apply(item);
      if (group == null || !Values.equal(last, current)) {
        group = new ArrayList<>();
        Object name = path(item, bound[0]);
        List<Object> pair = new ArrayList<>();
        pair.add(name instanceof Undefined && bound[1] != null ? bound[1] : name);
        pair.add(group);
        groups.add(new Tuple(pair, List.of("grouper", "list")));
        last = current;
      }
      group.add(item);
    }
    return groups;
  }

  private static String indent(String text, Object[] bound) {
    String space =
        bound[0] instanceof String s ? s : " ".repeat(width(bound[0] == null ? 4L : bound[0]));
    boolean first = Values.truth(bound[1]);
    boolean blank = Values.truth(bound[2]);
    // Jinja appends a line feed so that the last empty line counts.
    List<Object> lines = Methods.lines(text + "\n", false);
    StringBuilder out = new StringBuilder();
    for (int i = 0; i < lines.size(); i++) {
      String line = (String) lines.get(i);
      if (i > 0) {
        out.append('\n');
      }
      if (i == 0 ? first : blank || !line.isEmpty()) {
        out.append(space);
      }
      out.append(line);
    }
    return out.toString();
  }

  private static int width(Object value) {
    long width = Values.integer(value);
    if (width > 10_000) {
      throw new TemplateError("width, expected<=10000 actual=" + width);
    }
    return (int) Math.max(0, width);
  }

  private static Object map(Object value, Args args, Interpreter interpreter) {
    List<Object> result = new ArrayList<>();
    List<Object> items = Values.iterate(value);
    if (args.positional().isEmpty() && args.named().containsKey("attribute")) {
      Object[] bound = args.bind("map", 0, "attribute", "default");
      for (Object item : items) {
        Object found = path(item, bound[0]);
        result.add(found instanceof Undefined && bound[1] != null ? bound[1] : found);
      }
      return Interpreter.generator(result);
    }
    if (args.positional().isEmpty()) {
      throw new TemplateError("map requires a filter argument");
    }
    String filter = Values.string(args.get(0), "filter name");
    Args rest = new Args(args.positional().subList(1, args.positional().size()), args.named());
    for (Object item : items) {
      result.add(apply(filter, item, rest, interpreter));
    }
    return Interpreter.generator(result);
  }

  private static Object choose(Object value, Args args, boolean byAttribute, boolean wanted) {
    List<Object> given = args.positional();
    int skip = byAttribute ? 1 : 0;
    if (given.size() < skip) {
      throw new TemplateError("Missing parameter for attribute name");
    }
    String test = given.size() > skip ? Values.string(given.get(skip), "test name") : null;
    Args rest =
        test == null
            ? Interpreter.arguments()
            : new Args(given.subList(skip + 1, given.size()), args.named());
    List<Object> result = new ArrayList<>();
    for (Object item : Values.iterate(value)) {
      Object tested = byAttribute ? path(item, given.get(0)) : item;
      boolean holds = test == null ? Values.truth(tested) : Tests.apply(test, tested, rest);
      if (holds == wanted) {
        result.add(item);
      }
    }
    return Interpreter.generator(result);
  }

  private static Object extreme(Object value, Object[] bound, int sign) {
    boolean caseSensitive = Values.truth(bound[0]);
    Object best = null;
    Object bestKey = null;
    boolean any = false;
    for (Object item : Values.iterate(value)) {
      Object key = fold(path(item, bound[1]), caseSensitive);
      if (!any || Values.compare(key, bestKey, "<") * sign > 0) {
        best = item;
        bestKey = key;
        any = true;
      }
    }
    return any ? best : new Undefined("no aggregated item, sequence was empty");
  }

  private static Object round(Object value, Object[] bound) {
    long precision = bound[0] == null ? 0 : Values.integer(bound[0]);
    String method = bound[1] == null ? "common" : Values.str(bound[1]);
    Values.defined(value);
    if (Math.abs(precision) > 300) {
      throw new TemplateError("precision, expected=-300 to 300 actual=" + precision);
    }
    double number = Values.real(value);
    if (!Double.isFinite(number)) {
      return number;
    }
    double factor = Math.pow(10, precision);
    return switch (method) {
      case "common" -> {
        double rounded =
            new BigDecimal(number).setScale((int) precision, RoundingMode.HALF_EVEN).doubleValue();
        // Python rounds integers to integers; the filter leaves them so.
        yield value instanceof Double ? (Object) rounded : (Object) (long) rounded;
      }
      case "ceil" -> Math.ceil(number * factor) / factor;
      case "floor" -> Math.floor(number * factor) / factor;
      default -> throw new TemplateError("method must be common, ceil or floor");
    };
  }

  private static Object sort(Object value, Object[] bound) {
    boolean caseSensitive = Values.truth(bound[1]);
    List<Object> sorted = new ArrayList<>(Values.iterate(value));
    Comparator<Object> order =
        bound[2] == null
            ? Comparator.comparing(item -> fold(item, caseSensitive), Values.order())
            : Comparator.comparing(item -> keys(item, bound[2], caseSensitive), Values.order());
    sorted.sort(Values.truth(bound[0]) ? order.reversed() : order);
    return sorted;
  }

  /** Sort keys: several attributes may be given with commas. */
  private static Object keys(Object item, Object attribute, boolean caseSensitive) {
    List<Object> keys = new ArrayList<>();
    if (attribute instanceof String names) {
      for (String name : names.split(",", -1)) {
        keys.add(fold(path(item, name), caseSensitive));
      }
    } else {
      keys.add(fold(path(item, attribute), caseSensitive));
    }
    return keys;
  }

  private static Object sum(Object value, Object[] bound) {
    double real = 0;
    long whole = 0;
    boolean isReal = false;
    List<Object> items = new ArrayList<>(Values.iterate(value));
    items.addFirst(bound[1] == null ? 0L : bound[1]);
    for (int i = 0; i < items.size(); i++) {
      Object item = i == 0 ? items.get(0) : path(items.get(i), bound[0]);
      Values.defined(item);
      isReal |= item instanceof Double;
      real += Values.real(item);
      try {
        whole = item instanceof Double ? whole : Math.addExact(whole, Values.integer(item));
      } catch (ArithmeticException e) {
        throw new TemplateError("integer out of range in 'sum'");
      }
    }
    return isReal ? (Object) real : (Object) whole;
  }

  private static String title(String text) {
    StringBuilder out = new StringBuilder();
    Matcher matcher = WORD_START.matcher(text);
    int from = 0;
    while (matcher.find()) {
      out.append(Methods.capitalize(text.substring(from, matcher.start()))).append(matcher.group());
      from = matcher.end();
    }
    return out.append(Methods.capitalize(text.substring(from))).toString();
  }

  private static String toJson(Object value, Args args) {
    Object[] bound = args.bind("tojson", 0, "ensure_ascii", "indent", "separators", "sort_keys");
    String indent =
        bound[1] == null ? null : bound[1] instanceof String s ? s : " ".repeat(width(bound[1]));
    String items = indent == null ? ", " : ",";
    String keys = ": ";
    if (bound[2] != null) {
      List<Object> separators = Values.iterate(bound[2]);
      if (separators.size() != 2) {
        throw new TemplateError("separators, expected=2 actual=" + separators.size());
      }
      items = Values.str(separators.get(0));
      keys = Values.str(separators.get(1));
    }
    return new Json(items, keys, indent, Values.truth(bound[0]), Values.truth(bound[3]))
        .write(value);
  }

  private static String truncate(String text, Object[] bound) {
    long length = bound[0] == null ? 255 : Values.integer(bound[0]);
    String end = bound[2] == null ? "..." : Values.str(bound[2]);
    long leeway = bound[3] == null ? 5 : Values.integer(bound[3]);
    if (length < Values.length(end)) {
      throw new TemplateError("expected length >= " + Values.length(end) + ", actual=" + length);
    }
    if (Values.length(text) <= length + leeway) {
      return text;
    }
    String cut = text.substring(0, text.offsetByCodePoints(0, (int) (length - Values.length(end))));
    int space = cut.lastIndexOf(' ');
    return (Values.truth(bound[1]) || space < 0 ? cut : cut.substring(0, space)) + end;
  }

  private static Object unique(Object value, Object[] bound) {
    boolean caseSensitive = Values.truth(bound[0]);
    Map<Object, Object> seen = new LinkedHashMap<>();
    for (Object item : Values.iterate(value)) {
      seen.putIfAbsent(Values.key(fold(path(item, bound[1]), caseSensitive)), item);
    }
    return Interpreter.generator(new ArrayList<>(seen.values()));
  }
}
