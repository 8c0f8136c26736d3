package io.fletch;

/** How the hidden states of a text's tokens become the vector of the text. */
public enum Pooling {
  /** Their mean, special tokens included. */
  MEAN,
  /** The state of the first token, which is the tokenizer's {@code [CLS]}. */
  CLS,
  /** The state of the last token; for models whose tokens see only those before them. */
  LAST,
  /** Not at all: a vector per token. */
  NONE
}
