package io.fletch.runtime.template;

import io.fletch.runtime.template.Values.Args;
import io.fletch.runtime.template.Values.Function;
import io.fletch.runtime.template.Values.Iter;
import io.fletch.runtime.template.Values.Namespace;
import io.fletch.runtime.template.Values.Tuple;
import io.fletch.runtime.template.Values.Undefined;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** One rendering of a template. Not thread-safe. */
final class Interpreter {
  /** Characters of output and of strings on the way to it. */
  static final long MAX_CHARACTERS = 64L << 20;

  /** Evaluated nodes and touched items. */
  static final long MAX_STEPS = 20_000_000;

  private static final int MAX_CALLS = 100;
  private static final int MAX_RANGE = 100_000;

  private enum Flow {
    NORMAL,
    BREAK,
    CONTINUE
  }

  /** Variables of a block; names that are not here are looked up outside. */
  private record Scope(Map<String, Object> variables, Scope outer) {
    Scope inner() {
      return new Scope(new HashMap<>(), this);
    }

    void set(String name, Object value) {
      variables.put(name, value);
    }
  }

  private long steps;
  private long characters;
  private int calls;
  private int line;

  /** The line of the statement that runs. */
  int line() {
    return line;
  }

  /** Runs a template. */
  String run(List<Stmt> body, Map<String, Object> context) {
    Scope globals = new Scope(new HashMap<>(), null);
    globals.set("range", (Function) this::range);
    globals.set("dict", (Function) args -> new LinkedHashMap<Object, Object>(mapping(args)));
    globals.set("namespace", (Function) args -> new Namespace(mapping(args)));
    globals.set("joiner", (Function) Interpreter::joiner);
    globals.set("cycler", (Function) args -> cycler(args));
    globals.variables.putAll(context);
    StringBuilder out = new StringBuilder();
    exec(body, globals.inner(), out);
    return out.toString();
  }

  private void step(long count) {
    steps += count;
    if (steps > MAX_STEPS) {
      throw new TemplateError("more than " + MAX_STEPS + " steps");
    }
  }

  private String charge(String text) {
    characters += text.length();
    if (characters > MAX_CHARACTERS) {
      throw new TemplateError("more than " + MAX_CHARACTERS + " characters");
    }
    return text;
  }

  // Statements

  private Flow exec(List<Stmt> body, Scope scope, StringBuilder out) {
    for (Stmt stmt : body) {
      step(1);
      Flow flow = exec(stmt, scope, out);
      if (flow != Flow.NORMAL) {
        return flow;
      }
    }
    return Flow.NORMAL;
  }

  private Flow exec(Stmt stmt, Scope scope, StringBuilder out) {
    switch (stmt) {
      case Stmt.Text text -> out.append(charge(text.text()));
      case Stmt.Output output -> {
        line = output.line();
        out.append(charge(Values.str(eval(output.expr(), scope))));
      }
      case Stmt.If branch -> {
        for (int i = 0; i < branch.conditions().size(); i++) {
          line = branch.line();
          Expr condition = branch.conditions().get(i);
          if (condition == null || Values.truth(eval(condition, scope))) {
            return exec(branch.bodies().get(i), scope, out);
          }
        }
      }
      case Stmt.For loop -> {
        return loop(loop, scope, out);
      }
      case Stmt.Set set -> {
        line = set.line();
        assign(set.target(), eval(set.value(), scope), scope);
      }
      case Stmt.SetBlock set -> {
        line = set.line();
        Object text = body(set.body(), scope.inner());
        assign(
            set.target(), set.filter() == null ? text : filter(set.filter(), text, scope), scope);
      }
      case Stmt.Macro macro -> scope.set(macro.name(), macro(macro, scope));
      case Stmt.CallBlock call -> {
        line = call.line();
        Expr.Call target = (Expr.Call) call.call();
        Args args = args(target.arguments(), scope);
        Map<String, Object> named = new LinkedHashMap<>(args.named());
        named.put("caller", macro(call.caller(), scope));
        Object function = eval(target.function(), scope);
        out.append(charge(Values.str(call(function, new Args(args.positional(), named)))));
      }
      case Stmt.FilterBlock block -> {
        line = block.line();
        String text = body(block.body(), scope.inner());
        out.append(charge(Values.str(filter(block.filter(), text, scope))));
      }
      case Stmt.With with -> {
        line = with.line();
        Scope inner = scope.inner();
        for (int i = 0; i < with.targets().size(); i++) {
          assign(with.targets().get(i), eval(with.values().get(i), scope), inner);
        }
        return exec(with.body(), inner, out);
      }
      case Stmt.Generation generation -> {
        return exec(generation.body(), scope.inner(), out);
      }
      case Stmt.Break _ -> {
        return Flow.BREAK;
      }
      case Stmt.Continue _ -> {
        return Flow.CONTINUE;
      }
    }
    return Flow.NORMAL;
  }

  private String body(List<Stmt> body, Scope scope) {
    StringBuilder out = new StringBuilder();
    exec(body, scope, out);
    return out.toString();
  }

  private Flow loop(Stmt.For loop, Scope scope, StringBuilder out) {
    line = loop.line();
    List<Object> items = Values.iterate(eval(loop.items(), scope));
    if (loop.condition() != null) {
      List<Object> kept = new ArrayList<>();
      for (Object item : items) {
        step(1);
        Scope inner = scope.inner();
        assign(loop.target(), item, inner);
        if (Values.truth(eval(loop.condition(), inner))) {
          kept.add(item);
        }
      }
      items = kept;
    }
    if (items.isEmpty()) {
      return exec(loop.otherwise(), scope.inner(), out);
    }
    Loop state = new Loop(items);
    for (int i = 0; i < items.size(); i++) {
      step(1);
      state.index = i;
      Scope inner = scope.inner();
      inner.set("loop", state);
      assign(loop.target(), items.get(i), inner);
      if (exec(loop.body(), inner, out) == Flow.BREAK) {
        break;
      }
    }
    return Flow.NORMAL;
  }

  private void assign(Stmt.Target target, Object value, Scope scope) {
    switch (target) {
      case Stmt.Target.Variable variable -> scope.set(variable.name(), value);
      case Stmt.Target.Field field -> {
        if (!(name(field.object(), scope) instanceof Namespace namespace)) {
          throw new TemplateError("cannot assign attribute on non-namespace object");
        }
        namespace.fields().put(field.name(), value);
      }
      case Stmt.Target.Several several -> {
        List<Object> items = Values.iterate(Values.defined(value));
        if (items.size() != several.targets().size()) {
          throw new TemplateError(
              "wrong number of values to unpack, expected="
                  + several.targets().size()
                  + " actual="
                  + items.size());
        }
        for (int i = 0; i < items.size(); i++) {
          assign(several.targets().get(i), items.get(i), scope);
        }
      }
    }
  }

  /** The variable {@code loop}. */
  private static final class Loop {
    final List<Object> items;
    int index;
    List<Object> last;

    Loop(List<Object> items) {
      this.items = items;
    }

    Object attribute(String name) {
      long size = items.size();
      return switch (name) {
        case "index" -> index + 1L;
        case "index0" -> (long) index;
        case "revindex" -> size - index;
        case "revindex0" -> size - index - 1;
        case "first" -> index == 0;
        case "last" -> index == size - 1;
        case "length" -> size;
        case "depth" -> 1L;
        case "depth0" -> 0L;
        case "previtem" ->
            index > 0 ? items.get(index - 1) : new Undefined("there is no previous item");
        case "nextitem" ->
            index + 1 < size ? items.get(index + 1) : new Undefined("there is no next item");
        case "cycle" -> (Function) args -> args.get(index % args.positional().size());
        case "changed" ->
            (Function)
                args -> {
                  boolean changed = last == null || !Values.equal(last, args.positional());
                  last = args.positional();
                  return changed;
                };
        default -> new Undefined("'loop' has no attribute '" + name + "'");
      };
    }
  }

  private Function macro(Stmt.Macro macro, Scope defined) {
    return args -> {
      if (++calls > MAX_CALLS) {
        throw new TemplateError("macro calls nested deeper than " + MAX_CALLS);
      }
      Scope scope = defined.inner();
      List<Object> rest = new ArrayList<>();
      Map<Object, Object> others = new LinkedHashMap<>();
      int parameters = macro.parameters().size();
      for (int i = 0; i < args.positional().size(); i++) {
        if (i < parameters) {
          scope.set(macro.parameters().get(i), args.get(i));
        } else {
          rest.add(args.get(i));
        }
      }
      args.named()
          .forEach((name, value) -> {
            if (macro.parameters().contains(name)) {
              if (scope.variables().containsKey(name)) {
                throw new TemplateError(
                    "macro '" + macro.name() + "' got two values for '" + name + "'");
              }
              scope.set(name, value);
            } else if (name.equals("caller")) {
              scope.set(name, value);
            } else {
              others.put(name, value);
            }
          });
      int optional = parameters - macro.defaults().size();
      for (int i = 0; i < parameters; i++) {
        String name = macro.parameters().get(i);
        if (!scope.variables().containsKey(name)) {
          scope.set(
              name,
              i >= optional
                  ? eval(macro.defaults().get(i - optional), scope)
                  : new Undefined("parameter '" + name + "' was not provided"));
        }
      }
      if (!rest.isEmpty() && !macro.varargs()) {
        throw new TemplateError(
            "macro '" + macro.name() + "' takes not more than " + parameters + " argument(s)");
      }
      if (!others.isEmpty() && !macro.kwargs()) {
        throw new TemplateError(
            "macro '"
                + macro.name()
                + "' takes no keyword argument '"
                + others.keySet().iterator().next()
                + "'");
      }
      scope.set("varargs", new Tuple(rest));
      scope.set("kwargs", others);
      int outerLine = line;
      String text = body(macro.body(), scope);
      line = outerLine;
      calls--;
      return text;
    };
  }

  // Expressions

  private Object eval(Expr expr, Scope scope) {
    step(1);
    return switch (expr) {
      case Expr.Const constant -> constant.value();
      case Expr.Name name -> name(name.name(), scope);
      case Expr.Items items -> {
        List<Object> values = evalAll(items.items(), scope);
        yield items.tuple() ? new Tuple(values) : values;
      }
      case Expr.Dict dict -> {
        Map<Object, Object> map = new LinkedHashMap<>();
        for (int i = 0; i < dict.keys().size(); i++) {
          map.put(Values.key(eval(dict.keys().get(i), scope)), eval(dict.values().get(i), scope));
        }
        yield map;
      }
      case Expr.Attribute attribute -> attribute(eval(attribute.object(), scope), attribute.name());
      case Expr.Item item -> item(eval(item.object(), scope), eval(item.index(), scope));
      case Expr.Slice slice -> slice(slice, scope);
      case Expr.Call call -> call(eval(call.function(), scope), args(call.arguments(), scope));
      case Expr.Filter filter -> filter(filter, null, scope);
      case Expr.Test test ->
          Tests.apply(test.name(), eval(test.object(), scope), args(test.arguments(), scope));
      case Expr.Unary unary -> unary(unary.operator(), eval(unary.operand(), scope));
      case Expr.Binary binary ->
          binary(binary.operator(), eval(binary.left(), scope), eval(binary.right(), scope));
      case Expr.Logical logical -> {
        Object left = eval(logical.left(), scope);
        yield Values.truth(left) == logical.and() ? eval(logical.right(), scope) : left;
      }
      case Expr.Compare compare -> compare(compare, scope);
      case Expr.Conditional conditional -> {
        if (Values.truth(eval(conditional.condition(), scope))) {
          yield eval(conditional.then(), scope);
        }
        yield conditional.otherwise() == null
            ? new Undefined("the inline if-expression evaluated to false and has no else")
            : eval(conditional.otherwise(), scope);
      }
    };
  }

  private List<Object> evalAll(List<Expr> exprs, Scope scope) {
    List<Object> values = new ArrayList<>(exprs.size());
    for (Expr expr : exprs) {
      values.add(eval(expr, scope));
    }
    return values;
  }

  private static Object name(String name, Scope scope) {
    for (Scope at = scope; at != null; at = at.outer()) {
      Object value = at.variables().get(name);
      if (value != null || at.variables().containsKey(name)) {
        return value;
      }
    }
    return new Undefined("'" + name + "' is undefined");
  }

  private Args args(Expr.Arguments arguments, Scope scope) {
    List<Object> positional = evalAll(arguments.positional(), scope);
    Map<String, Object> named = new LinkedHashMap<>();
    for (int i = 0; i < arguments.names().size(); i++) {
      if (named.containsKey(arguments.names().get(i))) {
        throw new TemplateError("argument '" + arguments.names().get(i) + "' given twice");
      }
      named.put(arguments.names().get(i), eval(arguments.named().get(i), scope));
    }
    if (arguments.star() != null) {
      positional.addAll(Values.iterate(eval(arguments.star(), scope)));
    }
    if (arguments.starStar() != null) {
      if (!(eval(arguments.starStar(), scope) instanceof Map<?, ?> map)) {
        throw new TemplateError("argument after ** must be a mapping");
      }
      map.forEach((key, value) -> named.put(Values.string(key, "keywords"), value));
    }
    return new Args(positional, named);
  }

  private Object call(Object function, Args args) {
    step(1);
    Values.defined(function);
    if (!(function instanceof Function callable)) {
      throw new TemplateError("'" + Values.type(function) + "' object is not callable");
    }
    Object result = callable.call(args);
    if (result instanceof String text) {
      charge(text);
    }
    return result;
  }

  /** Applies a filter chain; {@code innermost} stands where the chain has no object. */
  private Object filter(Expr expr, Object innermost, Scope scope) {
    if (!(expr instanceof Expr.Filter filter)) {
      return expr == null ? innermost : eval(expr, scope);
    }
    Object object = filter(filter.object(), innermost, scope);
    if (Values.isIterable(object) && !(object instanceof String)) {
      step(Values.iterate(object).size());
    }
    Object result = Filters.apply(filter.name(), object, args(filter.arguments(), scope), this);
    if (result instanceof String text) {
      charge(text);
    }
    return result;
  }

  /** {@code object.name}: a method first, then an item. */
  static Object attribute(Object object, String name) {
    Values.defined(object);
    if (object instanceof Loop loop) {
      return loop.attribute(name);
    }
    if (object instanceof Namespace namespace) {
      return namespace.fields().containsKey(name)
          ? namespace.fields().get(name)
          : missing(object, name);
    }
    if (object instanceof Map<?, ?> map) {
      Function method = Methods.find(object, name);
      return method != null
          ? method
          : map.containsKey(name) ? map.get(name) : missing(object, name);
    }
    if (object instanceof Tuple tuple && tuple.names().contains(name)) {
      return tuple.items().get(tuple.names().indexOf(name));
    }
    Function method = Methods.find(object, name);
    return method != null ? method : missing(object, name);
  }

  private static Undefined missing(Object object, String name) {
    return new Undefined("'" + Values.type(object) + "' has no attribute '" + name + "'");
  }

  /** {@code object[index]}: an item first, then a method. */
  static Object item(Object object, Object index) {
    Values.defined(object);
    if (object instanceof Map<?, ?> map) {
      if (!(index instanceof List || index instanceof Map) && map.containsKey(index)) {
        return map.get(index);
      }
    } else if (index instanceof Long || index instanceof Boolean) {
      long at = Values.integer(index);
      if (object instanceof String s) {
        int size = s.codePointCount(0, s.length());
        long absolute = at < 0 ? at + size : at;
        if (absolute >= 0 && absolute < size) {
          return Character.toString(s.codePointAt(s.offsetByCodePoints(0, (int) absolute)));
        }
      } else if (object instanceof List<?> || object instanceof Tuple) {
        List<Object> items = Values.iterate(object);
        long absolute = at < 0 ? at + items.size() : at;
        if (absolute >= 0 && absolute < items.size()) {
          return items.get((int) absolute);
        }
      }
      return new Undefined(
          "'" + Values.type(object) + "' object has no element " + Values.str(index));
    }
    if (index instanceof String name) {
      if (object instanceof Map) {
        Function method = Methods.find(object, name);
        return method != null ? method : missing(object, name);
      }
      return attribute(object, name);
    }
    return new Undefined(
        "'" + Values.type(object) + "' object has no element " + Values.str(index));
  }

  private Object slice(Expr.Slice slice, Scope scope) {
    Object object = Values.defined(eval(slice.object(), scope));
    Object from = slice.from() == null ? null : eval(slice.from(), scope);
    Object to = slice.to() == null ? null : eval(slice.to(), scope);
    Object step = slice.step() == null ? null : eval(slice.step(), scope);
    step(Values.length(object));
    return switch (object) {
      case String s -> Values.concat(Values.slice(Values.iterate(s), from, to, step));
      case List<?> list -> Values.slice(Values.iterate(list), from, to, step);
      case Tuple tuple -> new Tuple(Values.slice(tuple.items(), from, to, step));
      default -> throw new TemplateError("'" + Values.type(object) + "' object cannot be sliced");
    };
  }

  private Object unary(String operator, Object value) {
    if (operator.equals("not")) {
      return !Values.truth(value);
    }
    Values.defined(value);
    if (!Values.isNumber(value)) {
      throw new TemplateError(
          "bad operand type for unary " + operator + ": '" + Values.type(value) + "'");
    }
    boolean minus = operator.equals("-");
    if (value instanceof Double d) {
      return minus ? -d : d;
    }
    long l = Values.integer(value);
    return minus ? Math.negateExact(l) : l;
  }

  private boolean compare(Expr.Compare compare, Scope scope) {
    Object left = eval(compare.first(), scope);
    for (int i = 0; i < compare.operators().size(); i++) {
      Object right = eval(compare.operands().get(i), scope);
      String operator = compare.operators().get(i);
      boolean holds =
          switch (operator) {
            case "==" -> Values.equal(left, right);
            case "!=" -> !Values.equal(left, right);
            case "in" -> Values.contains(right, left);
            case "not in" -> !Values.contains(right, left);
            default -> {
              int order = Values.compare(left, right, operator);
              yield switch (operator) {
                case "<" -> order < 0;
                case "<=" -> order <= 0;
                case ">" -> order > 0;
                default -> order >= 0;
              };
            }
          };
      if (!holds) {
        return false;
      }
      left = right;
    }
    return true;
  }

  private Object binary(String operator, Object left, Object right) {
    if (operator.equals("~")) {
      return charge(Values.str(left) + Values.str(right));
    }
    Values.defined(left);
    Values.defined(right);
    try {
      if (Values.isNumber(left) && Values.isNumber(right)) {
        return left instanceof Double || right instanceof Double || operator.equals("/")
            ? real(operator, Values.real(left), Values.real(right))
            : integer(operator, Values.integer(left), Values.integer(right));
      }
    } catch (ArithmeticException e) {
      throw new TemplateError("integer out of range in '" + operator + "'");
    }
    if (operator.equals("+")) {
      if (left instanceof String a && right instanceof String b) {
        return charge(a + b);
      }
      if (left instanceof List<?> && right instanceof List<?>) {
        return joined(left, right);
      }
      if (left instanceof Tuple && right instanceof Tuple) {
        return new Tuple(joined(left, right));
      }
    }
    if (operator.equals("*")) {
      Object repeated = left instanceof Long ? right : left;
      Object count = left instanceof Long ? left : right;
      if (count instanceof Long times && !Values.isNumber(repeated) && repeated != null) {
        return repeat(repeated, Math.max(0, times));
      }
    }
    if (operator.equals("%") && left instanceof String format) {
      return charge(
          Methods.format(format, right instanceof Tuple tuple ? tuple.items() : List.of(right)));
    }
    throw new TemplateError(
        "unsupported operand type(s) for "
            + operator
            + ": '"
            + Values.type(left)
            + "' and '"
            + Values.type(right)
            + "'");
  }

  private List<Object> joined(Object left, Object right) {
    List<Object> result = new ArrayList<>(Values.iterate(left));
    result.addAll(Values.iterate(right));
    step(result.size());
    return result;
  }

  private Object repeat(Object value, long times) {
    long length = Values.length(value);
    if (length > 0 && times > MAX_CHARACTERS / length) {
      throw new TemplateError("more than " + MAX_CHARACTERS + " characters");
    }
    if (value instanceof String s) {
      return charge(s.repeat((int) times));
    }
    step(length * times);
    List<Object> result = new ArrayList<>();
    for (long i = 0; i < times; i++) {
      result.addAll(Values.iterate(value));
    }
    return value instanceof Tuple ? new Tuple(result) : result;
  }

  private static Object integer(String operator, long a, long b) {
    return switch (operator) {
      case "+" -> Math.addExact(a, b);
      case "-" -> Math.subtractExact(a, b);
      case "*" -> Math.multiplyExact(a, b);
      case "//" -> Math.floorDiv(a, nonzero(b));
      case "%" -> Math.floorMod(a, nonzero(b));
      case "**" -> {
        if (b < 0) {
          yield Math.pow(a, b);
        }
        long result = 1;
        if (a == 0 || a == 1) {
          yield b == 0 ? 1 : a;
        }
        if (a == -1) {
          yield b % 2 == 0 ? 1L : -1L;
        }
        for (long i = 0; i < b; i++) {
          result = Math.multiplyExact(result, a);
        }
        yield result;
      }
      default -> throw new TemplateError("operator " + operator);
    };
  }

  private static long nonzero(long divisor) {
    if (divisor == 0) {
      throw new TemplateError("division by zero");
    }
    return divisor;
  }

  private static Object real(String operator, double a, double b) {
    if (b == 0 && (operator.equals("/") || operator.equals("//") || operator.equals("%"))) {
      throw new TemplateError("division by zero");
    }
    return switch (operator) {
      case "+" -> a + b;
      case "-" -> a - b;
      case "*" -> a * b;
      case "/" -> a / b;
      case "//" -> Math.floor(a / b);
      case "%" -> a - Math.floor(a / b) * b;
      default -> Math.pow(a, b);
    };
  }

  // Functions

  private Object range(Args args) {
    long[] bounds = args.positional().stream().mapToLong(Values::integer).toArray();
    if (bounds.length < 1 || bounds.length > 3 || !args.named().isEmpty()) {
      throw new TemplateError("range() takes 1 to 3 arguments, actual=" + args.count());
    }
    long from = bounds.length == 1 ? 0 : bounds[0];
    long to = bounds.length == 1 ? bounds[0] : bounds[1];
    long stride = bounds.length == 3 ? bounds[2] : 1;
    if (stride == 0) {
      throw new TemplateError("range() step must not be zero");
    }
    List<Object> items = new ArrayList<>();
    for (long i = from; stride > 0 ? i < to : i > to; i += stride) {
      if (items.size() >= MAX_RANGE) {
        throw new TemplateError("range too big, expected<=" + MAX_RANGE);
      }
      items.add(i);
    }
    step(items.size());
    return items;
  }

  private static Map<Object, Object> mapping(Args args) {
    Map<Object, Object> map = new LinkedHashMap<>();
    for (Object source : args.positional()) {
      Object fields = Values.defined(source);
      if (fields instanceof Namespace namespace) {
        map.putAll(namespace.fields());
      } else if (fields instanceof Map<?, ?> other) {
        map.putAll(other);
      } else {
        for (Object pair : Values.iterate(fields)) {
          List<Object> items = Values.iterate(pair);
          if (items.size() != 2) {
            throw new TemplateError("dict() needs pairs, actual length=" + items.size());
          }
          map.put(Values.key(items.get(0)), items.get(1));
        }
      }
    }
    map.putAll(args.named());
    return map;
  }

  private static Object joiner(Args args) {
    Object separator = args.bind("joiner", 0, "sep")[0];
    String text = separator == null ? ", " : Values.str(separator);
    boolean[] used = {false};
    return (Function)
        ignored -> {
          boolean first = !used[0];
          used[0] = true;
          return first ? "" : text;
        };
  }

  private static Object cycler(Args args) {
    if (args.positional().isEmpty()) {
      throw new TemplateError("cycler() needs at least one item");
    }
    int[] at = {0};
    List<Object> items = args.positional();
    Map<Object, Object> fields = new LinkedHashMap<>();
    fields.put(
        "next",
        (Function)
            ignored -> {
              Object item = items.get(at[0]);
              at[0] = (at[0] + 1) % items.size();
              return item;
            });
    fields.put(
        "reset",
        (Function)
            ignored -> {
              at[0] = 0;
              return null;
            });
    return new Namespace(fields);
  }

  /** An iterator over the results, as filters give it. */
  static Iter generator(List<Object> items) {
    return new Iter("generator", items, false);
  }

  static Args arguments(Object... values) {
    return new Args(Arrays.asList(values), Map.of());
  }
}
