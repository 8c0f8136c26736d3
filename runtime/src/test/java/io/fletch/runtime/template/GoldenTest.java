package io.fletch.runtime.template;

import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.runtime.tokenizer.Shared;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.time.Clock;
import java.time.Instant;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** Outputs against those of jinja2 (golden.py beside the resources made them). */
class GoldenTest {
  private static final Clock CLOCK =
      Clock.fixed(Instant.parse("2026-03-05T07:08:09Z"), ZoneOffset.UTC);

  private static Map<String, Object> resource(String name) throws IOException {
    try (InputStream in = GoldenTest.class.getResourceAsStream(name)) {
      return JSON.std.mapFrom(in);
    }
  }

  @SuppressWarnings("unchecked")
  private static Map<String, Object> map(Object value) {
    return (Map<String, Object>) value;
  }

  private static void check(
      String source, Map<String, Object> context, Map<String, Object> golden) {
    if (golden.containsKey("error")) {
      FletchException e =
          assertThrows(
              FletchException.class,
              () -> System.out.println(ChatTemplate.parse(source).render(context)),
              source);
      String error = (String) golden.get("error");
      if (error.startsWith("TemplateError: ")) {
        assertEquals(error.substring("TemplateError: ".length()), e.getMessage());
      }
    } else {
      assertEquals(
          golden.get("expected"),
          ChatTemplate.parse(source).withClock(CLOCK).render(context),
          source);
    }
  }

  @Test
  void language() throws IOException {
    Map<String, Object> golden = resource("language.json");
    List<Executable> checks = new ArrayList<>();
    for (Object entry : (List<?>) golden.get("cases")) {
      Map<String, Object> example = map(entry);
      checks.add(
          () -> check((String) example.get("template"), map(golden.get("context")), example));
    }
    assertTrue(checks.size() > 70);
    assertAll(checks);
  }

  @Test
  void models() throws IOException {
    Map<String, Object> golden = resource("models.json");
    List<Executable> checks = new ArrayList<>();
    for (Object entry : (List<?>) golden.get("cases")) {
      Map<String, Object> example = map(entry);
      String name = (String) example.get("template");
      String source =
          name.equals("demo")
              ? (String)
                  JSON.std
                      .mapFrom(
                          Files.readString(Shared.path("models/ar-small/tokenizer_config.json")))
                      .get("chat_template")
              : Files.readString(Shared.path("chat-templates/" + name));
      Map<String, Object> context =
          new HashMap<>(Map.of("bos_token", "<bos>", "eos_token", "<eos>"));
      context.put("messages", map(golden.get("conversations")).get(example.get("conversation")));
      context.putAll(map(map(golden.get("variants")).get(example.get("variant"))));
      checks.add(() -> {
        try {
          check(source, context, example);
        } catch (AssertionError | FletchException e) {
          throw new AssertionError(
              name
                  + " "
                  + example.get("conversation")
                  + " "
                  + example.get("variant")
                  + ": "
                  + e.getMessage(),
              e);
        }
      });
    }
    assertTrue(checks.size() > 800);
    assertAll(checks);
  }
}
