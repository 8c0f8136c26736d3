package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.ArrowWriter;
import io.fletch.quant.WeightFile;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A model as a Fletch Arrow file is the model that it was as GGUF. */
class ArrowModelTest {
  @TempDir Path folder;

  @Test
  void logitsAndTokenizerAreThoseOfTheGguf() {
    Path gguf = Model.demoFile("demo-small");
    Path arrow = folder.resolve("demo.arrow");
    try (WeightFile file = WeightFile.open(gguf)) {
      ArrowWriter writer = new ArrowWriter().putAll(file.metadata());
      file.tensors().values().forEach(writer::tensor);
      writer.write(arrow);
    }
    ModelOptions options = ModelOptions.defaults().withThreads(2).withContextLength(64);
    try (Model a = Model.open(gguf, options);
        Model b = Model.open(arrow, options)) {
      int[] ids = a.tokenizer().encode("What is 3 + 4? Caf\u00e9");
      assertArrayEquals(ids, b.tokenizer().encode("What is 3 + 4? Caf\u00e9"));
      assertTrue(ids.length > 3);
      assertEquals(a.info(), b.info());
      try (Session s = a.newSession();
          Session t = b.newSession()) {
        float[][] expected = s.logits(ids);
        float[][] actual = t.logits(ids);
        for (int r = 0; r < ids.length; r++) {
          assertArrayEquals(expected[r], actual[r], "row " + r);
        }
      }
    }
  }
}
