package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The chat page in headless Chromium, where that is installed, driven over its debugging protocol.
 * {@code -Dfletch.screenshot=FILE.png} keeps a picture.
 */
class ChatPageTest {
  private static final Duration PATIENCE = Duration.ofSeconds(60);

  private static Optional<Path> chromium() {
    return Stream.of(System.getenv().getOrDefault("PATH", "").split(":"))
        .flatMap(folder ->
            Stream.of("chromium", "chromium-browser", "google-chrome")
                .map(name -> Path.of(folder, name)))
        .filter(Files::isExecutable)
        .findFirst();
  }

  /** One connection to the page. */
  private static final class Page implements WebSocket.Listener {
    private final BlockingQueue<String> messages = new LinkedBlockingQueue<>();
    private final StringBuilder part = new StringBuilder();
    private final WebSocket socket;
    private int id;

    Page(HttpClient client, URI uri) {
      socket = client.newWebSocketBuilder().buildAsync(uri, this).join();
    }

    @Override
    public CompletionStage<?> onText(WebSocket from, CharSequence data, boolean last) {
      part.append(data);
      if (last) {
        messages.add(part.toString());
        part.setLength(0);
      }
      from.request(1);
      return null;
    }

    Map<?, ?> call(String method, Map<String, Object> params)
        throws IOException, InterruptedException {
      Map<String, Object> message = new LinkedHashMap<>();
      message.put("id", ++id);
      message.put("method", method);
      message.put("params", params);
      socket.sendText(JSON.std.asString(message), true).join();
      while (true) {
        String text = messages.poll(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        assertTrue(text != null, "no answer to " + method);
        Map<String, Object> answer = JSON.std.mapFrom(text);
        if (Integer.valueOf(id).equals(answer.get("id"))) {
          return (Map<?, ?>) answer.get("result");
        }
      }
    }

    Object value(String expression) throws IOException, InterruptedException {
      Map<?, ?> out =
          call("Runtime.evaluate", Map.of("expression", expression, "returnByValue", true));
      return ((Map<?, ?>) out.get("result")).get("value");
    }

    void await(String condition) throws IOException, InterruptedException {
      long end = System.nanoTime() + PATIENCE.toNanos();
      while (!Boolean.TRUE.equals(value(condition))) {
        assertTrue(System.nanoTime() < end, condition);
        Thread.sleep(50);
      }
    }

    void ask(String text) throws IOException, InterruptedException {
      value(
          "document.getElementById('text').value="
              + JSON.std.asString(text)
              + ";document.getElementById('form').requestSubmit()");
      await("document.getElementById('send').textContent==='Send'");
    }
  }

  @Test
  void answersAndInterpretsNothing(@TempDir Path profile) throws Exception {
    Optional<Path> browser = chromium();
    if (browser.isEmpty()) {
      System.out.println("ChatPageTest skipped: no chromium on the path");
    }
    assumeTrue(browser.isPresent(), "no chromium on the path");
    FletchServer.Options options =
        new FletchServer.Options(
            new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
            "demo-small <b>",
            SamplingOptions.greedy(),
            2,
            2,
            1 << 20,
            Duration.ofSeconds(60),
            Duration.ofSeconds(1),
            Optional.empty(),
            Optional.empty());
    try (Model model =
            Model.demo(
                "demo-small", ModelOptions.defaults().withThreads(1).withContextLength(512));
        FletchServer server = FletchServer.start(model, options);
        HttpClient client = HttpClient.newHttpClient()) {
      Process process =
          new ProcessBuilder(
                  browser.get().toString(),
                  "--headless=new",
                  "--no-sandbox",
                  "--disable-gpu",
                  "--window-size=900,700",
                  "--user-data-dir=" + profile.resolve("profile"),
                  "--remote-debugging-port=0",
                  "http://127.0.0.1:" + server.address().getPort() + "/")
              .redirectErrorStream(true)
              .redirectOutput(profile.resolve("log").toFile())
              .start();
      try {
        drive(client, target(client, profile.resolve("profile/DevToolsActivePort")));
      } finally {
        process.descendants().forEach(ProcessHandle::destroy);
        process.destroy();
        process.waitFor(20, TimeUnit.SECONDS);
        process.destroyForcibly();
      }
    }
  }

  /** Waits until the browser has the page. */
  private static URI target(HttpClient client, Path portFile) throws Exception {
    long end = System.nanoTime() + PATIENCE.toNanos();
    while (System.nanoTime() < end) {
      Thread.sleep(100);
      List<String> lines = Files.exists(portFile) ? Files.readAllLines(portFile) : List.of();
      if (!lines.isEmpty()) {
        String list =
            client
                .send(
                    java.net.http.HttpRequest.newBuilder(
                            URI.create("http://127.0.0.1:" + lines.getFirst() + "/json"))
                        .build(),
                    java.net.http.HttpResponse.BodyHandlers.ofString())
                .body();
        for (Object page : JSON.std.listFrom(list)) {
          Map<?, ?> map = (Map<?, ?>) page;
          if ("page".equals(map.get("type"))
              && map.get("url").toString().startsWith("http://127")) {
            return URI.create((String) map.get("webSocketDebuggerUrl"));
          }
        }
      }
    }
    throw new AssertionError("the browser does not start");
  }

  private static void drive(HttpClient client, URI target) throws Exception {
    Page page = new Page(client, target);
    page.await("document.readyState==='complete'");
    page.await("document.getElementById('model').textContent==='demo-small <b>'");
    String markup = "<img src=x onerror=\"window.bad=1\"><b>What is 457 + 386?</b>";
    page.ask(markup);
    page.value("document.getElementById('clear').click()");
    page.ask("What is 457 + 386?");
    String turns = "[...document.querySelectorAll('.turn')]";
    assertEquals(
        List.of("turn user", "turn assistant"), page.value(turns + ".map(t=>t.className)"));
    assertEquals(
        List.of("What is 457 + 386?", "7+6=13\n5+8+1=14\n4+3+1=8\nAnswer: 843"),
        page.value(turns + ".map(t=>t.textContent)"));
    page.await("document.getElementById('status').textContent.includes('per second')");
    page.ask(markup);
    assertEquals(markup, page.value(turns + "[2].textContent"));
    assertEquals(0, page.value("document.querySelectorAll('.turn *').length"));
    assertEquals("undefined", page.value("typeof window.bad"));
    // The policy holds: markup that gets in after all runs nothing.
    page.value(
        "document.body.insertAdjacentHTML('beforeend','<img src=data:,"
            + " onerror=\"window.bad=1\">')");
    Thread.sleep(300);
    assertEquals("undefined", page.value("typeof window.bad"));
    String picture = System.getProperty("fletch.screenshot");
    if (picture != null) {
      Map<?, ?> shot = page.call("Page.captureScreenshot", Map.of());
      Files.write(Path.of(picture), Base64.getDecoder().decode((String) shot.get("data")));
    }
  }
}
