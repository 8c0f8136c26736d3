package io.fletch.runtime.arch;

/** Which layers of a family have a sliding window where the file does not list them. */
final class Windows {
  private Windows() {}

  /** Whether layer {@code layer} slides, given that the model has a window at all. */
  static boolean slides(Architecture arch, int layer) {
    return switch (arch) {
      case GEMMA2 -> layer % 2 == 0;
      case GEMMA3 -> (layer + 1) % 6 != 0;
      default -> true;
    };
  }

  /** Whether a layer rotates queries and keys: in SmolLM 3 every fourth does not. */
  static boolean rotates(Architecture arch, int layer) {
    return arch != Architecture.SMOLLM3 || (layer + 1) % 4 != 0;
  }
}
