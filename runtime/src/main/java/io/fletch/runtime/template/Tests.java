package io.fletch.runtime.template;

import io.fletch.runtime.template.Values.Args;
import io.fletch.runtime.template.Values.Function;
import io.fletch.runtime.template.Values.Iter;
import io.fletch.runtime.template.Values.Tuple;
import io.fletch.runtime.template.Values.Undefined;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** The tests of Jinja ({@code is defined}, ...). */
final class Tests {
  private static final Set<String> NAMES =
      Set.of(
          "boolean",
          "callable",
          "defined",
          "divisibleby",
          "eq",
          "equalto",
          "==",
          "even",
          "false",
          "filter",
          "float",
          "ge",
          ">=",
          "gt",
          "greaterthan",
          ">",
          "in",
          "integer",
          "iterable",
          "le",
          "<=",
          "lower",
          "lt",
          "lessthan",
          "<",
          "mapping",
          "ne",
          "!=",
          "none",
          "number",
          "odd",
          "sameas",
          "sequence",
          "string",
          "test",
          "true",
          "undefined",
          "upper");

  private Tests() {}

  static boolean exists(String name) {
    return NAMES.contains(name);
  }

  static boolean apply(String name, Object value, Args args) {
    if (!exists(name)) {
      throw new TemplateError("no test named '" + name + "'");
    }
    return switch (name) {
      case "divisibleby" -> Values.integer(value) % divisor(Values.integer(one(name, args))) == 0;
      case "eq", "equalto", "==" -> Values.equal(value, one(name, args));
      case "ne", "!=" -> !Values.equal(value, one(name, args));
      case "lt", "lessthan", "<" -> Values.compare(value, one(name, args), "<") < 0;
      case "le", "<=" -> Values.compare(value, one(name, args), "<=") <= 0;
      case "gt", "greaterthan", ">" -> Values.compare(value, one(name, args), ">") > 0;
      case "ge", ">=" -> Values.compare(value, one(name, args), ">=") >= 0;
      case "in" -> Values.contains(one(name, args), value);
      case "sameas" -> same(value, one(name, args));
      default -> {
        if (args.count() > 0) {
          throw new TemplateError("test '" + name + "' takes no arguments");
        }
        yield plain(name, value);
      }
    };
  }

  private static boolean plain(String name, Object value) {
    return switch (name) {
      case "boolean" -> value instanceof Boolean;
      case "callable" -> value instanceof Function;
      case "defined" -> !(value instanceof Undefined);
      case "undefined" -> value instanceof Undefined;
      case "even" -> Math.floorMod(Values.integer(value), 2) == 0;
      case "odd" -> Math.floorMod(Values.integer(value), 2) == 1;
      case "true" -> value instanceof Boolean b && b;
      case "false" -> value instanceof Boolean b && !b;
      case "filter" -> value instanceof String s && Filters.exists(s);
      case "test" -> value instanceof String s && exists(s);
      case "float" -> value instanceof Double;
      case "integer" -> value instanceof Long;
      case "number" -> Values.isNumber(value);
      case "string" -> value instanceof String;
      case "mapping" -> value instanceof Map;
      case "none" -> value == null;
      case "iterable" -> Values.isIterable(value);
      case "sequence" ->
          value instanceof String
              || value instanceof List
              || value instanceof Tuple
              || value instanceof Map
              || value instanceof Undefined
              || value instanceof Iter iter && iter.type().equals("range");
      case "lower" -> Methods.isCased(Values.str(value), true);
      case "upper" -> Methods.isCased(Values.str(value), false);
      default -> throw new TemplateError("no test named '" + name + "'");
    };
  }

  private static Object one(String name, Args args) {
    if (args.positional().size() != 1 || !args.named().isEmpty()) {
      throw new TemplateError("test '" + name + "' takes one argument");
    }
    return args.get(0);
  }

  private static long divisor(long value) {
    if (value == 0) {
      throw new TemplateError("division by zero");
    }
    return value;
  }

  private static boolean same(Object a, Object b) {
    return a == b
        || a != null
            && b != null
            && a.getClass() == b.getClass()
            && (a instanceof Boolean || a instanceof Long || a instanceof String)
            && a.equals(b);
  }
}
