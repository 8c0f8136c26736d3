package io.fletch.runtime.template;

import java.util.List;

/** An expression of a template. */
sealed interface Expr {
  /** A literal. */
  record Const(Object value) implements Expr {}

  /** A variable. */
  record Name(String name) implements Expr {}

  /** A list, or a tuple. */
  record Items(List<Expr> items, boolean tuple) implements Expr {}

  /** A dictionary. */
  record Dict(List<Expr> keys, List<Expr> values) implements Expr {}

  /** {@code object.name}. */
  record Attribute(Expr object, String name) implements Expr {}

  /** {@code object[index]}. */
  record Item(Expr object, Expr index) implements Expr {}

  /** {@code object[from:to:step]}; bounds may be null. */
  record Slice(Expr object, Expr from, Expr to, Expr step) implements Expr {}

  /** A call. */
  record Call(Expr function, Arguments arguments) implements Expr {}

  /** {@code object | name(arguments)}; the object of a filter block is null. */
  record Filter(Expr object, String name, Arguments arguments) implements Expr {}

  /** {@code object is name(arguments)}. */
  record Test(Expr object, String name, Arguments arguments) implements Expr {}

  /** Minus, plus, not. */
  record Unary(String operator, Expr operand) implements Expr {}

  /** Arithmetic and string concatenation. */
  record Binary(String operator, Expr left, Expr right) implements Expr {}

  /** {@code and}, {@code or}; the value of one operand. */
  record Logical(boolean and, Expr left, Expr right) implements Expr {}

  /** A chain of comparisons. */
  record Compare(Expr first, List<String> operators, List<Expr> operands) implements Expr {}

  /** {@code then if condition else otherwise}; without else an undefined value. */
  record Conditional(Expr condition, Expr then, Expr otherwise) implements Expr {}

  /** Arguments of a call; the starred ones may be null. */
  record Arguments(
      List<Expr> positional, List<String> names, List<Expr> named, Expr star, Expr starStar) {
    static final Arguments NONE = new Arguments(List.of(), List.of(), List.of(), null, null);
  }
}
