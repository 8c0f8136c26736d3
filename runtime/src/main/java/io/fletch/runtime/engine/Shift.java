package io.fletch.runtime.engine;

import io.fletch.ContextShift;
import io.fletch.FletchException;
import java.util.Arrays;

/**
 * A context shift for one prompt and model.
 *
 * @param keep tokens at the start that stay; at most half of the context, so that a shift makes
 *     room for many tokens and is rare
 */
record Shift(int keep) {
  static Shift of(ContextShift wanted, LoadedModel model, int[] prompt) {
    int most = model.contextLength() / 2;
    if (wanted.keep() > most) {
      throw new FletchException(
          "context shift: tokens to keep expected<="
              + most
              + " (half of the context) actual="
              + wanted.keep());
    }
    boolean begins = model.tokenizer().bos().orElse(-1) == prompt[0];
    return new Shift(Math.min(prompt.length, Math.max(wanted.keep(), begins ? 1 : 0)));
  }

  /** How many tokens behind the kept ones a context of some length loses: the older half. */
  int discard(int length) {
    return Math.max(1, (length - keep) / 2);
  }

  /** The prompt, shortened until one token is left for the answer. */
  int[] fit(int[] prompt, int context) {
    int dropped = 0;
    while (prompt.length - dropped >= context) {
      dropped += discard(prompt.length - dropped);
    }
    if (dropped == 0) {
      return prompt;
    }
    int[] out = Arrays.copyOf(prompt, prompt.length - dropped);
    System.arraycopy(prompt, keep + dropped, out, keep, out.length - keep);
    return out;
  }
}
