package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Tokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Token ids of real vocabularies against ids that other implementations gave. */
class GoldenTest {
  @ParameterizedTest
  @ValueSource(strings = {"gpt-2", "deepseek-coder", "llama-spm"})
  void matchesVocabulary(String name) throws IOException {
    String file = "tokenizers/" + name + ".gguf";
    Tokenizer tokenizer = Shared.gguf(file);
    String[] inputs =
        Files.readString(Shared.path(file + ".inp")).split("\n__ggml_vocab_test__\n", -1);
    List<String> outputs = Files.readAllLines(Shared.path(file + ".out"));
    // The file ends with a separator line.
    assertEquals(outputs.size(), inputs.length - 1);
    for (int i = 0; i < outputs.size(); i++) {
      int[] expected =
          Arrays.stream(outputs.get(i).trim().split(" +"))
              .filter(id -> !id.isEmpty())
              .mapToInt(Integer::parseInt)
              .toArray();
      int[] actual = tokenizer.encode(inputs[i], false, false);
      int line = i;
      assertArrayEquals(
          expected,
          actual,
          () -> "input " + line + " " + inputs[line] + ": " + Arrays.toString(actual));
      assertEquals(inputs[i], tokenizer.decode(actual));
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"models/ar-small-F16.gguf", "models/diffusion-Q8_0.gguf"})
  void matchesDemo(String name) throws IOException {
    checkDemo(Shared.gguf(name));
  }

  @Test
  void matchesDemoFolder() throws IOException {
    Tokenizer tokenizer = Tokenizers.fromFolder(Shared.path("models/diffusion"));
    checkDemo(tokenizer);
    Tokenizer gguf = Shared.gguf("models/diffusion-Q8_0.gguf");
    assertEquals(gguf.endOfGeneration(), tokenizer.endOfGeneration());
    assertEquals(gguf.eos(), tokenizer.eos());
    assertEquals(gguf.mask(), tokenizer.mask());
    for (int id = 0; id < gguf.vocabularySize(); id++) {
      assertEquals(gguf.token(id), tokenizer.token(id));
      assertArrayEquals(gguf.bytes(id), tokenizer.bytes(id));
    }
  }

  private static void checkDemo(Tokenizer tokenizer) throws IOException {
    List<Object> cases =
        JSON.std.listFrom(Files.readString(Shared.path("models/golden/tokenizer.json")));
    assertEquals(10, cases.size());
    for (Object entry : cases) {
      Map<?, ?> example = (Map<?, ?>) entry;
      String text = (String) example.get("text");
      int[] expected =
          ((List<?>) example.get("ids"))
              .stream().mapToInt(id -> ((Number) id).intValue()).toArray();
      assertArrayEquals(expected, tokenizer.encode(text), text);
      assertEquals(text, tokenizer.decode(expected, true));
    }
  }

  @Test
  void knowsEndsOfTheDemo() {
    Tokenizer ar = Shared.gguf("models/ar-small-F16.gguf");
    assertEquals(List.of(1020, 1022), ar.endOfGeneration());
    assertEquals(1022, ar.eos().orElseThrow());
    assertEquals(1023, ar.mask().orElseThrow());
    assertEquals("", ar.decode(new int[] {1022}));
    assertEquals(0, ar.bytes(1021).length);
  }
}
