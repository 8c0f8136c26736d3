package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Embedder;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.sampling.SamplingOptions;
import io.fletch.tools.server.FletchServer;
import io.github.sashirestela.cleverclient.support.CleverClientException;
import io.github.sashirestela.openai.SimpleOpenAI;
import io.github.sashirestela.openai.domain.chat.Chat;
import io.github.sashirestela.openai.domain.chat.ChatMessage.SystemMessage;
import io.github.sashirestela.openai.domain.chat.ChatMessage.UserMessage;
import io.github.sashirestela.openai.domain.chat.ChatRequest;
import io.github.sashirestela.openai.domain.completion.CompletionRequest;
import io.github.sashirestela.openai.domain.embedding.Embedding;
import io.github.sashirestela.openai.domain.embedding.EmbeddingBase64;
import io.github.sashirestela.openai.domain.embedding.EmbeddingFloat;
import io.github.sashirestela.openai.domain.embedding.EmbeddingRequest;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Base64;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CompletionException;
import java.util.stream.Collectors;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** An unmodified client library of OpenAI's API talks with the server. */
class OpenAiClientTest {
  private static final String ANSWER = "7+6=13\n5+8+1=14\n4+3+1=8\nAnswer: 843";

  private static Model model;
  private static Embedder embedder;
  private static FletchServer server;
  private static SimpleOpenAI client;

  @BeforeAll
  static void start() {
    model = Model.demo("demo-small", ModelOptions.defaults().withThreads(1).withContextLength(256));
    embedder =
        Embedder.open(
            Path.of("../runtime/src/test/resources/io/fletch/runtime/engine/embedders/qwen3.gguf"));
    server =
        FletchServer.start(
            Optional.of(model),
            Optional.of(new FletchServer.Embeddings(embedder, "tiny-embedding")),
            new FletchServer.Options(
                new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
                "demo-small",
                SamplingOptions.greedy(),
                4,
                16,
                1 << 20,
                Duration.ofSeconds(60),
                Duration.ofSeconds(5),
                Optional.of("a key"),
                Optional.empty()));
    client = client("a key");
  }

  private static SimpleOpenAI client(String key) {
    return SimpleOpenAI.builder()
        .apiKey(key)
        .baseUrl("http://127.0.0.1:" + server.address().getPort())
        .build();
  }

  @AfterAll
  static void stop() {
    server.close();
    embedder.close();
    model.close();
  }

  private static ChatRequest.ChatRequestBuilder question() {
    return ChatRequest.builder()
        .model("demo-small")
        .message(UserMessage.of("What is 457 + 386?"))
        .temperature(0.0)
        .maxCompletionTokens(100);
  }

  @Test
  void chats() {
    Chat chat = client.chatCompletions().create(question().build()).join();
    assertEquals(ANSWER, chat.firstContent());
    assertEquals("stop", chat.getChoices().getFirst().getFinishReason());
    assertTrue(chat.getUsage().getCompletionTokens() > 10);
  }

  @Test
  void streams() {
    String text =
        client
            .chatCompletions()
            .createStream(question().build())
            .join()
            .filter(chunk -> !chunk.getChoices().isEmpty() && chunk.firstContent() != null)
            .map(Chat::firstContent)
            .collect(Collectors.joining());
    assertEquals(ANSWER, text);
  }

  @Test
  void completes() {
    String prompt = "<|im_start|>user\nWhat is 457 + 386?<|im_end|>\n<|im_start|>assistant\n";
    assertEquals(
        ANSWER,
        client
            .completions()
            .create(
                CompletionRequest.builder()
                    .model("demo-small")
                    .prompt(prompt)
                    .maxTokens(100)
                    .temperature(0.0)
                    .build())
            .join()
            .firstText());
  }

  @Test
  void embeds() {
    List<String> texts = List.of("the quick brown fox", "hello, world");
    Embedding<EmbeddingFloat> answer =
        client
            .embeddings()
            .create(EmbeddingRequest.builder().model("tiny-embedding").input(texts).build())
            .join();
    assertEquals(2, answer.getData().size());
    for (int i = 0; i < 2; i++) {
      float[] expected = embedder.embed(texts.get(i));
      List<Double> actual = answer.getData().get(i).getEmbedding();
      assertEquals(expected.length, actual.size());
      for (int d = 0; d < expected.length; d++) {
        assertEquals(expected[d], actual.get(d), 1e-7);
      }
    }
    int tokens = texts.stream().mapToInt(t -> embedder.tokens(t).length).sum();
    assertEquals(tokens, answer.getUsage().getPromptTokens());
    EmbeddingBase64 short64 =
        client
            .embeddings()
            .createBase64(
                EmbeddingRequest.builder()
                    .model("tiny-embedding")
                    .input(texts.getFirst())
                    .dimensions(4)
                    .build())
            .join()
            .getData()
            .getFirst();
    byte[] bytes = Base64.getDecoder().decode(short64.getEmbedding());
    float[] vector = new float[4];
    ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(vector);
    assertArrayEquals(Embedder.shortened(embedder.embed(texts.getFirst()), 4), vector);
  }

  @Test
  void listsModels() {
    assertEquals(
        List.of("demo-small", "tiny-embedding"),
        client.models().getList().join().stream().map(m -> m.getId()).toList());
  }

  @Test
  void hearsErrors() {
    assertFailure(
        "model_not_found",
        () -> client.chatCompletions().create(question().model("gpt-4o").build()).join());
    assertFailure(
        "not_an_embedding_model",
        () ->
            client
                .embeddings()
                .create(EmbeddingRequest.builder().model("demo-small").input("x").build())
                .join());
    assertFailure("invalid_api_key", () -> client("other").models().getList().join());
    assertFailure(
        "context_length_exceeded",
        () ->
            client
                .chatCompletions()
                .create(question().message(SystemMessage.of("word ".repeat(500))).build())
                .join());
  }

  /** The client wraps what the server says, more than once. */
  private static void assertFailure(String code, Executable call) {
    StringBuilder said = new StringBuilder();
    for (Throwable e = assertThrows(CompletionException.class, call); e != null; e = e.getCause()) {
      said.append(e).append('\n');
      if (e instanceof CleverClientException c) {
        said.append(c.responseInfo()).append('\n');
      }
    }
    assertTrue(said.toString().contains(code), said.toString());
  }
}
