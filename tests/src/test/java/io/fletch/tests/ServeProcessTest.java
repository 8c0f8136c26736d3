package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Embedder;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.SplittableRandom;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** {@code fletch serve} as a process: it says where it listens, and SIGTERM drains it. */
class ServeProcessTest {
  private static final int TERMINATED = 128 + 15;

  private static final String EMBEDDERS =
      "../runtime/src/test/resources/io/fletch/runtime/engine/embedders/";

  private static Process serve(String... options) throws IOException {
    List<String> command =
        new ArrayList<>(
            List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty(
                    "surefire.test.class.path", System.getProperty("java.class.path")),
                "io.fletch.tools.Main",
                "serve",
                "--threads",
                "1",
                "--port",
                "0"));
    command.addAll(List.of(options));
    return new ProcessBuilder(command).redirectOutput(ProcessBuilder.Redirect.DISCARD).start();
  }

  /** Reads what the process says until it says where it listens. */
  private static String address(BufferedReader errors) throws IOException {
    StringBuilder said = new StringBuilder();
    for (String line; (line = errors.readLine()) != null; ) {
      said.append(line).append('\n');
      Matcher m = Pattern.compile("http://localhost:[0-9]+/").matcher(line);
      if (m.find()) {
        return m.group();
      }
    }
    throw new AssertionError(said.toString());
  }

  @ParameterizedTest
  @CsvSource({"false,bert.gguf", "true,renamed"})
  void embeddingModelsAreServedAloneAndBesideAnother(boolean beside, String name) throws Exception {
    Process process =
        beside
            ? serve(
                "--model",
                "demo-small",
                "--embedding-model",
                EMBEDDERS + "bert.gguf",
                "--embedding-alias",
                "renamed")
            : serve("--model", EMBEDDERS + "bert.gguf");
    try (BufferedReader errors = process.errorReader();
        HttpClient client = HttpClient.newHttpClient()) {
      HttpRequest request =
          HttpRequest.newBuilder(URI.create(address(errors) + "v1/embeddings"))
              .header("Content-Type", "application/json")
              .POST(
                  HttpRequest.BodyPublishers.ofString(
                      "{\"input\":\"the fox\",\"model\":\"" + name + "\"}"))
              .build();
      HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
      assertEquals(200, response.statusCode(), response.body());
      try (Embedder embedder = Embedder.open(Path.of(EMBEDDERS, "bert.gguf"))) {
        String first = "\"embedding\":[" + embedder.embed("the fox")[0] + ",";
        assertTrue(response.body().contains(first), response.body());
      }
      process.destroy();
      assertTrue(process.waitFor(60, TimeUnit.SECONDS), "does not end");
      assertEquals(TERMINATED, process.exitValue());
    } finally {
      process.destroyForcibly();
    }
  }

  @Test
  void terminationLetsAnAnswerFinish() throws Exception {
    Process process = serve("--model", "demo-small");
    try (BufferedReader errors = process.errorReader();
        HttpClient client = HttpClient.newHttpClient()) {
      String address = address(errors);
      HttpRequest request =
          HttpRequest.newBuilder(URI.create(address + "v1/chat/completions"))
              .header("Content-Type", "application/json")
              .POST(
                  HttpRequest.BodyPublishers.ofString(
                      "{\"stream\":true,\"ignore_eos\":true,\"max_tokens\":200,\"messages\":"
                          + "[{\"role\":\"user\",\"content\":\"What is 457 + 386?\"}]}"))
              .build();
      HttpResponse<InputStream> response =
          client.send(request, HttpResponse.BodyHandlers.ofInputStream());
      assertEquals(200, response.statusCode());
      try (InputStream in = response.body()) {
        assertTrue(in.read() >= 0);
        process.destroy();
        String rest = new String(in.readAllBytes(), StandardCharsets.UTF_8);
        assertTrue(rest.endsWith("data: [DONE]\n\n"), rest);
      }
      assertTrue(process.waitFor(60, TimeUnit.SECONDS), "does not end");
      assertEquals(TERMINATED, process.exitValue());
    } finally {
      process.destroyForcibly();
    }
  }

  private static final boolean FULL = Boolean.getBoolean("fletch.full");

  /** Requests that each client sends, whatever the time. */
  private static final int LEAST_REQUESTS = 6;

  /** Code that is compiled late, and what the C library keeps of compiling it. */
  private static final long RESIDENT_GROWTH = 48L << 20;

  private static final String QUESTION =
      "{\"max_tokens\":40,\"messages\":[{\"role\":\"user\",\"content\":\"What is 457 + 386?\"}]}";

  private static Socket ask(URI uri) throws IOException {
    Socket socket = new Socket(uri.getHost(), uri.getPort());
    socket
        .getOutputStream()
        .write(
            ("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    + "Content-Type: application/json\r\nContent-Length: "
                    + QUESTION.length()
                    + "\r\n\r\n"
                    + QUESTION)
                .getBytes(StandardCharsets.US_ASCII));
    return socket;
  }

  /** Resident bytes of a process, from Linux; 0 where that is not to be had. */
  private static long resident(Process process) throws IOException {
    Path status = Path.of("/proc/" + process.pid() + "/status");
    if (!Files.isReadable(status)) {
      return 0;
    }
    return Files.readAllLines(status).stream()
        .filter(line -> line.startsWith("VmRSS:"))
        .mapToLong(line -> Long.parseLong(line.replaceAll("[^0-9]", "")) << 10)
        .findFirst()
        .orElseThrow();
  }

  /**
   * A third of the clients, in this process, hang up: all others get whole answers, and the server
   * ends as it should. 6 requests of 8 clients; with {@code -Dfletch.full=true} 64 clients for ten
   * minutes ({@code -Dfletch.minutes=N}), and what is resident of the server's process, with a heap
   * that never fills, at their end is what was at half of the time. Memory on Linux alone.
   */
  @Test
  void hangUpsLeaveTheProcessAsItWas() throws Exception {
    long nanos = FULL ? TimeUnit.MINUTES.toNanos(Long.getLong("fletch.minutes", 10)) : 0;
    Process process = serve("--model", "demo-small", "--parallel", "32", "--queue", "128");
    try (BufferedReader errors = process.errorReader();
        ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
      URI uri = URI.create(address(errors));
      long end = System.nanoTime() + nanos;
      AtomicInteger whole = new AtomicInteger();
      AtomicInteger gone = new AtomicInteger();
      List<Future<?>> clients = new ArrayList<>();
      for (int c = 0; c < (FULL ? 64 : 8); c++) {
        SplittableRandom random = new SplittableRandom(c);
        clients.add(
            threads.submit(() -> {
              for (int sent = 0; sent < LEAST_REQUESTS || System.nanoTime() < end; sent++) {
                try (Socket socket = ask(uri)) {
                  if (random.nextInt(3) == 0) {
                    socket.setSoLinger(true, 0);
                    Thread.sleep(random.nextInt(100));
                    gone.incrementAndGet();
                  } else {
                    String answer =
                        new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
                    assertTrue(answer.contains("\\nAnswer: 843\""), answer);
                    whole.incrementAndGet();
                  }
                }
              }
              return null;
            }));
      }
      Thread.sleep(nanos / 2_000_000);
      long before = resident(process);
      for (Future<?> each : clients) {
        each.get();
      }
      long after = resident(process);
      assertTrue(whole.get() > 0 && gone.get() > 0, whole + " " + gone);
      if (FULL) {
        String outcome =
            String.format(
                Locale.ROOT,
                "whole answers=%s hang-ups=%s resident MiB %d -> %d",
                whole,
                gone,
                before >> 20,
                after >> 20);
        System.out.println("serve process: " + outcome);
        assertTrue(after - before < RESIDENT_GROWTH, outcome);
      }
      process.destroy();
      assertTrue(process.waitFor(60, TimeUnit.SECONDS), "does not end");
      assertEquals(TERMINATED, process.exitValue());
    } finally {
      process.destroyForcibly();
    }
  }
}
