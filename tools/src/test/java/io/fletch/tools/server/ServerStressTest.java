package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.sampling.SamplingOptions;
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
import java.nio.file.Files;
import java.nio.file.Path;
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
 * <p>Three seconds with 12 clients; with {@code -Dfletch.full=true} ten minutes ({@code
 * -Dfletch.minutes=N}) with 64.
 */
class ServerStressTest {
  private static final boolean FULL = Boolean.getBoolean("fletch.full");
  private static final int CLIENTS = FULL ? 64 : 12;

  /** Requests that were under way when it was measured, and garbage since the collection. */
  private static final long HEAP_GROWTH = 48L << 20;

  /** Compiled code, stacks, arenas, and pages that the system has not taken back. */
  private static final long RESIDENT_GROWTH = 96L << 20;

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
    Duration time =
        FULL ? Duration.ofMinutes(Long.getLong("fletch.minutes", 10)) : Duration.ofSeconds(3);
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
              do {
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
              } while (System.nanoTime() < end);
              return null;
            }));
      }
      // Compared once everything is warm and again at the end.
      Thread.sleep(time.dividedBy(FULL ? 5 : 2).toMillis());
      Held before = FULL ? Held.now() : null;
      for (Future<?> each : clients) {
        each.get();
      }
      Held after = FULL ? Held.now() : null;
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
      }
      if (FULL) {
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
        // The JDK's server remembers a connection that broke for a minute more than this.
        Duration.ofSeconds(60),
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

  /**
   * Memory that is held after a collection.
   *
   * @param heap bytes of live objects
   * @param resident bytes of the process, the heap's included, from Linux; 0 where that is not to
   *     be had
   */
  private record Held(long heap, long resident) {
    /** Looks for five seconds: a collector gives memory back to the system after its work. */
    static Held now() throws IOException, InterruptedException {
      Runtime runtime = Runtime.getRuntime();
      long heap = Long.MAX_VALUE;
      long resident = Long.MAX_VALUE;
      for (int i = 0; i < 50; i++) {
        if (i % 10 == 0) {
          System.gc();
        }
        heap = Math.min(heap, runtime.totalMemory() - runtime.freeMemory());
        resident = Math.min(resident, residentBytes());
        Thread.sleep(100);
      }
      return new Held(heap, resident);
    }

    private static long residentBytes() throws IOException {
      Path status = Path.of("/proc/self/status");
      if (!Files.isReadable(status)) {
        return 0;
      }
      return Files.readAllLines(status).stream()
          .filter(line -> line.startsWith("VmRSS:"))
          .mapToLong(line -> Long.parseLong(line.replaceAll("[^0-9]", "")) << 10)
          .findFirst()
          .orElseThrow();
    }

    void checkSteady(Held before) {
      assertTrue(
          heap - before.heap < HEAP_GROWTH && resident - before.resident < RESIDENT_GROWTH,
          "memory: before=" + before + " after=" + this);
    }

    @Override
    public String toString() {
      return (heap >> 20) + " MiB of objects and " + (resident >> 20) + " MiB resident";
    }
  }
}
