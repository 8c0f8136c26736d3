package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.BufferedReader;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;

/** {@code fletch serve} as a process: it says where it listens, and SIGTERM drains it. */
class ServeProcessTest {
  private static final int TERMINATED = 128 + 15;

  @Test
  void terminationLetsAnAnswerFinish() throws Exception {
    Process process =
        new ProcessBuilder(
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
                    "--model",
                    "demo-small",
                    "--threads",
                    "1",
                    "--port",
                    "0"))
            .redirectOutput(ProcessBuilder.Redirect.DISCARD)
            .start();
    try (BufferedReader errors = process.errorReader();
        HttpClient client = HttpClient.newHttpClient()) {
      StringBuilder said = new StringBuilder();
      String address = null;
      for (String line; address == null && (line = errors.readLine()) != null; ) {
        said.append(line).append('\n');
        Matcher m = Pattern.compile("http://localhost:[0-9]+/").matcher(line);
        address = m.find() ? m.group() : null;
      }
      assertTrue(address != null, said.toString());
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
