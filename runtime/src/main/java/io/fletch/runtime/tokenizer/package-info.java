/**
 * Text to token ids and back: byte-level BPE and SentencePiece BPE read from GGUF metadata or from
 * {@code tokenizer.json}.
 *
 * <p>An encoder is a chain: added tokens are cut out of the text, each text between them is
 * normalised, split into pieces ({@link io.fletch.runtime.tokenizer.SplitPattern} and friends), and
 * each piece is merged into tokens. Every step is linear in the length of the text, merging a piece
 * of n symbols costs O(n log n).
 */
package io.fletch.runtime.tokenizer;
