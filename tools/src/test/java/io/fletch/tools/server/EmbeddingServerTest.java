package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Pooling;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Embeddings over real sockets, with the tiny models of the runtime's tests. */
class EmbeddingServerTest {
  private static final Path MODELS =
      Path.of("../runtime/src/test/resources/io/fletch/runtime/engine/embedders");

  private static Embedder bert;
  private static HttpClient client;

  private FletchServer server;

  @BeforeAll
  static void open() {
    bert = Embedder.open(MODELS.resolve("bert.gguf"));
    client = HttpClient.newHttpClient();
  }

  @AfterAll
  static void shut() {
    client.close();
    bert.close();
  }

  @AfterEach
  void stop() {
    if (server != null) {
      server.close();
    }
  }

  private static FletchServer.Options options(Duration limit) {
    return new FletchServer.Options(
        new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
        "demo-small",
        SamplingOptions.greedy(),
        4,
        64,
        1 << 20,
        limit,
        Duration.ofSeconds(5),
        Optional.empty(),
        Optional.empty());
  }

  private void startAlone(Duration limit) {
    server =
        FletchServer.start(
            Optional.empty(),
            Optional.of(new FletchServer.Embeddings(bert, "bert")),
            options(limit));
  }

  private HttpRequest.Builder to(String path) {
    return HttpRequest.newBuilder(
        URI.create("http://127.0.0.1:" + server.address().getPort() + path));
  }

  private HttpResponse<String> post(String path, Object body) {
    try {
      HttpRequest request =
          to(path)
              .header("Content-Type", "application/json")
              .POST(HttpRequest.BodyPublishers.ofString(JSON.std.asString(body)))
              .build();
      return client.send(request, BodyHandlers.ofString());
    } catch (IOException | InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  private static Map<String, Object> json(String text) {
    try {
      return JSON.std.mapFrom(text);
    } catch (IOException e) {
      throw new AssertionError(text, e);
    }
  }

  private Map<String, Object> embed(Map<String, ?> body) {
    HttpResponse<String> response = post("/v1/embeddings", body);
    assertEquals(200, response.statusCode(), response.body());
    return json(response.body());
  }

  private static Object vector(Map<String, Object> answer, int index) {
    Map<?, ?> one = (Map<?, ?>) ((List<?>) answer.get("data")).get(index);
    assertEquals("embedding", one.get("object"));
    assertEquals(index, one.get("index"));
    return one.get("embedding");
  }

  private static float[] floats(Object list) {
    List<?> values = (List<?>) list;
    float[] out = new float[values.size()];
    for (int i = 0; i < out.length; i++) {
      out[i] = ((Number) values.get(i)).floatValue();
    }
    return out;
  }

  @Test
  void textsTokensAndForms() {
    startAlone(Duration.ofSeconds(60));
    float[] fox = bert.embed("the fox");
    float[] dog = bert.embed("a dog");
    Map<String, Object> one = embed(Map.of("model", "bert", "input", "the fox"));
    assertEquals("list", one.get("object"));
    assertEquals("bert", one.get("model"));
    assertEquals(Map.of("prompt_tokens", 4, "total_tokens", 4), one.get("usage"));
    assertArrayEquals(fox, floats(vector(one, 0)));
    Map<String, Object> two = embed(Map.of("input", List.of("the fox", "a dog")));
    assertArrayEquals(fox, floats(vector(two, 0)));
    assertArrayEquals(dog, floats(vector(two, 1)));
    int[] ids = bert.tokens("the fox");
    List<Integer> boxed = Arrays.stream(ids).boxed().toList();
    assertArrayEquals(fox, floats(vector(embed(Map.of("input", boxed)), 0)));
    Map<String, Object> lists = embed(Map.of("input", List.of(boxed, boxed)));
    assertArrayEquals(fox, floats(vector(lists, 1)));
    assertEquals(Map.of("prompt_tokens", 8, "total_tokens", 8), lists.get("usage"));
    Map<String, Object> base64 =
        embed(Map.of("input", "the fox", "encoding_format", "base64", "dimensions", 8));
    byte[] bytes = Base64.getDecoder().decode((String) vector(base64, 0));
    float[] decoded = new float[8];
    ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(decoded);
    assertEquals(32, bytes.length);
    assertArrayEquals(Embedder.shortened(fox, 8), decoded);
    // More than a slice at once.
    Map<String, Object> many = embed(Map.of("input", Collections.nCopies(100, "the fox")));
    assertArrayEquals(fox, floats(vector(many, 99)));
  }

  @Test
  void wrongRequestsAreNamed() {
    startAlone(Duration.ofSeconds(60));
    Object[][] cases = {
      {Map.of(), "input"},
      {Map.of("input", List.of()), "input"},
      {Map.of("input", 5), "input"},
      {Map.of("input", List.of("x", 5)), "input[1]"},
      {Map.of("input", List.of(Map.of())), "input[0]"},
      {Map.of("input", List.of(1, "x")), "input"},
      {Map.of("input", List.of(1, 560)), "input"},
      {Map.of("input", List.of(1, -1)), "input"},
      {Map.of("input", List.of(1.5)), "input"},
      {Map.of("input", List.of(List.of())), "input[0]"},
      {Map.of("input", Collections.nCopies(2049, "x")), "input"},
      {Map.of("input", "x", "dimensions", 0), "dimensions"},
      {Map.of("input", "x", "dimensions", 33), "dimensions"},
      {Map.of("input", "x", "encoding_format", "int8"), "encoding_format"},
      {Map.of("input", "x", "temperature", 1), "temperature"},
    };
    for (Object[] c : cases) {
      HttpResponse<String> response = post("/v1/embeddings", c[0]);
      assertEquals(400, response.statusCode(), response.body());
      Map<?, ?> error = (Map<?, ?>) json(response.body()).get("error");
      assertEquals(c[1], error.get("param"), response.body());
    }
    for (Object input :
        List.of("tokenization ".repeat(70), Collections.nCopies(65, 5), List.of("x ".repeat(80)))) {
      HttpResponse<String> response = post("/v1/embeddings", Map.of("input", input));
      assertEquals(400, response.statusCode(), response.body());
      assertTrue(response.body().contains("context_length_exceeded"), response.body());
    }
    HttpResponse<String> other = post("/v1/embeddings", Map.of("input", "x", "model", "gpt"));
    assertEquals(404, other.statusCode());
    HttpResponse<String> chat =
        post(
            "/v1/chat/completions",
            Map.of("messages", List.of(Map.of("role", "user", "content", "hello"))));
    assertEquals(400, chat.statusCode());
    assertTrue(chat.body().contains("not_a_text_model"), chat.body());
  }

  @Test
  void aTimeLimitEndsLongRequests() {
    startAlone(Duration.ZERO);
    HttpResponse<String> response = post("/v1/embeddings", Map.of("input", "x"));
    assertEquals(503, response.statusCode(), response.body());
    assertTrue(response.body().contains("timeout"), response.body());
  }

  @Test
  void requestsAtTheSameTimeGetWhatTheyGetAlone() throws Exception {
    startAlone(Duration.ofSeconds(60));
    List<CompletableFuture<Void>> all = new ArrayList<>();
    for (int i = 0; i < 40; i++) {
      String text = "the fox " + "and a dog ".repeat(i % 6) + i;
      float[] expected = bert.embed(text);
      HttpRequest request =
          to("/v1/embeddings")
              .header("Content-Type", "application/json")
              .POST(HttpRequest.BodyPublishers.ofString(JSON.std.asString(Map.of("input", text))))
              .build();
      all.add(
          client
              .sendAsync(request, BodyHandlers.ofString())
              .thenAccept(
                  r -> assertArrayEquals(expected, floats(vector(json(r.body()), 0)), text)));
    }
    for (CompletableFuture<Void> f : all) {
      f.get();
    }
    String counted = "fletch_requests_total{route=\"embeddings\",status=\"200\"} 40";
    String metrics = "";
    // A request is counted when its answer has left, which its client may see earlier.
    for (int i = 0; i < 1000 && !metrics.contains(counted); i++) {
      Thread.sleep(5);
      metrics = client.send(to("/metrics").build(), BodyHandlers.ofString()).body();
    }
    assertTrue(metrics.contains(counted), metrics);
    assertTrue(metrics.contains("\nfletch_embeddings_total 40\n"), metrics);
  }

  @Test
  void besideAModelThatGeneratesText() throws Exception {
    try (Model model = Model.demo("demo-small", ModelOptions.defaults().withThreads(1))) {
      server =
          FletchServer.start(
              Optional.of(model),
              Optional.of(new FletchServer.Embeddings(bert, "bert")),
              options(Duration.ofSeconds(60)));
      String models = client.send(to("/v1/models").build(), BodyHandlers.ofString()).body();
      List<?> data = (List<?>) json(models).get("data");
      assertEquals(
          List.of("demo-small", "bert"),
          data.stream().map(m -> ((Map<?, ?>) m).get("id")).toList());
      assertEquals(
          200, client.send(to("/v1/models/bert").build(), BodyHandlers.ofString()).statusCode());
      assertArrayEquals(bert.embed("a dog"), floats(vector(embed(Map.of("input", "a dog")), 0)));
      Map<String, Object> completion = Map.of("prompt", "x", "max_tokens", 2);
      assertEquals(200, post("/v1/completions", completion).statusCode());
      HttpResponse<String> wrong =
          post("/v1/embeddings", Map.of("model", "demo-small", "input", "x"));
      assertEquals(400, wrong.statusCode());
      assertTrue(wrong.body().contains("not_an_embedding_model"), wrong.body());
      wrong = post("/v1/completions", Map.of("model", "bert", "prompt", "x"));
      assertTrue(wrong.body().contains("not_a_text_model"), wrong.body());
      server.close();
      server = null;
    }
  }

  @Test
  void impossibleServersAreRefused() {
    FletchServer.Options options = options(Duration.ofSeconds(1));
    assertThrows(
        IllegalArgumentException.class,
        () -> FletchServer.start(Optional.empty(), Optional.empty(), options));
    EmbedderOptions none = EmbedderOptions.defaults().withPooling(Pooling.NONE);
    try (Embedder tokens = Embedder.open(MODELS.resolve("bert.gguf"), none)) {
      assertThrows(
          IllegalArgumentException.class, () -> new FletchServer.Embeddings(tokens, "tokens"));
    }
    try (Model model = Model.demo("demo-small", ModelOptions.defaults().withThreads(1))) {
      assertThrows(
          IllegalArgumentException.class,
          () ->
              FletchServer.start(
                  Optional.of(model),
                  Optional.of(new FletchServer.Embeddings(bert, "demo-small")),
                  options));
    }
  }
}
