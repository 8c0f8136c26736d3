package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.sampling.SamplingOptions;
import io.fletch.tools.server.FletchServer;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

/**
 * Many clients, of which a third hang up at random: every answer that is read to its end is what a
 * client alone gets, nothing is left behind, and the memory of the process stays what it was.
 *
 * <p>12 clients with 12 requests each; with {@code -Dfletch.full=true} 64 for ten minutes ({@code
 * -Dfletch.minutes=N}).
 */
class ServerStressTest {
  private static final boolean FULL = Boolean.getBoolean("fletch.full");
  private static final int CLIENTS = FULL ? 64 : 12;

  /** Requests that each client sends, whatever the time. */
  private static final int LEAST_REQUESTS = 12;

  private record Body(Map<String, Object> json, boolean isStream) {
    String text() {
      try {
        return JSON.std.asString(json);
      } catch (IOException e) {
        throw new AssertionError(e);
      }
    }
  }

  private static List<Body> bodies() {
    List<Body> out = new ArrayList<>();
    for (int i = 0; i < 24; i++) {
      Map<String, Object> json = new LinkedHashMap<>();
      String question = "What is " + (100 + 37 * i) + " + " + (900 - 13 * i) + "?";
      String filler = "Tell me about numbers, please. ".repeat(i % 4);
      json.put("messages", List.of(Map.of("role", "user", "content", filler + question)));
      json.put("max_tokens", 40);
      json.put("temperature", i % 3 == 0 ? 0 : 1.2);
      json.put("seed", i);
      json.put("ignore_eos", i % 5 == 4);
      json.put("stream", i % 2 == 0);
      out.add(new Body(json, i % 2 == 0));
    }
    return out;
  }

  @Test
  void randomDisconnectsLeaveTheOthersAlone() throws Exception {
    Duration time = FULL ? Duration.ofMinutes(Long.getLong("fletch.minutes", 10)) : Duration.ZERO;
    ModelOptions modelOptions =
        ModelOptions.defaults().withThreads(2).withContextLength(256).withPrefixCache(4 << 20);
    try (Model model = Model.demo("demo-small", modelOptions);
        FletchServer server = FletchServer.start(model, options());
        HttpClient client = HttpClient.newHttpClient();
        ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
      URI uri =
          URI.create("http://127.0.0.1:" + server.address().getPort() + "/v1/chat/completions");
      List<Body> bodies = bodies();
      List<String> expected = new ArrayList<>();
      for (Body body : bodies) {
        expected.add(read(send(client, uri, body), body, -1).orElseThrow());
      }
      long start = System.nanoTime();
      long end = start + time.toNanos();
      AtomicInteger whole = new AtomicInteger();
      AtomicInteger gone = new AtomicInteger();
      AtomicInteger stale = new AtomicInteger();
      List<Future<?>> clients = new ArrayList<>();
      for (int c = 0; c < CLIENTS; c++) {
        SplittableRandom random = new SplittableRandom(c);
        clients.add(
            threads.submit(() -> {
              for (int sent = 0; sent < LEAST_REQUESTS || System.nanoTime() < end; sent++) {
                int i = random.nextInt(bodies.size());
                Body body = bodies.get(i);
                switch (random.nextInt(6)) {
                  case 0 -> {
                    hangUp(uri, body, random);
                    gone.incrementAndGet();
                  }
                  case 1 -> {
                    // In the middle of a stream, which the server notices at its next write.
                    HttpResponse<InputStream> response = again(client, uri, body, stale);
                    read(response, body, random.nextInt(20));
                    gone.incrementAndGet();
                  }
                  default -> {
                    HttpResponse<InputStream> response = again(client, uri, body, stale);
                    assertEquals(expected.get(i), read(response, body, -1).orElseThrow());
                    whole.incrementAndGet();
                  }
                }
              }
              return null;
            }));
      }
      // Measured when half of the time is over, and at the end.
      Thread.sleep(time.dividedBy(2).toMillis());
      HeldMemory before = FULL ? HeldMemory.now() : null;
      for (Future<?> each : clients) {
        each.get();
      }
      HeldMemory after = FULL ? HeldMemory.now() : null;
      assertTrue(whole.get() > 0 && gone.get() > 0, whole + " " + gone);
      assertTrue(stale.get() <= 2 + whole.get() / 100, "closed connections: " + stale);
      // Clients that hung up are found out, and what they held is free.
      long patience = System.nanoTime() + Duration.ofSeconds(30).toNanos();
      while (metric(client, server, "fletch_active") != 0 && System.nanoTime() < patience) {
        Thread.sleep(20);
      }
      assertEquals(0, metric(client, server, "fletch_active"));
      assertEquals(0, metric(client, server, "fletch_queued"));
      assertTrue(metric(client, server, "fletch_sessions") <= options().parallel());
      assertTrue(metric(client, server, "fletch_cancelled_total") > 0);
      assertEquals(0, metric(client, server, "fletch_rejected_total"));
      if (FULL) {
        System.out.println(
            "server stress: clients="
                + CLIENTS
                + " seconds="
                + (System.nanoTime() - start) / 1_000_000_000L
                + " whole answers="
                + whole
                + " disconnects="
                + gone
                + " closed idle connections="
                + stale
                + " cancelled="
                + metric(client, server, "fletch_cancelled_total")
                + " memory "
                + before
                + " -> "
                + after);
        after.checkSteady(before);
      }
    }
    // The model was closed: it refuses that while a session is open.
  }

  private static FletchServer.Options options() {
    return new FletchServer.Options(
        new InetSocketAddress(InetAddress.getLoopbackAddress(), 0),
        "demo-small",
        SamplingOptions.greedy(),
        FULL ? 32 : 6,
        2 * CLIENTS,
        1 << 20,
        // A limit that no answer meets: a connection that the server remembers until then is a
        // leak.
        Duration.ofMinutes(30),
        Duration.ofSeconds(10),
        Optional.empty(),
        Optional.empty());
  }

  /**
   * Sends, and once more if the server closed an idle connection just when it was used again, which
   * HTTP leaves to the client to do.
   */
  private static HttpResponse<InputStream> again(
      HttpClient client, URI uri, Body body, AtomicInteger stale)
      throws IOException, InterruptedException {
    try {
      return send(client, uri, body);
    } catch (IOException e) {
      if (!String.valueOf(e.getMessage()).contains("received no bytes")) {
        throw e;
      }
      stale.incrementAndGet();
      return send(client, uri, body);
    }
  }

  private static HttpResponse<InputStream> send(HttpClient client, URI uri, Body body)
      throws IOException, InterruptedException {
    return client.send(
        HttpRequest.newBuilder(uri)
            .header("Content-Type", "application/json")
            .POST(BodyPublishers.ofString(body.text()))
            .build(),
        BodyHandlers.ofInputStream());
  }

  /** The text of an answer; empty if it was left after some events. */
  private static Optional<String> read(HttpResponse<InputStream> response, Body body, int events)
      throws IOException {
    assertEquals(200, response.statusCode());
    StringBuilder out = new StringBuilder();
    try (BufferedReader in =
        new BufferedReader(new InputStreamReader(response.body(), StandardCharsets.UTF_8))) {
      if (!body.isStream()) {
        return events >= 0 ? Optional.empty() : Optional.of(content(in.readLine(), "message"));
      }
      int seen = 0;
      for (String line; (line = in.readLine()) != null; ) {
        if (line.equals("data: [DONE]")) {
          return Optional.of(out.toString());
        }
        if (line.startsWith("data: ")) {
          out.append(content(line.substring(6), "delta"));
          if (seen++ == events) {
            return Optional.empty();
          }
        }
      }
    }
    throw new AssertionError("a stream without its end: " + out);
  }

  private static String content(String json, String part) throws IOException {
    List<?> choices = (List<?>) JSON.std.mapFrom(json).get("choices");
    Map<?, ?> choice = (Map<?, ?>) choices.getFirst();
    Object text = ((Map<?, ?>) choice.get(part)).get("content");
    return text == null ? "" : (String) text;
  }

  /** Sends a request, or a part of one, and is gone. */
  private static void hangUp(URI uri, Body body, SplittableRandom random) throws IOException {
    byte[] json = body.text().getBytes(StandardCharsets.UTF_8);
    String head =
        "POST "
            + uri.getPath()
            + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
            + json.length
            + "\r\n\r\n";
    try (Socket socket = new Socket(uri.getHost(), uri.getPort())) {
      socket.setSoLinger(true, 0);
      socket.getOutputStream().write(head.getBytes(StandardCharsets.US_ASCII));
      int sent = random.nextBoolean() ? json.length : random.nextInt(json.length);
      socket.getOutputStream().write(json, 0, sent);
      if (random.nextBoolean()) {
        Thread.sleep(random.nextInt(30));
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private static double metric(HttpClient client, FletchServer server, String name)
      throws IOException, InterruptedException {
    String text =
        client
            .send(
                HttpRequest.newBuilder(
                        URI.create("http://127.0.0.1:" + server.address().getPort() + "/metrics"))
                    .build(),
                BodyHandlers.ofString())
            .body();
    return text.lines()
        .filter(line -> line.startsWith(name + " "))
        .mapToDouble(line -> Double.parseDouble(line.substring(name.length() + 1)))
        .findFirst()
        .orElseThrow();
  }
}
