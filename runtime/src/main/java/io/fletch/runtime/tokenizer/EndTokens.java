package io.fletch.runtime.tokenizer;

import java.util.List;
import java.util.OptionalInt;
import java.util.SortedSet;
import java.util.TreeSet;

/**
 * Which tokens end an answer: those that the file declares, and those whose spelling is known to do
 * so, since many files declare only one of them.
 */
final class EndTokens {
  private static final List<String> NAMES =
      List.of(
          "<|eot_id|>",
          "<|im_end|>",
          "<|end|>",
          "<|return|>",
          "<|call|>",
          "<|calls|>",
          "<|flush|>",
          "<end_of_turn>",
          "<|endoftext|>",
          "</s>",
          "<|eom_id|>",
          "<EOT>",
          "_<EOT>",
          "[EOT]",
          "[EOS]",
          "<|end_of_text|>",
          "<end_of_utterance>",
          "<eos>",
          "<turn|>",
          "<|tool_response>",
          "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
          "<|fim_pad|>",
          "<|fim_repo|>",
          "<|repo_name|>",
          "<|file_sep|>");

  private EndTokens() {}

  /** The set of a vocabulary. */
  static List<Integer> of(Vocabulary vocabulary, Iterable<Integer> declared) {
    SortedSet<Integer> ends = new TreeSet<>();
    declared.forEach(ends::add);
    for (String name : NAMES) {
      OptionalInt id = vocabulary.id(name);
      // A word of ordinary text must not end an answer, whatever it looks like.
      if (id.isPresent() && vocabulary.kind(id.getAsInt()) != Vocabulary.Kind.NORMAL) {
        ends.add(id.getAsInt());
      }
    }
    // In formats with channels "<|end|>" ends a message, not the answer.
    if (has(ends, vocabulary, "<|return|>") && has(ends, vocabulary, "<|call|>")
        || has(ends, vocabulary, "<|flush|>") && has(ends, vocabulary, "<|calls|>")) {
      vocabulary.id("<|end|>").ifPresent(ends::remove);
    }
    if (has(ends, vocabulary, "<|tool_response>")) {
      vocabulary.id("</s>").ifPresent(ends::remove);
    }
    return List.copyOf(ends);
  }

  private static boolean has(SortedSet<Integer> ends, Vocabulary vocabulary, String name) {
    OptionalInt id = vocabulary.id(name);
    return id.isPresent() && ends.contains(id.getAsInt());
  }
}
