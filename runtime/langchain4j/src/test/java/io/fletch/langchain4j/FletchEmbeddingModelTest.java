package io.fletch.langchain4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.langchain4j.data.segment.TextSegment;
import dev.langchain4j.exception.InvalidRequestException;
import dev.langchain4j.exception.ModelNotFoundException;
import dev.langchain4j.model.embedding.request.EmbeddingInputType;
import dev.langchain4j.model.embedding.request.EmbeddingRequest;
import dev.langchain4j.model.embedding.response.EmbeddingResponse;
import dev.langchain4j.store.embedding.EmbeddingMatch;
import dev.langchain4j.store.embedding.EmbeddingSearchRequest;
import dev.langchain4j.store.embedding.inmemory.InMemoryEmbeddingStore;
import io.fletch.Embedder;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Vectors through LangChain4j's own interfaces and its store. */
class FletchEmbeddingModelTest {
  private static Embedder embedder;
  private static FletchEmbeddingModel model;

  @BeforeAll
  static void open() {
    embedder =
        Embedder.open(
            Path.of("../src/test/resources/io/fletch/runtime/engine/embedders/bert.gguf"));
    model = FletchEmbeddingModel.builder().embedder(embedder).build();
  }

  @AfterAll
  static void close() {
    embedder.close();
  }

  @Test
  void vectorsAreTheEmbedders() {
    assertEquals(embedder.info().dimensions(), model.dimension());
    assertEquals(embedder.name(), model.modelName());
    assertArrayEquals(embedder.embed("hello world"), model.embed("hello world").content().vector());
    List<String> texts = List.of("one", "two and three", "one");
    var all = model.embedAll(texts.stream().map(TextSegment::from).toList());
    int tokens = 0;
    for (int i = 0; i < texts.size(); i++) {
      assertArrayEquals(embedder.embed(texts.get(i)), all.content().get(i).vector());
      tokens += embedder.tokens(texts.get(i)).length;
    }
    assertEquals(tokens, all.tokenUsage().inputTokenCount());
  }

  @Test
  void parametersCount() {
    FletchEmbeddingModel prefixed =
        FletchEmbeddingModel.builder()
            .embedder(embedder)
            .modelName("mine")
            .prefixes("query: ", "document: ")
            .build();
    for (EmbeddingInputType type : EmbeddingInputType.values()) {
      EmbeddingResponse response =
          prefixed.embed(
              EmbeddingRequest.builder().input("one").inputType(type).modelName("mine").build());
      String prefix = type == EmbeddingInputType.QUERY ? "query: " : "document: ";
      assertArrayEquals(embedder.embed(prefix + "one"), response.embeddings().getFirst().vector());
      assertEquals("mine", response.modelName());
    }
    float[] few =
        model
            .embed(EmbeddingRequest.builder().input("one").dimensions(4).build())
            .embeddings()
            .getFirst()
            .vector();
    assertArrayEquals(Embedder.shortened(embedder.embed("one"), 4), few);
    for (int bad : new int[] {-1, 0, model.dimension() + 1}) {
      assertThrows(
          InvalidRequestException.class,
          () -> model.embed(EmbeddingRequest.builder().input("one").dimensions(bad).build()),
          "" + bad);
    }
    assertThrows(
        ModelNotFoundException.class,
        () -> model.embed(EmbeddingRequest.builder().input("one").modelName("other").build()));
    InvalidRequestException e =
        assertThrows(InvalidRequestException.class, () -> model.embed("word ".repeat(5000)));
    assertTrue(e.getMessage().contains("tokens"), e.getMessage());
  }

  @Test
  void aStoreFindsWhatWasPutIn() {
    InMemoryEmbeddingStore<TextSegment> store = new InMemoryEmbeddingStore<>();
    for (String text : List.of("the cat sat", "seven numbers", "a red house")) {
      TextSegment segment = TextSegment.from(text);
      store.add(model.embed(segment).content(), segment);
    }
    EmbeddingMatch<TextSegment> best =
        store
            .search(
                EmbeddingSearchRequest.builder()
                    .queryEmbedding(model.embed("seven numbers").content())
                    .maxResults(1)
                    .build())
            .matches()
            .getFirst();
    assertEquals("seven numbers", best.embedded().text());
    assertEquals(1, best.score(), 1e-5);
  }
}
