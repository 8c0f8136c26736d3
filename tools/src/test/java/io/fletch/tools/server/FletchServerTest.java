package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Routing;
import io.fletch.sampling.SamplingOptions;
import io.fletch.sampling.TokenRouter;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.concurrent.CompletableFuture;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** The server over real sockets, with the small demo model. */
class FletchServerTest {
  private static final String ANSWER = "7+6=13\n5+8+1=14\n4+3+1=8\nAnswer: 843";
  private static final String QUESTION =
      "\"messages\":[{\"role\":\"user\",\"content\":\"What is 457 + 386?\"}]";

  /** What never takes so long but on a machine that is busy with other things. */
  private static final Duration PATIENCE = Duration.ofMinutes(5);

  private static Model model;
  private static HttpClient client;

  private FletchServer server;

  @BeforeAll
  static void open() {
    model =
        Model.demo(
            "demo-small",
            ModelOptions.defaults().withThreads(1).withContextLength(512).withPrefixCache(1 << 20));
    client = HttpClient.newHttpClient();
  }

  @AfterAll
  static void shut() {
    client.close();
    // Refused if a request has left a session open.
    model.close();
  }

  private static FletchServer.Options options() {
    return new FletchServer.Options(
        new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
        "demo-small",
        SamplingOptions.greedy(),
        2,
        2,
        10_000,
        PATIENCE,
        Duration.ofSeconds(5),
        Optional.empty(),
        Optional.empty());
  }

  private static FletchServer.Options with(
      int parallel, int queue, Duration limit, Duration drain, String key, String cors) {
    FletchServer.Options o = options();
    return new FletchServer.Options(
        o.address(),
        o.modelId(),
        o.sampling(),
        parallel,
        queue,
        o.maxBody(),
        limit,
        drain,
        Optional.ofNullable(key),
        Optional.ofNullable(cors));
  }

  @BeforeEach
  void start() {
    server = FletchServer.start(model, options());
  }

  private void restart(FletchServer.Options options) {
    server.close();
    server = FletchServer.start(model, options);
  }

  private void restart(FletchServer.Options options, Duration patience) {
    server.close();
    server = FletchServer.start(Optional.of(model), Optional.empty(), List.of(), options, patience);
  }

  @AfterEach
  void stop() {
    server.close();
  }

  private HttpRequest.Builder to(String path) {
    return HttpRequest.newBuilder(
            URI.create("http://127.0.0.1:" + server.address().getPort() + path))
        .timeout(PATIENCE);
  }

  private HttpRequest post(String path, String body) {
    return to(path)
        .header("Content-Type", "application/json")
        .POST(HttpRequest.BodyPublishers.ofString(body))
        .build();
  }

  private static HttpResponse<String> send(HttpRequest request) {
    try {
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

  private static Object at(Object value, Object... path) {
    for (Object step : path) {
      value = step instanceof Integer i ? ((List<?>) value).get(i) : ((Map<?, ?>) value).get(step);
    }
    return value;
  }

  private Map<String, Object> ok(String path, String body) {
    HttpResponse<String> response = send(post(path, body));
    assertEquals(200, response.statusCode(), response.body());
    assertEquals("application/json", response.headers().firstValue("Content-Type").orElseThrow());
    return json(response.body());
  }

  private List<Map<String, Object>> stream(String path, String body) {
    HttpResponse<String> response = send(post(path, body));
    assertEquals(200, response.statusCode(), response.body());
    List<Map<String, Object>> out = new ArrayList<>();
    List<String> lines = response.body().lines().filter(l -> l.startsWith("data: ")).toList();
    assertEquals("data: [DONE]", lines.getLast());
    lines.subList(0, lines.size() - 1).forEach(l -> out.add(json(l.substring(6))));
    return out;
  }

  private double metric(String name) {
    OptionalDouble value = find(name);
    assertTrue(value.isPresent(), name);
    return value.getAsDouble();
  }

  private OptionalDouble find(String name) {
    Matcher m =
        Pattern.compile("(?m)^" + Pattern.quote(name) + " (\\S+)$")
            .matcher(send(to("/metrics").build()).body());
    return m.find() ? OptionalDouble.of(Double.parseDouble(m.group(1))) : OptionalDouble.empty();
  }

  private void await(String name, double value) throws InterruptedException {
    long end = System.nanoTime() + PATIENCE.toNanos();
    while (find(name).orElse(0) != value) {
      assertTrue(System.nanoTime() < end, name + " does not become " + value);
      Thread.sleep(10);
    }
  }

  @Test
  void answersAChat() {
    Map<String, Object> answer =
        ok("/v1/chat/completions", "{\"model\":\"demo-small\"," + QUESTION + "}");
    assertEquals("chat.completion", answer.get("object"));
    assertEquals(ANSWER, at(answer, "choices", 0, "message", "content"));
    assertEquals("assistant", at(answer, "choices", 0, "message", "role"));
    assertEquals("stop", at(answer, "choices", 0, "finish_reason"));
    int prompt = (int) at(answer, "usage", "prompt_tokens");
    assertTrue(prompt > 0);
    assertEquals(
        prompt + (int) at(answer, "usage", "completion_tokens"),
        at(answer, "usage", "total_tokens"));
    // The second time the prompt is there already.
    Map<String, Object> again = ok("/v1/chat/completions", "{" + QUESTION + "}");
    assertEquals(ANSWER, at(again, "choices", 0, "message", "content"));
    assertEquals(prompt - 1, at(again, "usage", "prompt_tokens_details", "cached_tokens"));
  }

  @Test
  void streams() {
    List<Map<String, Object>> chunks =
        stream(
            "/v1/chat/completions",
            "{\"stream\":true,\"stream_options\":{\"include_usage\":true}," + QUESTION + "}");
    StringBuilder text = new StringBuilder();
    for (Map<String, Object> chunk : chunks.subList(0, chunks.size() - 1)) {
      assertEquals("chat.completion.chunk", chunk.get("object"));
      assertEquals(chunks.getFirst().get("id"), chunk.get("id"));
      assertTrue(chunk.containsKey("usage") && chunk.get("usage") == null);
      Object content = at(chunk, "choices", 0, "delta", "content");
      text.append(content == null ? "" : content);
    }
    assertEquals(ANSWER, text.toString());
    assertEquals("assistant", at(chunks.getFirst(), "choices", 0, "delta", "role"));
    assertEquals("stop", at(chunks.get(chunks.size() - 2), "choices", 0, "finish_reason"));
    assertEquals(List.of(), chunks.getLast().get("choices"));
    assertTrue((int) at(chunks.getLast(), "usage", "completion_tokens") > 10);
  }

  @Test
  void completesText() {
    String prompt = "<|im_start|>user\\nWhat is 457 + 386?<|im_end|>\\n<|im_start|>assistant\\n";
    Map<String, Object> answer =
        ok("/v1/completions", "{\"max_tokens\":100,\"prompt\":\"" + prompt + "\"}");
    assertEquals("text_completion", answer.get("object"));
    assertEquals(ANSWER, at(answer, "choices", 0, "text"));
    answer =
        ok("/v1/completions", "{\"prompt\":\"" + prompt + "\",\"logprobs\":2,\"max_tokens\":3}");
    assertEquals("length", at(answer, "choices", 0, "finish_reason"));
    assertEquals(3, ((List<?>) at(answer, "choices", 0, "logprobs", "tokens")).size());
    assertEquals(2, ((Map<?, ?>) at(answer, "choices", 0, "logprobs", "top_logprobs", 0)).size());
    StringBuilder text = new StringBuilder();
    stream(
            "/v1/completions",
            "{\"stream\":true,\"max_tokens\":100,\"prompt\":[\"" + prompt + "\"]}")
        .forEach(c -> text.append(at(c, "choices", 0, "text")));
    assertEquals(ANSWER, text.toString());
    int[] ids = model.tokenizer().encode(prompt.replace("\\n", "\n"));
    answer =
        ok(
            "/v1/completions",
            "{\"max_tokens\":100,\"prompt\":" + java.util.Arrays.toString(ids) + "}");
    assertEquals(ANSWER, at(answer, "choices", 0, "text"));
  }

  @Test
  void obeysItsOptions() {
    Map<String, Object> a =
        ok(
            "/v1/chat/completions",
            "{\"stop\":[\"5+8\"],\"logprobs\":true,\"top_logprobs\":2," + QUESTION + "}");
    assertEquals("7+6=13\n", at(a, "choices", 0, "message", "content"));
    assertEquals("stop", at(a, "choices", 0, "finish_reason"));
    Object first = at(a, "choices", 0, "logprobs", "content", 0);
    assertEquals(2, ((List<?>) at(first, "top_logprobs")).size());
    assertTrue((double) at(first, "logprob") <= 0);
    assertEquals(at(first, "token"), at(first, "top_logprobs", 0, "token"));
    a = ok("/v1/chat/completions", "{\"max_completion_tokens\":2," + QUESTION + "}");
    assertEquals(2, at(a, "usage", "completion_tokens"));
    assertEquals("length", at(a, "choices", 0, "finish_reason"));
    String sampled = "{\"temperature\":1.7,\"seed\":%d,\"max_tokens\":30," + QUESTION + "}";
    List<Object> texts = new ArrayList<>();
    for (int seed : new int[] {1, 1, 2, 3}) {
      a = ok("/v1/chat/completions", sampled.formatted(seed));
      texts.add(at(a, "choices", 0, "message", "content"));
    }
    assertEquals(texts.get(0), texts.get(1));
    assertTrue(texts.stream().distinct().count() > 1, texts.toString());
    int id = model.tokenizer().encode("7", false, false)[0];
    a = ok("/v1/chat/completions", "{\"logit_bias\":{\"" + id + "\":-100}," + QUESTION + "}");
    assertFalse(at(a, "choices", 0, "message", "content").toString().startsWith("7"));
  }

  @Test
  void structuresItsOutput() throws IOException {
    Map<String, Object> a =
        ok(
            "/v1/chat/completions",
            "{\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"type\":\"object\",\"properties\":{\"sum\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":9999},\"even\":{\"type\":\"boolean\"}},\"required\":[\"sum\",\"even\"],\"additionalProperties\":false}}},"
                + QUESTION
                + "}");
    Map<String, Object> content = json((String) at(a, "choices", 0, "message", "content"));
    assertEquals(List.of("sum", "even"), List.copyOf(content.keySet()));
    assertTrue(content.get("even") instanceof Boolean);
    a =
        ok(
            "/v1/chat/completions",
            "{\"grammar\":\"root ::= \\\"yes\\\" | \\\"no\\\"\"," + QUESTION + "}");
    assertTrue(List.of("yes", "no").contains(at(a, "choices", 0, "message", "content")));
    HttpResponse<String> bad =
        send(post("/v1/chat/completions", "{\"grammar\":\"root ::=\\n\\n x\"," + QUESTION + "}"));
    assertEquals(400, bad.statusCode());
    assertTrue(bad.body().contains("grammar line"), bad.body());
    bad =
        send(
            post(
                "/v1/chat/completions",
                "{\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{\"pattern\":\"a\"}}},"
                    + QUESTION
                    + "}"));
    assertEquals(400, bad.statusCode());
    assertTrue(bad.body().contains("keyword pattern"), bad.body());
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '~',
      quoteCharacter = '`',
      value = {
        "{ ~ not JSON",
        "[] ~ expected=an object",
        "{} ~ messages",
        "{Q} x ~ not JSON",
        "{Q}{} ~ more behind it",
        "{\"stream_options\":{\"x\":1},Q} ~ stream_options.x",
        "{\"response_format\":{\"type\":\"text\",\"x\":1},Q} ~ response_format.x",
        "{\"chat_template_kwargs\":[],Q} ~ chat_template_kwargs",
        "{\"messages\":{}} ~ messages: expected=an array",
        "{\"messages\":[1]} ~ messages[0]: expected=an object",
        "{\"messages\":[{\"role\":\"wizard\",\"content\":\"x\"}]} ~ messages[0].role",
        "{\"messages\":[{\"role\":\"user\"}]} ~ messages[0].content",
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]} ~"
            + " content[0].type",
        "{\"temperature\":\"hot\",Q} ~ temperature: expected=a number",
        "{\"temperature\":-1,Q} ~ temperature",
        "{\"temperature\":1e999,Q} ~ temperature",
        "{\"max_tokens\":0,Q} ~ max_tokens",
        "{\"max_tokens\":1.5,Q} ~ max_tokens",
        "{\"n\":0,Q} ~ n: expected=",
        "{\"n\":129,Q} ~ n: expected=",
        "{\"best_of\":2,Q} ~ best_of",
        "{\"stop\":[1],Q} ~ stop",
        "{\"stop\":\"\",Q} ~ stop",
        "{\"logit_bias\":{\"x\":1},Q} ~ logit_bias",
        "{\"logit_bias\":{\"999999999\":1},Q} ~ logit bias",
        "{\"top_logprobs\":3,Q} ~ top_logprobs needs logprobs",
        "{\"audio\":{},Q} ~ unknown or unsupported parameter: audio",
        "{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],Q} ~ knows no tools",
        "{\"tool_choice\":\"required\",Q} ~ there are no tools",
        "{\"tools\":[129*],Q} ~ tools: expected=at most 128 actual=129",
        "{\"response_format\":{\"type\":\"xml\"},Q} ~ response_format.type",
        "{\"stream\":1,Q} ~ stream",
        "{\"modalities\":[\"text\",\"audio\"],Q} ~ modalities",
        "{\"verbosity\":\"low\",Q} ~ verbosity",
        "{\"max_tokens\":-2,Q} ~ max_tokens",
        "{\"top_k\":-2,Q} ~ top_k",
        "{\"cache_prompt\":1,Q} ~ cache_prompt",
        "{\"repetition_penalty\":0,Q} ~ repetition_penalty",
      })
  void refusesMalformedRequests(String body, String message) {
    String whole = body.replace("Q", QUESTION).replace("129*", "1,".repeat(128) + "1");
    HttpResponse<String> response = send(post("/v1/chat/completions", whole));
    assertEquals(400, response.statusCode(), response.body());
    Map<String, Object> error = json(response.body());
    assertEquals("invalid_request_error", at(error, "error", "type"));
    assertTrue(at(error, "error", "message").toString().contains(message.strip()), response.body());
  }

  @Test
  void refusesOtherRequests() throws IOException {
    for (Object[] c :
        new Object[][] {
          {404, to("/nowhere").build(), "not_found"},
          {404, to("/v1/models/other").build(), "model_not_found"},
          {
            404,
            post("/v1/chat/completions", "{\"model\":\"gpt-4\"," + QUESTION + "}"),
            "model_not_found"
          },
          {405, to("/v1/chat/completions").build(), "method_not_allowed"},
          {405, post("/health", "{}"), "method_not_allowed"},
          {
            405,
            to("/v1/models").method("OPTIONS", HttpRequest.BodyPublishers.noBody()).build(),
            "method_not_allowed"
          },
          {
            413,
            post("/v1/completions", "{\"prompt\":\"" + "x".repeat(10_001) + "\"}"),
            "request_too_large"
          },
          {
            400,
            post("/v1/completions", "{\"prompt\":\"" + "x".repeat(9_000) + "\"}"),
            "context_length_exceeded"
          },
          {400, post("/v1/embeddings", "{\"input\":\"x\"}"), "not_an_embedding_model"},
          {
            415,
            to("/v1/completions")
                .header("Content-Type", "text/plain")
                .POST(HttpRequest.BodyPublishers.ofString("{}"))
                .build(),
            "unsupported_media_type"
          },
        }) {
      HttpResponse<String> response = send((HttpRequest) c[1]);
      assertEquals(c[0], response.statusCode(), response.body());
      assertEquals(c[2], at(json(response.body()), "error", "code"), response.body());
    }
    // A deep body, one that is no UTF-8, and a name that was pointed at this machine.
    assertEquals(400, send(post("/v1/completions", "[".repeat(9000))).statusCode());
    assertTrue(
        raw("POST /v1/completions HTTP/1.1\r\n"
                + "Host: localhost\r\n"
                + "Content-Type: application/json\r\n"
                + "Content-Length: 5\r\n\r\n"
                + "{\"\u00ff\"}")
            .startsWith("HTTP/1.1 400"));
    assertTrue(
        raw("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n").startsWith("HTTP/1.1 403"));
    assertTrue(
        raw("GET /v1/models HTTP/1.1\r\nHost: LocalHost:80\r\n\r\n").startsWith("HTTP/1.1 200"));
    // The server still works.
    assertEquals(200, send(to("/health").build()).statusCode());
  }

  @Test
  void saysWhereItCannotListen() {
    FletchServer.Options o = options();
    FletchServer.Options taken =
        new FletchServer.Options(
            server.address(),
            o.modelId(),
            o.sampling(),
            1,
            0,
            o.maxBody(),
            o.timeLimit(),
            o.drain(),
            o.apiKey(),
            o.corsOrigin());
    UncheckedIOException e =
        assertThrows(UncheckedIOException.class, () -> FletchServer.start(model, taken));
    // The command line shows the cause.
    assertTrue(e.getCause().getMessage().contains(":" + server.address().getPort() + ": "));
  }

  @Test
  void answersHeads() throws Exception {
    for (String path : List.of("/health", "/v1/models", "/metrics", "/", "/v1/models/none")) {
      HttpResponse<String> head =
          send(to(path).method("HEAD", HttpRequest.BodyPublishers.noBody()).build());
      HttpResponse<String> get = send(to(path).build());
      assertEquals(get.statusCode(), head.statusCode());
      assertEquals("", head.body());
      if (!path.equals("/metrics")) {
        assertEquals(
            get.headers().firstValue("Content-Length"),
            head.headers().firstValue("Content-Length"));
      }
    }
    HttpResponse<String> post =
        send(to("/v1/completions").method("HEAD", HttpRequest.BodyPublishers.noBody()).build());
    assertEquals(405, post.statusCode());
    assertEquals("POST", post.headers().firstValue("Allow").orElseThrow());
    for (Map.Entry<String, String> e :
        Map.of("/health", "GET, HEAD", "/lora-adapters", "GET, HEAD, POST").entrySet()) {
      HttpResponse<String> put =
          send(to(e.getKey()).PUT(HttpRequest.BodyPublishers.ofString("{}")).build());
      assertEquals(405, put.statusCode());
      assertEquals(e.getValue(), put.headers().firstValue("Allow").orElseThrow());
    }
  }

  /** What clients of other servers send. */
  @Test
  void takesHabitsOfClients() throws IOException {
    Map<String, Object> a =
        ok(
            "/v1/chat/completions",
            "{\"response_format\":{\"type\":\"json_object\",\"schema\":{\"type\":\"object\","
                + "\"properties\":{\"a\":{\"type\":\"integer\",\"maximum\":99,\"minimum\":0}},\"required\":[\"a\"],"
                + "\"additionalProperties\":false}},"
                + QUESTION
                + "}");
    assertEquals(
        List.of("a"),
        List.copyOf(json((String) at(a, "choices", 0, "message", "content")).keySet()));
    a =
        ok(
            "/v1/chat/completions",
            "{\"chat_template_kwargs\":{\"enable_thinking\":false,\"messages\":[]},"
                + QUESTION
                + "}");
    assertEquals(ANSWER, at(a, "choices", 0, "message", "content"));
    // Of OpenAI's libraries, llama.cpp's server and vLLM.
    a =
        ok(
            "/v1/chat/completions",
            "{\"modalities\":[\"text\"],\"verbosity\":\"medium\",\"prediction\":{\"type\":\"content\",\"content\":\"x\"},"
                + "\"cache_prompt\":false,\"top_k\":-1,\"max_tokens\":-1,\"repetition_penalty\":1.0,"
                + QUESTION
                + "}");
    assertEquals(ANSWER, at(a, "choices", 0, "message", "content"));
    String penalized = "{\"NAME\":100,\"max_tokens\":8," + QUESTION + "}";
    Object one =
        at(
            ok("/v1/chat/completions", penalized.replace("NAME", "repeat_penalty")),
            "choices",
            0,
            "message",
            "content");
    assertEquals(
        one,
        at(
            ok("/v1/chat/completions", penalized.replace("NAME", "repetition_penalty")),
            "choices",
            0,
            "message",
            "content"));
    assertFalse(ANSWER.startsWith(one.toString()));
    ok("/v1/completions", "{\"prompt\":[[1,2,3]],\"echo\":false,\"suffix\":null,\"max_tokens\":2}");
    assertEquals(
        400, send(post("/v1/completions", "{\"prompt\":\"x\",\"echo\":true}")).statusCode());
    HttpResponse<String> zipped =
        send(
            to("/v1/completions")
                .header("Content-Type", "application/json")
                .header("Content-Encoding", "gzip")
                .POST(HttpRequest.BodyPublishers.ofString("{}"))
                .build());
    assertEquals(415, zipped.statusCode());
    assertTrue(zipped.body().contains("Content-Encoding"), zipped.body());
  }

  /** Each prompt gets what it gets alone. */
  @Test
  void completesSeveralPrompts() {
    List<String> texts = new ArrayList<>();
    int promptTokens = 0;
    String more = "\"temperature\":1,\"seed\":5,\"n\":2,\"max_tokens\":4";
    for (String prompt : List.of("\"2 + 2 =\"", "[1,2,3]")) {
      Map<String, Object> alone = ok("/v1/completions", "{\"prompt\":" + prompt + "," + more + "}");
      texts.add(at(alone, "choices", 0, "text").toString());
      texts.add(at(alone, "choices", 1, "text").toString());
      promptTokens += (int) at(alone, "usage", "prompt_tokens");
    }
    String both = "{\"prompt\":[\"2 + 2 =\",[1,2,3]]," + more;
    Map<String, Object> a = ok("/v1/completions", both + "}");
    List<String> answers = new ArrayList<>();
    for (int i = 0; i < ((List<?>) a.get("choices")).size(); i++) {
      assertEquals(i, at(a, "choices", i, "index"));
      answers.add(at(a, "choices", i, "text").toString());
    }
    assertEquals(texts, answers);
    assertEquals(promptTokens, at(a, "usage", "prompt_tokens"));
    String[] streamed = {"", "", "", ""};
    for (Map<String, Object> chunk :
        stream(
            "/v1/completions",
            both + ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}")) {
      if (((List<?>) chunk.get("choices")).isEmpty()) {
        assertEquals(promptTokens, at(chunk, "usage", "prompt_tokens"));
      } else {
        streamed[(int) at(chunk, "choices", 0, "index")] += at(chunk, "choices", 0, "text");
      }
    }
    assertEquals(texts, List.of(streamed));
    for (String bad :
        List.of(
            "[]",
            "[\"a\",1]",
            "[\"a\",[]]",
            "[\"a\",null]",
            "{}",
            "[" + "\"a\",".repeat(64) + "\"a\"]")) {
      HttpResponse<String> refused =
          send(post("/v1/completions", "{\"n\":2,\"prompt\":" + bad + "}"));
      assertEquals(400, refused.statusCode(), bad);
      assertTrue(
          refused.body().contains("\"param\":\"" + (bad.length() > 99 ? "n" : "prompt")),
          refused.body());
    }
  }

  /** All that comes back, until the server closes the connection. */
  private String whole(String text) throws IOException {
    try (Socket socket = new Socket("127.0.0.1", server.address().getPort())) {
      socket.setSoTimeout((int) PATIENCE.toMillis());
      socket.getOutputStream().write(text.getBytes(StandardCharsets.ISO_8859_1));
      socket.shutdownOutput();
      return new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    }
  }

  @Test
  void saysWhyABodyIsNone() throws IOException {
    String head =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    String health = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    String prompt = "{\"prompt\":\"2\",\"max_tokens\":1}";
    String size = Integer.toHexString(prompt.length());
    for (String body :
        List.of(
            // Too short, no chunks, a chunk that breaks off, and fields behind them.
            "Content-Length: 99\r\n\r\n" + prompt,
            "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + prompt + "\r\n" + health,
            "Transfer-Encoding: chunked\r\n\r\n" + size + "\r\n" + prompt.substring(9),
            "Transfer-Encoding: chunked\r\n\r\n"
                + size
                + "\r\n"
                + prompt
                + "\r\n0\r\nX-Sum: 1\r\n\r\n"
                + health)) {
      String answer = whole(head + body);
      assertTrue(answer.startsWith("HTTP/1.1 400"), body + answer);
      assertTrue(answer.contains("\"code\":\"invalid_body\""), answer);
      // What stands behind is not taken for a request.
      assertFalse(answer.contains("\"status\""), answer);
    }
    String chunked =
        whole(
            head
                + "Transfer-Encoding: chunked\r\n\r\n"
                + size
                + ";name=value\r\n"
                + prompt
                + "\r\n0\r\n\r\n"
                + health);
    assertTrue(chunked.startsWith("HTTP/1.1 200") && chunked.contains("\"status\""), chunked);
    String far = send(to("/" + "a".repeat(5000)).build()).body();
    assertTrue(far.length() < 300, far);
  }

  private String raw(String text) throws IOException {
    try (Socket socket = new Socket("127.0.0.1", server.address().getPort())) {
      socket.getOutputStream().write(text.getBytes(StandardCharsets.ISO_8859_1));
      socket.getOutputStream().flush();
      socket.setSoTimeout((int) PATIENCE.toMillis());
      byte[] buffer = new byte[15];
      int n = socket.getInputStream().readNBytes(buffer, 0, buffer.length);
      return new String(buffer, 0, n, StandardCharsets.ISO_8859_1);
    }
  }

  @Test
  void aSmallModelProposesWhereTheServerHasOne() {
    String body = "{" + QUESTION + "}";
    Object alone = at(ok("/v1/chat/completions", body), "choices", 0, "message", "content");
    double bytes = metric("fletch_weight_bytes_total");
    double tokens = metric("fletch_completion_tokens_total");
    FletchServer.Options o = options();
    restart(
        new FletchServer.Options(
            o.address(),
            o.modelId(),
            o.sampling(),
            o.parallel(),
            o.queue(),
            o.maxBody(),
            o.timeLimit(),
            o.drain(),
            o.apiKey(),
            o.corsOrigin(),
            Optional.of(new Routing(model, TokenRouter.entropy(), 0)),
            Optional.empty()));
    assertEquals(alone, at(ok("/v1/chat/completions", body), "choices", 0, "message", "content"));
    assertEquals(tokens, metric("fletch_completion_tokens_total"));
    assertEquals(tokens, metric("fletch_routed_tokens_total"), "the threshold routes every token");
    assertEquals(2 * bytes, metric("fletch_weight_bytes_total"));
  }

  @Test
  void givesSeveralChoices() {
    String hot = "\"temperature\":3,\"top_k\":40,\"min_p\":0,\"max_tokens\":12,";
    String body = hot + "\"seed\":7,\"n\":3," + QUESTION;
    Map<String, Object> all = ok("/v1/chat/completions", "{" + body + "}");
    List<String> texts = new ArrayList<>();
    int tokens = 0;
    for (int i = 0; i < 3; i++) {
      assertEquals(i, at(all, "choices", i, "index"));
      // What a request with that seed gets alone.
      Map<String, Object> one =
          ok("/v1/chat/completions", "{" + hot + "\"seed\":" + (7 + i) + "," + QUESTION + "}");
      texts.add((String) at(one, "choices", 0, "message", "content"));
      tokens += (int) at(one, "usage", "completion_tokens");
      assertEquals(texts.get(i), at(all, "choices", i, "message", "content"));
      assertEquals(at(one, "choices", 0, "finish_reason"), at(all, "choices", i, "finish_reason"));
      assertEquals(
          at(one, "usage", "prompt_tokens"), at(all, "usage", "prompt_tokens"), "counted once");
    }
    assertTrue(texts.stream().distinct().count() > 1, texts.toString());
    assertEquals(tokens, at(all, "usage", "completion_tokens"));

    List<StringBuilder> streamed =
        List.of(new StringBuilder(), new StringBuilder(), new StringBuilder());
    List<Map<String, Object>> chunks =
        stream(
            "/v1/chat/completions",
            "{\"stream\":true,\"stream_options\":{\"include_usage\":true}," + body + "}");
    assertEquals(tokens, at(chunks.getLast(), "usage", "completion_tokens"));
    int ends = 0;
    for (Map<String, Object> chunk : chunks.subList(0, chunks.size() - 1)) {
      Object content = at(chunk, "choices", 0, "delta", "content");
      if (content != null) {
        streamed.get((int) at(chunk, "choices", 0, "index")).append(content);
      }
      ends += at(chunk, "choices", 0, "finish_reason") == null ? 0 : 1;
    }
    assertEquals(3, ends);
    assertEquals(texts, streamed.stream().map(StringBuilder::toString).toList());

    Map<String, Object> old =
        ok(
            "/v1/completions",
            "{\"prompt\":\"What is\",\"n\":2,\"best_of\":2,\"logprobs\":1,\"max_tokens\":3}");
    assertEquals(2, ((List<?>) old.get("choices")).size());
    assertEquals(0, at(old, "choices", 1, "logprobs", "text_offset", 0));
    HttpResponse<String> refused =
        send(post("/v1/completions", "{\"prompt\":\"x\",\"best_of\":3,\"n\":2}"));
    assertEquals(400, refused.statusCode());
    assertTrue(refused.body().contains("best_of: expected=n (2) actual=3"), refused.body());
  }

  @Test
  void goesOnWhereTheContextIsFull() {
    FletchServer.Options o = options();
    String body =
        "{\"prompt\":\"What is 4 + 3?\",\"temperature\":0,\"ignore_eos\":true,\"max_tokens\":1200}";
    Map<String, Object> cut = ok("/v1/completions", body);
    assertEquals("length", at(cut, "choices", 0, "finish_reason"));
    assertTrue((int) at(cut, "usage", "completion_tokens") < 1200, cut.toString());
    restart(
        new FletchServer.Options(
            o.address(),
            o.modelId(),
            o.sampling(),
            o.parallel(),
            o.queue(),
            o.maxBody(),
            o.timeLimit(),
            o.drain(),
            o.apiKey(),
            o.corsOrigin(),
            Optional.empty(),
            Optional.of(new io.fletch.ContextShift(2))));
    Map<String, Object> whole = ok("/v1/completions", body);
    assertEquals(1200, at(whole, "usage", "completion_tokens"));
    String text = (String) at(whole, "choices", 0, "text");
    assertTrue(text.startsWith((String) at(cut, "choices", 0, "text")), text);
    // A prompt that does not fit loses its older half instead of being refused.
    String prompt = "9".repeat(3000);
    ok("/v1/completions", "{\"max_tokens\":2,\"prompt\":\"" + prompt + "\"}");
  }

  @Test
  void describesItself() throws InterruptedException {
    assertEquals("demo-small", at(json(send(to("/v1/models").build()).body()), "data", 0, "id"));
    assertEquals("model", json(send(to("/v1/models/demo-small").build()).body()).get("object"));
    ok("/v1/chat/completions", "{" + QUESTION + "}");
    await("fletch_requests_total{route=\"chat\",status=\"200\"}", 1);
    assertTrue(metric("fletch_completion_tokens_total") > 10);
    assertEquals(0, metric("fletch_routed_tokens_total"));
    assertEquals(
        metric("fletch_completion_tokens_total") * model.info().bytesPerToken(),
        metric("fletch_weight_bytes_total"));
    assertTrue(metric("fletch_activated_parameters_total") > 1_000_000);
    assertEquals(0, metric("fletch_active"));
    HttpResponse<String> page = send(to("/").build());
    assertEquals(200, page.statusCode());
    String policy = page.headers().firstValue("Content-Security-Policy").orElseThrow();
    assertTrue(policy.contains("default-src 'none'; script-src 'sha256-"), policy);
    // Nothing from elsewhere, and no way for text to become markup.
    assertFalse(page.body().matches("(?s).*(https?://|innerHTML|document\\.write|eval\\().*"));
    assertNull(page.headers().firstValue("Access-Control-Allow-Origin").orElse(null));
  }

  /** Takes minutes: who gets an answer to this has waited for it. */
  private static final String ENDLESS =
      "{\"stream\":%s,\"ignore_eos\":true,\"max_tokens\":480,\"n\":128," + QUESTION + "}";

  @Test
  void aClientThatLeavesCancelsItsAnswer() throws Exception {
    HttpResponse<InputStream> response =
        client.send(
            post("/v1/chat/completions", ENDLESS.formatted(true)), BodyHandlers.ofInputStream());
    try (InputStream in = response.body()) {
      assertTrue(in.read() >= 0);
    }
    isCancelled();
    // Its session goes on.
    assertEquals(
        ANSWER,
        at(ok("/v1/chat/completions", "{" + QUESTION + "}"), "choices", 0, "message", "content"));
  }

  private void isCancelled() throws InterruptedException {
    await("fletch_cancelled_total", 1);
    await("fletch_active", 0);
    assertTrue(metric("fletch_completion_tokens_total") < 128 * 480);
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aClientThatLeavesWithoutStreamingCancelsItsAnswer(boolean isReset) throws Exception {
    restart(options(), Duration.ofMillis(50));
    try (Socket socket = ask(ENDLESS.formatted(false), 1 << 16)) {
      await("fletch_active", 1);
      if (isReset) {
        socket.setSoLinger(true, 0);
      }
    }
    isCancelled();
    // Who stays gets its JSON, with white space in front of it.
    HttpResponse<String> slow =
        send(
            post(
                "/v1/chat/completions",
                "{\"ignore_eos\":true,\"max_tokens\":480,\"n\":4," + QUESTION + "}"));
    assertEquals(200, slow.statusCode());
    assertEquals("application/json", slow.headers().firstValue("Content-Type").orElseThrow());
    assertEquals(1, slow.body().lines().count());
    assertEquals(4, ((List<?>) json(slow.body()).get("choices")).size());
  }

  /** Sends a request of which the answer is not read. */
  private Socket ask(String body, int receiveBuffer) throws IOException {
    Socket socket = new Socket();
    socket.setReceiveBufferSize(receiveBuffer);
    socket.connect(new InetSocketAddress("127.0.0.1", server.address().getPort()));
    socket
        .getOutputStream()
        .write(
            ("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type:"
                    + " application/json\r\nContent-Length: "
                    + body.length()
                    + "\r\n\r\n"
                    + body)
                .getBytes(StandardCharsets.UTF_8));
    return socket;
  }

  /** Clients that do not read: their generations block in the write and keep their slots. */
  private List<Socket> blockers(int n) throws Exception {
    List<Socket> out = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      // More than fits into the buffers of any system.
      out.add(
          ask(
              "{\"stream\":true,\"ignore_eos\":true,\"logprobs\":true,\"top_logprobs\":20,\"max_tokens\":480,\"n\":128,"
                  + QUESTION
                  + "}",
              1024));
    }
    await("fletch_active", n);
    return out;
  }

  @Test
  void theQueueIsBounded() throws Exception {
    restart(with(1, 1, PATIENCE, Duration.ZERO, null, null));
    List<Socket> blockers = blockers(1);
    CompletableFuture<HttpResponse<String>> waiting =
        client.sendAsync(
            post("/v1/chat/completions", "{" + QUESTION + "}"), BodyHandlers.ofString());
    await("fletch_queued", 1);
    HttpResponse<String> refused = send(post("/v1/chat/completions", "{" + QUESTION + "}"));
    assertEquals(429, refused.statusCode(), refused.body());
    assertEquals("1", refused.headers().firstValue("Retry-After").orElseThrow());
    assertEquals("rate_limit_error", at(json(refused.body()), "error", "type"));
    for (Socket socket : blockers) {
      socket.close();
    }
    assertEquals(200, waiting.get().statusCode());
    assertEquals(1, metric("fletch_rejected_total"));
  }

  @ParameterizedTest
  @CsvSource({"true,true", "true,false", "false,true", "false,false"})
  void aClientThatLeavesTheQueueGivesItsPlaceUp(boolean isStream, boolean isReset)
      throws Exception {
    restart(with(1, 1, PATIENCE, Duration.ZERO, null, null), Duration.ofMillis(20));
    List<Socket> blockers = blockers(1);
    for (int i = 1; i <= 2; i++) {
      try (Socket socket = ask(ENDLESS.formatted(isStream), 1 << 16)) {
        await("fletch_queued", 1);
        if (isReset) {
          socket.setSoLinger(true, 0);
        }
      }
      await("fletch_cancelled_total", i);
      assertEquals(0, metric("fletch_queued"));
    }
    // All of it while the only slot was taken, and nothing was refused.
    assertEquals(1, metric("fletch_active"));
    assertEquals(0, metric("fletch_rejected_total"));
    for (Socket socket : blockers) {
      socket.close();
    }
  }

  @Test
  void whatCanNeverBeAnsweredDoesNotWait() throws Exception {
    restart(with(1, 1, PATIENCE, Duration.ZERO, null, null));
    List<Socket> blockers = blockers(1);
    HttpResponse<String> refused =
        send(post("/v1/chat/completions", "{\"logit_bias\":{\"999999999\":1}," + QUESTION + "}"));
    assertEquals(400, refused.statusCode(), refused.body());
    assertEquals(400, send(post("/v1/completions", "{\"prompt\":[99999999]}")).statusCode());
    assertEquals(0, metric("fletch_queued"));
    // Nor is it checked where there is no place, for a grammar takes time.
    blockers.add(ask(ENDLESS.formatted(true), 1 << 16));
    await("fletch_queued", 1);
    assertEquals(429, send(post("/v1/completions", "{\"prompt\":[99999999]}")).statusCode());
    for (Socket socket : blockers) {
      socket.close();
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void shutdownSendsThoseAwayThatWait(boolean isStream) throws Exception {
    restart(with(1, 1, PATIENCE, PATIENCE, null, null), Duration.ofMillis(20));
    List<Socket> blockers = blockers(1);
    try (Socket socket = ask(ENDLESS.formatted(isStream), 1 << 16)) {
      await("fletch_queued", 1);
      // Is asked whether it is still there.
      socket.setSoTimeout((int) PATIENCE.toMillis());
      assertEquals('H', socket.getInputStream().read());
      Thread closer = Thread.startVirtualThread(server::close);
      String rest = new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      // A stream says why it ends; JSON breaks off.
      assertEquals(isStream, rest.contains("\"code\":\"shutting_down\""), rest);
      assertFalse(rest.endsWith("0\r\n\r\n"), rest);
      // Those that are answered may finish.
      assertTrue(closer.isAlive());
      for (Socket blocker : blockers) {
        blocker.setSoLinger(true, 0);
        blocker.close();
      }
      closer.join();
    }
  }

  @Test
  void timeIsBounded() throws Exception {
    restart(with(1, 1, Duration.ofMillis(0), Duration.ZERO, null, null));
    Map<String, Object> a = ok("/v1/chat/completions", "{" + QUESTION + "}");
    assertEquals("length", at(a, "choices", 0, "finish_reason"));
    await("fletch_cancelled_total", 1);
  }

  @Test
  void shutdownLetsAnswersFinishAndRefusesNewOnes() throws Exception {
    restart(with(2, 2, PATIENCE, PATIENCE, null, null));
    String body = "{\"stream\":true,\"ignore_eos\":true,\"max_tokens\":480," + QUESTION + "}";
    CompletableFuture<HttpResponse<String>> running =
        client.sendAsync(post("/v1/chat/completions", body), BodyHandlers.ofString());
    long end = System.nanoTime() + PATIENCE.toNanos();
    while (metric("fletch_active") == 0 && !running.isDone()) {
      assertTrue(System.nanoTime() < end);
    }
    server.close();
    HttpResponse<String> response = running.get();
    assertEquals(200, response.statusCode());
    assertTrue(response.body().endsWith("data: [DONE]\n\n"), "cut off");
    assertThrows(AssertionError.class, () -> send(to("/health").build()));
    // Closing again does nothing.
    server.close();
  }

  @Test
  void shutdownCancelsWhatDoesNotFinish() throws Exception {
    restart(with(2, 0, PATIENCE, Duration.ZERO, null, null));
    List<Socket> sockets = blockers(2);
    for (Socket socket : sockets) {
      socket.setSoLinger(true, 0);
    }
    Thread later =
        Thread.startVirtualThread(() -> {
          try {
            Thread.sleep(300);
            for (Socket socket : sockets) {
              socket.close();
            }
          } catch (IOException | InterruptedException e) {
            throw new IllegalStateException(e);
          }
        });
    server.close();
    later.join();
  }

  /** The demo model with a template of the same length that knows tools. */
  private static Path withTools(Path folder, String marks) throws IOException {
    byte[] file = Files.readAllBytes(Model.demoFile("demo-small"));
    String text = new String(file, StandardCharsets.ISO_8859_1);
    int start = text.indexOf("{% for message in messages %}");
    int end = text.indexOf("{% endif %}", start) + "{% endif %}".length();
    String template =
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] +"
            + " '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}{#"
            + marks;
    template += " ".repeat(end - start - template.length() - 2) + "#}";
    System.arraycopy(template.getBytes(StandardCharsets.ISO_8859_1), 0, file, start, end - start);
    return Files.write(folder.resolve("tools.gguf"), file);
  }

  @ParameterizedTest
  @ValueSource(strings = {"<tool_call>", "<tool_call><function=<parameter="})
  void callsTools(String marks, @TempDir Path folder) throws IOException {
    String tools =
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{\"type\":\"object\","
            + "\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":999}},\"required\":[\"a\"]}}}],";
    try (Model own =
        Model.open(
            withTools(folder, marks),
            ModelOptions.defaults().withThreads(1).withContextLength(512))) {
      server.close();
      server = FletchServer.start(own, options());
      try {
        for (String choice :
            List.of("\"required\"", "{\"type\":\"function\",\"function\":{\"name\":\"add\"}}")) {
          String body = tools + "\"tool_choice\":" + choice + "," + QUESTION + "}";
          Map<String, Object> a = ok("/v1/chat/completions", "{" + body);
          assertEquals("tool_calls", at(a, "choices", 0, "finish_reason"));
          assertNull(at(a, "choices", 0, "message", "content"));
          Object call = at(a, "choices", 0, "message", "tool_calls", 0);
          assertEquals("function", at(call, "type"));
          assertEquals("add", at(call, "function", "name"));
          String arguments = (String) at(call, "function", "arguments");
          assertTrue((int) json(arguments).get("a") < 1000, arguments);
          List<Map<String, Object>> chunks =
              stream("/v1/chat/completions", "{\"stream\":true," + body);
          Object streamed =
              at(chunks.get(chunks.size() - 2), "choices", 0, "delta", "tool_calls", 0);
          assertEquals(0, at(streamed, "index"));
          assertEquals(arguments, at(streamed, "function", "arguments"));
          assertEquals("tool_calls", at(chunks.getLast(), "choices", 0, "finish_reason"));
        }
        // Where the model does not call, its text comes through; and a turn with results is read.
        for (String choice : List.of("auto", "none")) {
          String body = tools + "\"tool_choice\":\"" + choice + "\"," + QUESTION + "}";
          Map<String, Object> a = ok("/v1/chat/completions", "{" + body);
          assertEquals(ANSWER, at(a, "choices", 0, "message", "content"));
          StringBuilder text = new StringBuilder();
          int pieces = 0;
          for (Map<String, Object> c : stream("/v1/chat/completions", "{\"stream\":true," + body)) {
            Object piece = at(c, "choices", 0, "delta", "content");
            text.append(piece == null ? "" : piece);
            pieces++;
          }
          assertEquals(ANSWER, text.toString());
          assertTrue(pieces > 10, "text that is no call is not held back: " + pieces);
          // Both may come of it: a call, or JSON.
          Map<String, Object> either =
              ok(
                  "/v1/chat/completions",
                  "{\"max_tokens\":30,\"response_format\":{\"type\":\"json_object\"}," + body);
          Object content = at(either, "choices", 0, "message", "content");
          assertTrue(
              content == null || content.toString().matches("(?s)(\\{|<tool_call>).*"),
              either.toString());
        }
        // A function without parameters has none; of two tools the allowed one is called.
        String without =
            "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\"}},"
                + "{\"type\":\"function\",\"function\":{\"name\":\"now\"}}],\"tool_choice\":"
                + "{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"required\",\"tools\":"
                + "[{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]}},";
        Object now =
            at(
                ok("/v1/chat/completions", "{" + without + QUESTION + "}"),
                "choices",
                0,
                "message",
                "tool_calls",
                0,
                "function");
        assertEquals(Map.of("name", "now", "arguments", "{}"), now);
        // Two calls, which are forced here, unless the client wants one at most.
        String two =
            marks.contains("function")
                ? "<function=add></function>".repeat(2)
                : "<tool_call>{'name':'add'}</tool_call>".repeat(2);
        String forced =
            "\"grammar\":\"root ::= \\\"T"
                + two.replace("'", "\\\\\\\"")
                + "\\\"\",\"logit_bias\":{\""
                + own.tokenizer().encode("T")[0]
                + "\":100},"
                + tools
                + QUESTION
                + "}";
        for (String more : List.of("", "\"parallel_tool_calls\":false,")) {
          int calls = more.isEmpty() ? 2 : 1;
          Object a = ok("/v1/chat/completions", "{" + more + forced);
          assertEquals("T", at(a, "choices", 0, "message", "content"));
          assertEquals(calls, ((List<?>) at(a, "choices", 0, "message", "tool_calls")).size());
          List<Map<String, Object>> chunks =
              stream("/v1/chat/completions", "{\"stream\":true," + more + forced);
          Object delta = at(chunks.get(chunks.size() - 2), "choices", 0, "delta", "tool_calls");
          assertEquals(calls, ((List<?>) delta).size());
        }
        // A stop string behind a call is no content.
        String stopped =
            "{\"stop\":[\"See\"]," + forced.replace("\\\"\",\"logit", "See: 7\\\"\",\"logit");
        assertTrue(stopped.contains("See: 7"), stopped);
        Object message = at(ok("/v1/chat/completions", stopped), "choices", 0, "message");
        assertEquals("T", at(message, "content"));
        assertEquals(2, ((List<?>) at(message, "tool_calls")).size());
        StringBuilder said = new StringBuilder();
        for (Map<String, Object> c :
            stream("/v1/chat/completions", "{\"stream\":true," + stopped.substring(1))) {
          Object piece = at(c, "choices", 0, "delta", "content");
          said.append(piece == null ? "" : piece);
        }
        assertEquals("T", said.toString());
        ok(
            "/v1/chat/completions",
            "{\"max_tokens\":2,\"messages\":[{\"role\":\"user\",\"content\":\"x\"},"
                + "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\","
                + "\"function\":{\"name\":\"add\",\"arguments\":\"{\\\"a\\\":1}\"}}]},"
                + "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"2\"}]}");
        for (String bad :
            List.of(
                "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"none\"}},",
                "\"tool_choice\":7,",
                "\"tool_choice\":{\"type\":\"custom\",\"custom\":{\"name\":\"add\"}},",
                "\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"all\"}},",
                "\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"x\"}}]}},",
                "\"tool_choice\":\"required\",\"response_format\":{\"type\":\"json_object\"},")) {
          assertEquals(
              400,
              send(post("/v1/chat/completions", "{" + tools + bad + QUESTION + "}")).statusCode());
        }
      } finally {
        server.close();
      }
    }
  }

  @Test
  void keysAndOrigins() {
    restart(with(1, 1, PATIENCE, Duration.ZERO, "secret", "https://app.example"));
    for (String header : new String[] {null, "Bearer wrong", "secret", "Bearer "}) {
      HttpRequest.Builder request = to("/v1/models");
      if (header != null) {
        request.header("Authorization", header);
      }
      HttpResponse<String> response = send(request.build());
      assertEquals(401, response.statusCode());
      assertEquals("authentication_error", at(json(response.body()), "error", "type"));
    }
    HttpResponse<String> good =
        send(to("/v1/models").header("Authorization", "Bearer secret").build());
    assertEquals(200, good.statusCode());
    assertEquals(
        "https://app.example",
        good.headers().firstValue("Access-Control-Allow-Origin").orElseThrow());
    assertEquals(401, send(to("/metrics").build()).statusCode());
    assertEquals(200, send(to("/health").build()).statusCode());
    assertEquals(200, send(to("/").build()).statusCode());
    HttpResponse<String> preflight =
        send(
            to("/v1/chat/completions")
                .method("OPTIONS", HttpRequest.BodyPublishers.noBody())
                .build());
    assertEquals(204, preflight.statusCode());
    assertNotNull(preflight.headers().firstValue("Access-Control-Allow-Headers").orElse(null));
    // Libraries in pages send headers of their own; what is none is not repeated.
    for (String[] headers :
        new String[][] {
          {
            "authorization,content-type, x-stainless-os",
            "authorization,content-type, x-stainless-os"
          },
          {"x; y", "Authorization, Content-Type"},
        }) {
      HttpResponse<String> asked =
          send(
              to("/v1/chat/completions")
                  .header("Access-Control-Request-Headers", headers[0])
                  .method("OPTIONS", HttpRequest.BodyPublishers.noBody())
                  .build());
      assertEquals(204, asked.statusCode());
      assertEquals(
          headers[1], asked.headers().firstValue("Access-Control-Allow-Headers").orElseThrow());
    }
    // A page can read errors too.
    HttpResponse<String> none = send(to("/v1/nothing").build());
    assertEquals(404, none.statusCode());
    assertEquals(
        "https://app.example",
        none.headers().firstValue("Access-Control-Allow-Origin").orElseThrow());
  }

  @Test
  void manyClientsAtOnce() {
    restart(with(8, 64, PATIENCE, Duration.ZERO, null, null));
    List<CompletableFuture<HttpResponse<String>>> all = new ArrayList<>();
    for (int i = 0; i < 40; i++) {
      all.add(
          client.sendAsync(
              post(
                  "/v1/chat/completions",
                  i % 2 == 0
                      ? "{" + QUESTION + "}"
                      : "{\"temperature\":0,\"messages\":[{\"role\":\"user\",\"content\":\"What is "
                          + i
                          + " + 386?\"}]}"),
              BodyHandlers.ofString()));
    }
    for (int i = 0; i < all.size(); i++) {
      HttpResponse<String> response = all.get(i).join();
      assertEquals(200, response.statusCode(), response.body());
      if (i % 2 == 0) {
        assertEquals(ANSWER, at(json(response.body()), "choices", 0, "message", "content"));
      }
    }
    assertTrue(metric("fletch_sessions") <= 8);
  }
}
