package io.fletch.runtime.template;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/** Recursive descent over the tokens of a template; the grammar is that of Jinja 2. */
final class Parser {
  private static final int MAX_DEPTH = 150;
  private static final Set<String> RESERVED =
      Set.of(
          "true", "True", "false", "False", "none", "None", "and", "or", "not", "if", "else", "in",
          "is", "elif", "for");

  private final List<Token> tokens;
  private int at;
  private int depth;
  private int loops;
  private boolean varargs;
  private boolean kwargs;
  private int line;

  private Parser(List<Token> tokens) {
    this.tokens = tokens;
  }

  /** The statements of a template. */
  static List<Stmt> parse(String source) {
    Parser parser = new Parser(Lexer.tokens(source));
    try {
      List<Stmt> body = parser.body();
      if (parser.peek().kind() != Token.Kind.END) {
        throw new TemplateError(
            "unexpected tag '" + parser.tokens.get(parser.at + 1).value() + "'");
      }
      return body;
    } catch (TemplateError e) {
      throw new TemplateError(
          "line " + Math.max(parser.line, parser.peek().line()) + ": " + e.getMessage());
    }
  }

  private Token peek() {
    return tokens.get(at);
  }

  private Token next() {
    Token token = tokens.get(at);
    line = token.line();
    if (token.kind() != Token.Kind.END) {
      at++;
    }
    return token;
  }

  private boolean skipOperator(String operator) {
    boolean found = peek().isOperator(operator);
    at += found ? 1 : 0;
    return found;
  }

  private boolean skipName(String name) {
    boolean found = peek().isName(name);
    at += found ? 1 : 0;
    return found;
  }

  private void expectOperator(String operator) {
    if (!skipOperator(operator)) {
      throw new TemplateError("expected '" + operator + "', found " + peek().describe());
    }
  }

  private void expect(Token.Kind kind, String what) {
    if (peek().kind() != kind) {
      throw new TemplateError("expected " + what + ", found " + peek().describe());
    }
    next();
  }

  private String expectName() {
    if (peek().kind() != Token.Kind.NAME) {
      throw new TemplateError("expected a name, found " + peek().describe());
    }
    return (String) next().value();
  }

  private void deeper() {
    if (++depth > MAX_DEPTH) {
      throw new TemplateError("nesting deeper than " + MAX_DEPTH);
    }
  }

  // Statements

  /** Statements up to a tag that one of the callers waits for. */
  private List<Stmt> body(String... ends) {
    deeper();
    List<Stmt> body = new ArrayList<>();
    while (true) {
      Token token = peek();
      switch (token.kind()) {
        case END -> {
          if (ends.length > 0) {
            throw new TemplateError("missing tag '" + ends[0] + "'");
          }
          depth--;
          return body;
        }
        case DATA -> body.add(new Stmt.Text((String) next().value()));
        case OUTPUT_BEGIN -> {
          next();
          Expr expr = tuple(true);
          expect(Token.Kind.OUTPUT_END, "'}}'");
          body.add(new Stmt.Output(expr, token.line()));
        }
        case BLOCK_BEGIN -> {
          for (String end : ends) {
            if (tokens.get(at + 1).isName(end)) {
              depth--;
              return body;
            }
          }
          if (ends.length == 0
              && tokens.get(at + 1).kind() == Token.Kind.NAME
              && ((String) tokens.get(at + 1).value()).matches("end.*|else|elif")) {
            depth--;
            return body;
          }
          next();
          body.add(statement());
        }
        default -> throw new TemplateError("unexpected " + token.describe());
      }
    }
  }

  private void blockEnd() {
    expect(Token.Kind.BLOCK_END, "'%}'");
  }

  /** Moves over the tag that {@link #body} stopped at; returns its name. */
  private String endTag() {
    next();
    return expectName();
  }

  private Stmt statement() {
    int start = peek().line();
    String tag = expectName();
    return switch (tag) {
      case "if" -> ifStatement(start);
      case "for" -> forStatement(start);
      case "set" -> set(start);
      case "macro" -> {
        String name = expectName();
        yield macro(name, signature(), "endmacro", start);
      }
      case "call" -> {
        Signature signature =
            peek().isOperator("(") ? signature() : new Signature(List.of(), List.of());
        Expr call = expression();
        if (!(call instanceof Expr.Call)) {
          throw new TemplateError("expected a call");
        }
        yield new Stmt.CallBlock(call, macro("caller", signature, "endcall", start), start);
      }
      case "filter" -> {
        Expr filter = filters(null, true);
        yield new Stmt.FilterBlock(filter, block("endfilter"), start);
      }
      case "with" -> with(start);
      case "generation" -> new Stmt.Generation(block("endgeneration"));
      case "break", "continue" -> {
        blockEnd();
        if (loops == 0) {
          throw new TemplateError("'" + tag + "' outside of a loop");
        }
        yield tag.equals("break") ? new Stmt.Break() : new Stmt.Continue();
      }
      default -> throw new TemplateError("tag '" + tag + "' is not supported");
    };
  }

  private List<Stmt> block(String end) {
    blockEnd();
    List<Stmt> body = body(end);
    endTag();
    blockEnd();
    return body;
  }

  private Stmt ifStatement(int start) {
    List<Expr> conditions = new ArrayList<>();
    List<List<Stmt>> bodies = new ArrayList<>();
    String tag = "elif";
    while (!tag.equals("endif")) {
      conditions.add(tag.equals("elif") ? tuple(false) : null);
      blockEnd();
      bodies.add(tag.equals("elif") ? body("elif", "else", "endif") : body("endif"));
      tag = endTag();
    }
    blockEnd();
    return new Stmt.If(conditions, bodies, start);
  }

  private Stmt forStatement(int start) {
    Stmt.Target target = target(false);
    if (!skipName("in")) {
      throw new TemplateError("expected 'in', found " + peek().describe());
    }
    Expr items = tuple(false);
    Expr condition = skipName("if") ? expression() : null;
    if (peek().isName("recursive")) {
      throw new TemplateError("'recursive' loops are not supported");
    }
    blockEnd();
    loops++;
    List<Stmt> body = body("endfor", "else");
    loops--;
    List<Stmt> otherwise = List.of();
    if (endTag().equals("else")) {
      blockEnd();
      otherwise = body("endfor");
      endTag();
    }
    blockEnd();
    return new Stmt.For(target, items, condition, body, otherwise, start);
  }

  private Stmt set(int start) {
    Stmt.Target target = target(true);
    if (skipOperator("=")) {
      Expr value = tuple(true);
      blockEnd();
      return new Stmt.Set(target, value, start);
    }
    Expr filter = peek().isOperator("|") ? filters(null, false) : null;
    return new Stmt.SetBlock(target, filter, block("endset"), start);
  }

  private Stmt with(int start) {
    List<Stmt.Target> targets = new ArrayList<>();
    List<Expr> values = new ArrayList<>();
    while (peek().kind() != Token.Kind.BLOCK_END) {
      if (!targets.isEmpty()) {
        expectOperator(",");
      }
      targets.add(new Stmt.Target.Variable(variable()));
      expectOperator("=");
      values.add(expression());
    }
    return new Stmt.With(targets, values, block("endwith"), start);
  }

  private record Signature(List<String> parameters, List<Expr> defaults) {}

  private Signature signature() {
    List<String> parameters = new ArrayList<>();
    List<Expr> defaults = new ArrayList<>();
    expectOperator("(");
    while (!peek().isOperator(")")) {
      if (!parameters.isEmpty()) {
        expectOperator(",");
      }
      parameters.add(variable());
      if (skipOperator("=")) {
        defaults.add(expression());
      } else if (!defaults.isEmpty()) {
        throw new TemplateError("parameter without default after one with default");
      }
    }
    expectOperator(")");
    return new Signature(parameters, defaults);
  }

  private Stmt.Macro macro(String name, Signature signature, String end, int start) {
    int outer = loops;
    loops = 0;
    boolean outerVarargs = varargs;
    boolean outerKwargs = kwargs;
    varargs = false;
    kwargs = false;
    List<Stmt> body = block(end);
    Stmt.Macro macro =
        new Stmt.Macro(
            name, signature.parameters(), signature.defaults(), body, varargs, kwargs, start);
    loops = outer;
    varargs = outerVarargs;
    kwargs = outerKwargs;
    return macro;
  }

  private String variable() {
    String name = expectName();
    if (RESERVED.contains(name)) {
      throw new TemplateError("cannot assign to '" + name + "'");
    }
    return name;
  }

  private Stmt.Target target(boolean fields) {
    List<Stmt.Target> targets = new ArrayList<>();
    boolean several = false;
    do {
      if (!targets.isEmpty() && peek().kind() != Token.Kind.NAME && !peek().isOperator("(")) {
        break;
      }
      if (skipOperator("(")) {
        targets.add(target(fields));
        expectOperator(")");
      } else {
        String name = variable();
        targets.add(
            fields && skipOperator(".")
                ? new Stmt.Target.Field(name, expectName())
                : new Stmt.Target.Variable(name));
      }
    } while (skipOperator(",") && (several = true));
    return several ? new Stmt.Target.Several(targets) : targets.getFirst();
  }

  // Expressions

  /** An expression, or several with commas: a tuple. */
  private Expr tuple(boolean conditional) {
    Expr first = conditional ? expression() : or();
    if (!peek().isOperator(",")) {
      return first;
    }
    List<Expr> items = new ArrayList<>(List.of(first));
    while (skipOperator(",")) {
      Token token = peek();
      if (token.kind() == Token.Kind.BLOCK_END
          || token.kind() == Token.Kind.OUTPUT_END
          || token.isOperator(")")
          || token.isName("in")) {
        break;
      }
      items.add(conditional ? expression() : or());
    }
    return new Expr.Items(items, true);
  }

  private Expr expression() {
    deeper();
    Expr expr = or();
    while (skipName("if")) {
      Expr condition = or();
      Expr otherwise = skipName("else") ? expression() : null;
      expr = new Expr.Conditional(condition, expr, otherwise);
    }
    depth--;
    return expr;
  }

  private Expr or() {
    Expr left = and();
    while (skipName("or")) {
      left = new Expr.Logical(false, left, and());
    }
    return left;
  }

  private Expr and() {
    Expr left = not();
    while (skipName("and")) {
      left = new Expr.Logical(true, left, not());
    }
    return left;
  }

  private Expr not() {
    if (!skipName("not")) {
      return compare();
    }
    deeper();
    Expr operand = not();
    depth--;
    return new Expr.Unary("not", operand);
  }

  private Expr compare() {
    Expr first = sum();
    List<String> operators = new ArrayList<>();
    List<Expr> operands = new ArrayList<>();
    while (true) {
      Token token = peek();
      if (token.kind() == Token.Kind.OPERATOR
          && List.of("==", "!=", "<", "<=", ">", ">=").contains(token.value())) {
        next();
        operators.add((String) token.value());
      } else if (skipName("in")) {
        operators.add("in");
      } else if (token.isName("not") && tokens.get(at + 1).isName("in")) {
        at += 2;
        operators.add("not in");
      } else {
        break;
      }
      operands.add(sum());
    }
    return operators.isEmpty() ? first : new Expr.Compare(first, operators, operands);
  }

  private Expr sum() {
    Expr left = concat();
    while (peek().isOperator("+") || peek().isOperator("-")) {
      String operator = (String) next().value();
      left = new Expr.Binary(operator, left, concat());
    }
    return left;
  }

  private Expr concat() {
    Expr left = product();
    while (skipOperator("~")) {
      left = new Expr.Binary("~", left, product());
    }
    return left;
  }

  private Expr product() {
    Expr left = power();
    while (peek().isOperator("*")
        || peek().isOperator("/")
        || peek().isOperator("//")
        || peek().isOperator("%")) {
      String operator = (String) next().value();
      left = new Expr.Binary(operator, left, power());
    }
    return left;
  }

  private Expr power() {
    Expr left = unary(true);
    while (skipOperator("**")) {
      left = new Expr.Binary("**", left, unary(true));
    }
    return left;
  }

  private Expr unary(boolean withFilters) {
    deeper();
    Expr expr;
    if (peek().isOperator("-") || peek().isOperator("+")) {
      String operator = (String) next().value();
      expr = new Expr.Unary(operator, unary(false));
    } else {
      expr = primary();
    }
    expr = postfix(expr);
    if (withFilters) {
      expr = filterOrTest(expr);
    }
    depth--;
    return expr;
  }

  private Expr primary() {
    Token token = next();
    switch (token.kind()) {
      case NAME -> {
        return switch ((String) token.value()) {
          case "true", "True" -> new Expr.Const(true);
          case "false", "False" -> new Expr.Const(false);
          case "none", "None" -> new Expr.Const(null);
          case "and", "or", "not", "if", "else", "in", "is", "elif", "for" ->
              throw new TemplateError("unexpected " + token.describe());
          default -> {
            varargs |= token.isName("varargs");
            kwargs |= token.isName("kwargs");
            yield new Expr.Name((String) token.value());
          }
        };
      }
      case STRING -> {
        StringBuilder text = new StringBuilder((String) token.value());
        while (peek().kind() == Token.Kind.STRING) {
          text.append((String) next().value());
        }
        return new Expr.Const(text.toString());
      }
      case NUMBER -> {
        return new Expr.Const(token.value());
      }
      default -> {
        if (token.isOperator("(")) {
          if (skipOperator(")")) {
            return new Expr.Items(List.of(), true);
          }
          Expr inner = tuple(true);
          expectOperator(")");
          return inner;
        }
        if (token.isOperator("[")) {
          return new Expr.Items(items("]"), false);
        }
        if (token.isOperator("{")) {
          return dict();
        }
        throw new TemplateError("unexpected " + token.describe());
      }
    }
  }

  private List<Expr> items(String end) {
    List<Expr> items = new ArrayList<>();
    while (!peek().isOperator(end)) {
      if (!items.isEmpty()) {
        expectOperator(",");
        if (peek().isOperator(end)) {
          break;
        }
      }
      items.add(expression());
    }
    expectOperator(end);
    return items;
  }

  private Expr dict() {
    List<Expr> keys = new ArrayList<>();
    List<Expr> values = new ArrayList<>();
    while (!peek().isOperator("}")) {
      if (!keys.isEmpty()) {
        expectOperator(",");
        if (peek().isOperator("}")) {
          break;
        }
      }
      keys.add(expression());
      expectOperator(":");
      values.add(expression());
    }
    expectOperator("}");
    return new Expr.Dict(keys, values);
  }

  private Expr postfix(Expr start) {
    Expr expr = start;
    while (true) {
      if (skipOperator(".")) {
        Token token = next();
        if (token.kind() == Token.Kind.NAME) {
          expr = new Expr.Attribute(expr, (String) token.value());
        } else if (token.kind() == Token.Kind.NUMBER && token.value() instanceof Long) {
          expr = new Expr.Item(expr, new Expr.Const(token.value()));
        } else {
          throw new TemplateError("expected a name or number, found " + token.describe());
        }
      } else if (skipOperator("[")) {
        expr = subscript(expr);
      } else if (peek().isOperator("(")) {
        expr = new Expr.Call(expr, arguments());
      } else {
        return expr;
      }
    }
  }

  private Expr subscript(Expr object) {
    Expr from = peek().isOperator(":") ? null : expression();
    if (!skipOperator(":")) {
      if (peek().isOperator(",")) {
        List<Expr> items = new ArrayList<>(List.of(from));
        while (skipOperator(",")) {
          items.add(expression());
        }
        from = new Expr.Items(items, true);
      }
      expectOperator("]");
      return new Expr.Item(object, from);
    }
    Expr to = peek().isOperator(":") || peek().isOperator("]") ? null : expression();
    Expr step = null;
    if (skipOperator(":") && !peek().isOperator("]")) {
      step = expression();
    }
    expectOperator("]");
    return new Expr.Slice(object, from, to, step);
  }

  private Expr.Arguments arguments() {
    expectOperator("(");
    List<Expr> positional = new ArrayList<>();
    List<String> names = new ArrayList<>();
    List<Expr> named = new ArrayList<>();
    Expr star = null;
    Expr starStar = null;
    boolean first = true;
    while (!peek().isOperator(")")) {
      if (!first) {
        expectOperator(",");
        if (peek().isOperator(")")) {
          break;
        }
      }
      first = false;
      if (star == null && starStar == null && skipOperator("*")) {
        star = expression();
      } else if (starStar == null && skipOperator("**")) {
        starStar = expression();
      } else if (peek().kind() == Token.Kind.NAME
          && tokens.get(at + 1).isOperator("=")
          && starStar == null) {
        names.add(expectName());
        at++;
        named.add(expression());
      } else if (star == null && starStar == null && names.isEmpty()) {
        positional.add(expression());
      } else {
        throw new TemplateError("invalid order of arguments");
      }
    }
    expectOperator(")");
    return new Expr.Arguments(positional, names, named, star, starStar);
  }

  private Expr filterOrTest(Expr start) {
    Expr expr = start;
    while (true) {
      if (peek().isOperator("|")) {
        expr = filters(expr, false);
      } else if (skipName("is")) {
        expr = test(expr);
      } else if (peek().isOperator("(")) {
        expr = new Expr.Call(expr, arguments());
      } else {
        return expr;
      }
    }
  }

  private Expr filters(Expr object, boolean inline) {
    Expr expr = object;
    boolean first = inline;
    while (first || skipOperator("|")) {
      first = false;
      String name = expectName();
      if (!Filters.exists(name)) {
        throw new TemplateError("no filter named '" + name + "'");
      }
      expr =
          new Expr.Filter(expr, name, peek().isOperator("(") ? arguments() : Expr.Arguments.NONE);
    }
    return expr;
  }

  private Expr test(Expr object) {
    boolean negated = skipName("not");
    String name = expectName();
    if (!Tests.exists(name)) {
      throw new TemplateError("no test named '" + name + "'");
    }
    Expr.Arguments arguments = Expr.Arguments.NONE;
    Token token = peek();
    if (token.isOperator("(")) {
      arguments = arguments();
    } else if (startsPrimary(token)) {
      if (token.isName("is")) {
        throw new TemplateError("tests cannot be chained with 'is'");
      }
      Expr argument = postfix(primary());
      arguments = new Expr.Arguments(List.of(argument), List.of(), List.of(), null, null);
    }
    Expr test = new Expr.Test(object, name, arguments);
    return negated ? new Expr.Unary("not", test) : test;
  }

  private static boolean startsPrimary(Token token) {
    return switch (token.kind()) {
      case NAME -> !token.isName("else") && !token.isName("or") && !token.isName("and");
      case STRING, NUMBER -> true;
      case OPERATOR -> token.isOperator("[") || token.isOperator("{");
      default -> false;
    };
  }
}
