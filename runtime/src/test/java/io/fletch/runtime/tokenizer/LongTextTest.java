package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Tokenizer;
import java.util.List;
import org.junit.jupiter.api.Test;

/**
 * Texts that make backtracking engines and quadratic merges take hours. {@link SplitPattern} counts
 * its steps and refuses what is not linear, so that a quadratic pattern fails here and does not
 * merely take long.
 */
class LongTextTest {
  private static final int SIZE = 1 << 17;

  private static final List<String> TEXTS =
      List.of(
          "a",
          " ",
          "\n",
          "A",
          "\ud83d\ude80",
          "1",
          "'",
          ".",
          "\u4f60",
          " \n",
          "aA",
          "\t \r",
          "a1",
          "<",
          "\u0301",
          "\ud800",
          "  a");

  @Test
  void preTokenizersAreLinear() {
    for (String pre :
        List.of(
            "gpt-2",
            "llama-bpe",
            "qwen2",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "falcon",
            "default",
            "tekken",
            "gpt-4o",
            "superbpe",
            "tiny_aya",
            "jais-2",
            "bailingmoe",
            "exaone-moe",
            "bloom",
            "chameleon")) {
      PreTokenizer preTokenizer = PreTokenizers.named(pre);
      for (String unit : TEXTS) {
        for (String tail : new String[] {"", "x"}) {
          String text = unit.repeat(SIZE / 8 / unit.length()) + tail;
          int[] at = {0};
          preTokenizer
              .before((source, from, to) -> {
                assertEquals(at[0], from);
                assertTrue(to > from);
                at[0] = to;
              })
              .accept(text, 0, text.length());
          assertEquals(text.length(), at[0], pre);
        }
      }
    }
  }

  @Test
  void encodersAreLinear() {
    for (String name : List.of("gpt-2", "deepseek-coder", "llama-spm")) {
      Tokenizer tokenizer = Shared.gguf("tokenizers/" + name + ".gguf");
      for (String unit : List.of("a", " ", "\ud83d\ude80", "\n", "ab c", "<")) {
        String text = unit.repeat(SIZE / unit.length());
        assertEquals(text, tokenizer.decode(tokenizer.encode(text, false, false)));
      }
    }
  }
}
