package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import de.kherud.llama.LlamaModel;
import de.kherud.llama.ModelParameters;
import de.kherud.llama.args.LogFormat;
import io.fletch.Embedder;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * llama.cpp, live, through {@code de.kherud:llama}, on the tiny embedding models of the runtime's
 * tests: the same file gives the same token ids and vectors that point the same way. It computes
 * GELU in its tanh form from a table of halves, so vectors of {@code bert} differ a little. Skipped
 * where the peer's native library does not load.
 */
class EmbedderPeerTest {
  private static final Path MODELS =
      Path.of("../runtime/src/test/resources/io/fletch/runtime/engine/embedders");
  private static final List<String> TEXTS =
      List.of(
          "hello, world",
          "The quick brown fox jumps over the lazy dog.",
          "Ein na\u00efver \u00d6ltanker f\u00e4hrt \u00fcber die Stra\u00dfe.",
          "\u4eba\u5de5\u667a\u80fd x_1 = a*b + c/d - e%f;",
          "unaffable embeddings");

  @BeforeAll
  static void peerLoads() {
    try {
      LlamaModel.setLogger(LogFormat.TEXT, (level, message) -> {});
    } catch (Throwable e) {
      System.out.println(
          "EmbedderPeerTest skipped: the library of de.kherud:llama does not load here: " + e);
      assumeTrue(false, () -> "the library of de.kherud:llama does not load here: " + e);
    }
  }

  @ParameterizedTest
  @CsvSource({"bert,1e-6", "nomic-bert,1e-9"})
  void idsAndVectorsAreThoseOfLlamaCpp(String name, double bound) {
    Path file = MODELS.resolve(name + ".gguf");
    ModelParameters parameters =
        new ModelParameters()
            .setModel(file.toString())
            .setThreads(1)
            .setThreadsBatch(1)
            .enableEmbedding()
            .disableLog();
    try (LlamaModel peer = new LlamaModel(parameters);
        Embedder embedder = Embedder.open(file)) {
      for (String text : TEXTS) {
        assertArrayEquals(peer.encode(text), embedder.tokenizer().encode(text, false, true), text);
        float[] theirs = peer.embed(text);
        float[] ours = embedder.embed(text);
        assertEquals(theirs.length, ours.length);
        double similarity = Embedder.similarity(theirs, ours);
        assertTrue(similarity > 1 - bound, text + ": similarity=" + similarity);
      }
    }
  }
}
