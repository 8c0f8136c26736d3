package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** Pieces against those of the tokenizers library (golden.py beside the resource made them). */
class PreTokenizersTest {
  static List<String> pieces(PreTokenizer preTokenizer, String text) {
    List<String> pieces = new ArrayList<>();
    PieceSink sink =
        preTokenizer.before((source, from, to) -> pieces.add(source.substring(from, to)));
    if (!text.isEmpty()) {
      sink.accept(text, 0, text.length());
    }
    return pieces;
  }

  @Test
  void piecesMatch() throws IOException {
    Map<String, Object> golden;
    try (InputStream in = PreTokenizersTest.class.getResourceAsStream("pretokenizers.json")) {
      golden = JSON.std.mapFrom(in);
    }
    List<?> texts = (List<?>) golden.get("texts");
    List<Executable> checks = new ArrayList<>();
    ((Map<?, ?>) golden.get("pieces"))
        .forEach((name, expected) -> {
          PreTokenizer preTokenizer = PreTokenizers.named((String) name);
          for (int i = 0; i < texts.size(); i++) {
            String text = (String) texts.get(i);
            Object wanted = ((List<?>) expected).get(i);
            checks.add(() -> assertEquals(wanted, pieces(preTokenizer, text), name + ": " + text));
          }
        });
    assertTrue(checks.size() > 1500);
    assertAll(checks);
  }

  @Test
  void unknownNameIsAnError() {
    FletchException e =
        assertThrows(FletchException.class, () -> PreTokenizers.named("no-such-model"));
    assertTrue(e.getMessage().contains("no-such-model"), e.getMessage());
    assertTrue(e.getMessage().contains("tokenizer.ggml.pre"), e.getMessage());
  }
}
