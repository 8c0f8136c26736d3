package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ToolCallFormat;
import io.fletch.ToolCallFormat.Call;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;

/** Calls in the notation of each family, and text that only looks like one. */
class ToolCallFormatTest {
  private static void check(ToolCallFormat format, String text, String content, Call... calls) {
    assertEquals(new ToolCallFormat.Parsed(content, List.of(calls)), format.parse(text));
  }

  @Test
  void hermes() {
    ToolCallFormat f = ToolCallFormat.HERMES;
    check(
        f,
        "Let me look.\n"
            + "<tool_call>\n"
            + "{\"name\": \"weather\", \"arguments\": {\"city\": \"K}\\\"\"}}\n"
            + "</tool_call>",
        "Let me look.",
        new Call("weather", "{\"city\":\"K}\\\"\"}"));
    check(
        f,
        "<tool_call>{\"name\":\"a\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"b\"}",
        "",
        new Call("a", "{}"),
        new Call("b", "{}"));
    check(f, "<tool_call>{\"name\": }</tool_call>", "<tool_call>{\"name\": }</tool_call>");
    check(f, "<tool_call>", "<tool_call>");
    check(f, "plain {\"name\":\"a\"}", "plain {\"name\":\"a\"}");
  }

  @Test
  void llama3() {
    ToolCallFormat f = ToolCallFormat.LLAMA3;
    check(
        f,
        "<|python_tag|>{\"type\":\"function\",\"name\":\"a\",\"parameters\":{\"x\":1}};"
            + " {\"name\":\"b\",\"parameters\":{}}",
        "",
        new Call("a", "{\"x\":1}"),
        new Call("b", "{}"));
    check(f, "{\"name\": 3}", "{\"name\": 3}");
    check(f, "{\"name\":\"a\"} and more", "{\"name\":\"a\"} and more");
    check(f, "Hello", "Hello");
    check(f, "", "");
  }

  @Test
  void mistral() {
    ToolCallFormat f = ToolCallFormat.MISTRAL;
    check(
        f,
        "[TOOL_CALLS]"
            + " [{\"name\":\"a\",\"arguments\":{\"x\":[1]}},{\"name\":\"b\",\"arguments\":\"{}\"}]",
        "",
        new Call("a", "{\"x\":[1]}"),
        new Call("b", "{}"));
    check(
        f,
        "Ok[TOOL_CALLS]a[CALL_ID]123456789[ARGS]{\"x\":1}[TOOL_CALLS]b[ARGS]{}",
        "Ok",
        new Call("a", "{\"x\":1}"),
        new Call("b", "{}"));
    check(f, "[TOOL_CALLS] [1]", "[TOOL_CALLS] [1]");
    check(f, "[TOOL_CALLS]a[ARGS]{", "[TOOL_CALLS]a[ARGS]{");
  }

  @Test
  void granite() {
    ToolCallFormat f = ToolCallFormat.GRANITE;
    check(
        f,
        "Let me look. <|tool_call|>[{\"name\": \"a\", \"arguments\": {\"x\": [1]}}, {\"name\":"
            + " \"b\", \"arguments\": {}}]",
        "Let me look.",
        new Call("a", "{\"x\":[1]}"),
        new Call("b", "{}"));
    check(f, "<|tool_call|>[1]", "<|tool_call|>[1]");
    check(f, "<|tool_call|>{}", "<|tool_call|>{}");
    check(f, "<|tool_call|>", "<|tool_call|>");
    check(f, "[{\"name\": \"a\"}]", "[{\"name\": \"a\"}]");
  }

  @Test
  void familiesByTemplate() {
    assertEquals(
        Optional.of(ToolCallFormat.GRANITE),
        ToolCallFormat.of("respond with <|tool_call|> followed by a JSON list of tools used"));
    assertEquals(Optional.of(ToolCallFormat.HERMES), ToolCallFormat.of("{{ '<tool_call>' }}"));
    assertEquals(
        Optional.of(ToolCallFormat.MISTRAL), ToolCallFormat.of("[AVAILABLE_TOOLS] [TOOL_CALLS]"));
    assertEquals(
        Optional.of(ToolCallFormat.LLAMA3),
        ToolCallFormat.of("<|start_header_id|> {% if tools %}"));
    assertEquals(Optional.empty(), ToolCallFormat.of("{{ messages }}"));
  }

  @Test
  void plainTextIsWhatCannotBecomeACall() {
    Map<ToolCallFormat, String> markers =
        Map.of(
            ToolCallFormat.HERMES, "<tool_call>",
            ToolCallFormat.MISTRAL, "[TOOL_CALLS]",
            ToolCallFormat.GRANITE, "<|tool_call|>");
    for (ToolCallFormat f : markers.keySet()) {
      String marker = markers.get(f);
      assertEquals(0, f.plainLength(""));
      assertEquals(2, f.plainLength("Ok  "));
      assertEquals(5, f.plainLength("a " + marker.charAt(0) + " b"));
      for (int n = 1; n <= marker.length(); n++) {
        assertEquals(2, f.plainLength("Ok\n" + marker.substring(0, n)), marker.substring(0, n));
      }
      assertEquals(2, f.plainLength("Ok\n" + marker + " and more"));
    }
    assertEquals(0, ToolCallFormat.LLAMA3.plainLength(" {\"name"));
    assertEquals(0, ToolCallFormat.LLAMA3.plainLength("<|pyth"));
    assertEquals(0, ToolCallFormat.LLAMA3.plainLength("<|python_tag|>x"));
    assertEquals(7, ToolCallFormat.LLAMA3.plainLength("Hello {"));
  }

  @Test
  void grammarsOfCallsParse() {
    Map<String, Object> tree =
        Map.of(
            "$defs",
            Map.of("n", Map.of("type", "array", "items", Map.of("$ref", "#/$defs/n"))),
            "type",
            "object",
            "properties",
            Map.of("t", Map.of("$ref", "#/$defs/n")),
            "required",
            List.of("t"));
    for (ToolCallFormat f : ToolCallFormat.values()) {
      String text = f.grammar(Map.of("a.b", tree, "q", Map.of("type", "object"))).text();
      assertTrue(text.contains("a.b"), text);
      assertThrows(IllegalArgumentException.class, () -> f.grammar(Map.of()));
      assertThrows(IllegalArgumentException.class, () -> f.grammar(Map.of("a", 7)));
    }
  }
}
