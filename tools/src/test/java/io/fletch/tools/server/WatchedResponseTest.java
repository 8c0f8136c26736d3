package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Watched responses over real connections, with handlers that wait for what the test does. */
class WatchedResponseTest {
  private static final Duration NEVER = Duration.ofHours(1);
  private static final Duration SOON = Duration.ofMillis(5);
  private static final byte[] BODY = "{\"a\":1}".getBytes(StandardCharsets.UTF_8);

  private final ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor();
  private final ScheduledExecutorService clock = Executors.newSingleThreadScheduledExecutor();
  private final HttpClient client = HttpClient.newHttpClient();

  /** How the handler ended: with null, or what it threw. */
  private final CompletableFuture<Throwable> end = new CompletableFuture<>();

  private HttpServer http;

  private interface Work {
    void run(HttpExchange exchange, WatchedResponse response) throws Exception;
  }

  @BeforeEach
  void open() throws IOException {
    http = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
    http.setExecutor(threads);
    http.start();
  }

  @AfterEach
  void close() {
    client.close();
    http.stop(0);
    threads.shutdownNow();
    clock.shutdownNow();
  }

  private void handle(WatchedResponse.Form form, Duration patience, Work work) {
    http.createContext(
        "/",
        exchange -> {
          try (WatchedResponse response =
              new WatchedResponse(exchange, form, clock, threads, patience)) {
            work.run(exchange, response);
            end.complete(null);
          } catch (Exception e) {
            end.complete(e);
            throw new IOException(e);
          }
        });
  }

  private HttpRequest request() {
    return HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + http.getAddress().getPort()))
        .build();
  }

  private HttpResponse<String> send() throws Exception {
    return client.send(request(), BodyHandlers.ofString());
  }

  @Test
  void aQuickResponseHasItsLength() throws Exception {
    handle(
        WatchedResponse.Form.JSON,
        NEVER,
        (_, response) -> {
          response.watch(() -> {});
          assertFalse(response.isBegun());
          response.finish(BODY);
          assertTrue(response.isBegun());
        });
    HttpResponse<String> response = send();
    assertEquals("{\"a\":1}", response.body());
    assertEquals("7", response.headers().firstValue("Content-Length").orElseThrow());
    assertNull(end.get());
  }

  @ParameterizedTest
  @EnumSource(WatchedResponse.Form.class)
  void aSlowResponseBeginsWithSigns(WatchedResponse.Form form) throws Exception {
    handle(
        form,
        SOON,
        (_, response) -> {
          response.watch(() -> {});
          while (!response.isBegun()) {
            Thread.sleep(1);
          }
          response.finish(BODY);
        });
    HttpResponse<String> response = send();
    assertEquals(200, response.statusCode());
    String sign = form == WatchedResponse.Form.JSON ? " +" : "(: \n\n)+";
    assertTrue(response.body().matches(sign + "\\{\"a\":1}"), response.body());
    assertEquals(
        form == WatchedResponse.Form.JSON ? "application/json" : "text/event-stream; charset=utf-8",
        response.headers().firstValue("Content-Type").orElseThrow());
    assertNull(end.get());
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aClientThatLeavesCancelsTheWork(boolean isReset) throws Exception {
    CountDownLatch gone = new CountDownLatch(1);
    handle(
        WatchedResponse.Form.JSON,
        SOON,
        (_, response) -> {
          response.watch(gone::countDown);
          gone.await();
          // From now on everything says so.
          assertThrows(IOException.class, response::check);
          assertThrows(IOException.class, () -> response.watch(() -> {}));
          assertThrows(IOException.class, () -> response.write(BODY));
          response.finish(BODY);
        });
    try (Socket socket = new Socket("127.0.0.1", http.getAddress().getPort())) {
      socket.getOutputStream().write("GET / HTTP/1.1\r\n\r\n".getBytes(StandardCharsets.US_ASCII));
      // Is being served.
      assertTrue(socket.getInputStream().read() >= 0);
      if (isReset) {
        socket.setSoLinger(true, 0);
      }
    }
    assertInstanceOf(IOException.class, end.get(5, TimeUnit.MINUTES));
  }

  @Test
  void whatFailsAfterASignBreaksOff() throws Exception {
    handle(
        WatchedResponse.Form.JSON,
        SOON,
        (_, response) -> {
          response.watch(() -> {});
          while (!response.isBegun()) {
            Thread.sleep(1);
          }
          throw new IllegalStateException("the device failed");
        });
    // Neither an answer nor an empty one.
    assertThrows(IOException.class, this::send);
  }

  @Test
  void nothingIsSentBeforeItIsWatched() throws Exception {
    handle(
        WatchedResponse.Form.JSON,
        Duration.ZERO,
        (exchange, response) -> {
          assertFalse(response.isBegun());
          exchange.sendResponseHeaders(400, -1);
        });
    assertEquals(400, send().statusCode());
  }
}
