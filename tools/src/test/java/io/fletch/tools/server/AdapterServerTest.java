package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Adapter;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.TensorStore;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;
import java.util.concurrent.CompletableFuture;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Adapters of requests, in the form of llama.cpp's server. */
class AdapterServerTest {
  @TempDir Path folder;

  private FletchServer server;
  private HttpClient client;

  private Path adapter(String name, int width, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] a = new float[4 * width];
    float[] b = new float[width * 4];
    for (int i = 0; i < a.length; i++) {
      a[i] = (float) random.nextDouble() - 0.5f;
      b[i] = 4 * ((float) random.nextDouble() - 0.5f);
    }
    Path file = folder.resolve(name);
    try (TensorStore store = TensorStore.create()) {
      new GgufWriter()
          .put("adapter.type", "lora")
          .put("adapter.lora.alpha", 4f)
          .add(store.floats("blk.1.attn_output.weight.lora_a", a, 4, width))
          .add(store.floats("blk.1.attn_output.weight.lora_b", b, width, 4))
          .write(file);
    }
    return file;
  }

  private HttpResponse<String> send(String path, String body) throws Exception {
    HttpRequest.Builder to =
        HttpRequest.newBuilder(URI.create("http://localhost:" + server.address().getPort() + path));
    HttpRequest request =
        body == null
            ? to.build()
            : to.header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
    return client.send(request, HttpResponse.BodyHandlers.ofString());
  }

  private String text(String lora) throws Exception {
    String body =
        "{\"prompt\":\"What is 457 + 386?\",\"max_tokens\":12,\"ignore_eos\":true"
            + (lora.isEmpty() ? "" : ",\"lora\":" + lora)
            + "}";
    HttpResponse<String> response = send("/v1/completions", body);
    assertEquals(200, response.statusCode(), response.body());
    Map<String, Object> answer = JSON.std.mapFrom(response.body());
    return (String) ((Map<?, ?>) ((List<?>) answer.get("choices")).getFirst()).get("text");
  }

  private void refused(String path, String body, String part) throws Exception {
    HttpResponse<String> response = send(path, body);
    assertEquals(400, response.statusCode(), response.body());
    assertTrue(response.body().contains(part), response.body());
  }

  private List<Object> scales() throws Exception {
    List<Object> out = new ArrayList<>();
    for (Object one : JSON.std.listFrom(send("/lora-adapters", null).body())) {
      Map<?, ?> adapter = (Map<?, ?>) one;
      out.add(adapter.get("id") + "=" + adapter.get("scale"));
      assertTrue(adapter.get("path").toString().endsWith(".gguf"), adapter.toString());
    }
    return out;
  }

  @Test
  void requestsNameTheirAdapters() throws Exception {
    FletchServer.Options options =
        new FletchServer.Options(
            new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
            "m",
            SamplingOptions.greedy(),
            4,
            8,
            10_000,
            Duration.ofSeconds(60),
            Duration.ofSeconds(5),
            Optional.empty(),
            Optional.empty());
    ModelOptions opened =
        ModelOptions.defaults().withThreads(1).withContextLength(256).withPrefixCache(1 << 20);
    try (HttpClient http = HttpClient.newHttpClient();
        Model model = Model.demo("demo-small", opened)) {
      client = http;
      int width = model.info().embeddingLength();
      Adapter a = model.adapter(adapter("a.gguf", width, 1));
      model.adapter(adapter("b.gguf", width, 2));
      try (FletchServer started =
          FletchServer.start(Optional.of(model), Optional.empty(), List.of(a.scaled(1)), options)) {
        server = started;
        assertEquals(List.of("0=1.0", "1=0.0"), scales());
        String ofA = text("");
        String base = text("[]");
        String both = text("[{\"id\":1,\"scale\":1.5},{\"id\":0,\"scale\":0.5}]");
        assertNotEquals(base, ofA);
        assertNotEquals(base, both);
        assertEquals(ofA, text("[{\"id\":0,\"scale\":1}]"));
        assertEquals(base, text("[{\"id\":0,\"scale\":0}]"));
        assertEquals(both, text("[{\"id\":0,\"scale\":0.5},{\"id\":1,\"scale\":1.5}]"));
        // All at once, each as alone.
        Map<String, String> wanted = new LinkedHashMap<>();
        wanted.put("", ofA);
        wanted.put("[]", base);
        wanted.put("[{\"id\":0,\"scale\":0.5},{\"id\":1,\"scale\":1.5}]", both);
        List<CompletableFuture<Void>> all = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
          wanted.forEach((lora, expected) ->
              all.add(
                  CompletableFuture.runAsync(() -> {
                    try {
                      assertEquals(expected, text(lora), lora);
                    } catch (Exception e) {
                      throw new IllegalStateException(e);
                    }
                  })));
        }
        all.forEach(CompletableFuture::join);
        HttpResponse<String> set = send("/lora-adapters", "[{\"id\":1,\"scale\":-2}]");
        assertEquals("{\"success\":true}", set.body());
        assertEquals(List.of("0=0.0", "1=-2.0"), scales());
        assertEquals(text("[{\"id\":1,\"scale\":-2}]"), text(""));
        assertEquals(200, send("/lora-adapters", "[]").statusCode());
        assertEquals(base, text(""));
        refused("/lora-adapters", "{}", "expected=an array actual=an object");
        refused("/lora-adapters", "[{\"id\":7,\"scale\":1}]", "[0].id: expected=one of [0, 1]");
        String prompt = "{\"prompt\":\"a\",\"lora\":";
        refused("/v1/completions", prompt + "[{\"id\":0}]}", "lora[0].scale: expected=a number");
        refused("/v1/completions", prompt + "[3]}", "lora[0]: expected=an object");
        refused(
            "/v1/completions",
            prompt + "[{\"id\":0,\"scale\":1},{\"id\":0,\"scale\":1}]}",
            "lora[1].id: expected=one that is not listed before");
        refused("/v1/completions", prompt + "[{\"id\":0,\"scale\":1,\"task\":1}]}", "lora[0].task");
      }
    } catch (IOException e) {
      throw new AssertionError(e);
    }
  }
}
