package io.fletch.runtime.template;

/**
 * A lexical element of a template.
 *
 * @param value the text of a name or operator, the value of a literal, the text between tags
 */
record Token(Kind kind, Object value, int line) {
  enum Kind {
    /** Text between tags. */
    DATA,
    /** <code>{{</code>. */
    OUTPUT_BEGIN,
    /** <code>}}</code>. */
    OUTPUT_END,
    /** <code>{%</code>. */
    BLOCK_BEGIN,
    /** <code>%}</code>. */
    BLOCK_END,
    /** An identifier or keyword. */
    NAME,
    /** A string literal. */
    STRING,
    /** An integer or floating-point literal. */
    NUMBER,
    /** An operator or delimiter. */
    OPERATOR,
    /** After the last token. */
    END
  }

  boolean isName(String name) {
    return kind == Kind.NAME && value.equals(name);
  }

  boolean isOperator(String operator) {
    return kind == Kind.OPERATOR && value.equals(operator);
  }

  /** As shown in messages. */
  String describe() {
    return switch (kind) {
      case END -> "end of template";
      case OUTPUT_END -> "'}}'";
      case BLOCK_END -> "'%}'";
      case DATA, OUTPUT_BEGIN, BLOCK_BEGIN -> "text";
      default -> "'" + value + "'";
    };
  }
}
