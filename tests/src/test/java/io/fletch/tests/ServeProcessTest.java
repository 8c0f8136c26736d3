package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Embedder;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
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
}
