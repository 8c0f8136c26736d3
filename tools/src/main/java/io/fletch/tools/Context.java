package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.Model;
import java.util.Optional;

/** What people are told when an answer meets the end of the context. */
final class Context {
  private Context() {}

  /** A line about it; empty if the context was large enough. */
  static Optional<String> remark(Model model, Generation.Result result) {
    int context = model.info().contextLength();
    if (result.droppedTokens() > 0) {
      return Optional.of(
          "the context was full ("
              + context
              + " tokens): "
              + result.droppedTokens()
              + " old tokens were dropped");
    }
    boolean isFull =
        result.finishReason() == Generation.FinishReason.LENGTH
            && result.promptTokens() + result.completionTokens() >= context
            && model.diffusion().isEmpty();
    return isFull
        ? Optional.of(
            "the answer ends because the context is full ("
                + context
                + " tokens): --ctx makes it longer, --context-shift drops old tokens")
        : Optional.empty();
  }
}
