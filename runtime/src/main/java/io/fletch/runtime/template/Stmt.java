package io.fletch.runtime.template;

import java.util.List;

/** A statement of a template. */
sealed interface Stmt {
  /** Text as it stands. */
  record Text(String text) implements Stmt {}

  /** The value of an expression. */
  record Output(Expr expr, int line) implements Stmt {}

  /** Branches; the condition of {@code else} is null. */
  record If(List<Expr> conditions, List<List<Stmt>> bodies, int line) implements Stmt {}

  /** A loop; {@code condition} may be null. */
  record For(
      Target target, Expr items, Expr condition, List<Stmt> body, List<Stmt> otherwise, int line)
      implements Stmt {}

  /** An assignment. */
  record Set(Target target, Expr value, int line) implements Stmt {}

  /** An assignment of the output of a body; the filter's innermost object is null. */
  record SetBlock(Target target, Expr filter, List<Stmt> body, int line) implements Stmt {}

  /**
   * A macro.
   *
   * @param defaults of the last parameters
   * @param varargs whether the body uses further positional arguments
   * @param kwargs whether the body uses further named arguments
   */
  record Macro(
      String name,
      List<String> parameters,
      List<Expr> defaults,
      List<Stmt> body,
      boolean varargs,
      boolean kwargs,
      int line)
      implements Stmt {}

  /** A call with a body that the macro gets as {@code caller}. */
  record CallBlock(Expr call, Macro caller, int line) implements Stmt {}

  /** A filter over the output of a body. */
  record FilterBlock(Expr filter, List<Stmt> body, int line) implements Stmt {}

  /** Variables of a body. */
  record With(List<Target> targets, List<Expr> values, List<Stmt> body, int line) implements Stmt {}

  /** Marks what an assistant says; renders its body. */
  record Generation(List<Stmt> body) implements Stmt {}

  /** Leaves the loop. */
  record Break() implements Stmt {}

  /** Goes on with the next item. */
  record Continue() implements Stmt {}

  /** What is assigned to. */
  sealed interface Target {
    /** A variable. */
    record Variable(String name) implements Target {}

    /** An attribute of a namespace. */
    record Field(String object, String name) implements Target {}

    /** Several at once. */
    record Several(List<Target> targets) implements Target {}
  }
}
