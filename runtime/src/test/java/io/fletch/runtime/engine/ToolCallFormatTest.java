package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.ToolCallFormat;
import io.fletch.ToolCallFormat.Call;
import java.util.List;
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
  void familiesByTemplate() {
    assertEquals(Optional.of(ToolCallFormat.HERMES), ToolCallFormat.of("{{ '<tool_call>' }}"));
    assertEquals(
        Optional.of(ToolCallFormat.MISTRAL), ToolCallFormat.of("[AVAILABLE_TOOLS] [TOOL_CALLS]"));
    assertEquals(
        Optional.of(ToolCallFormat.LLAMA3),
        ToolCallFormat.of("<|start_header_id|> {% if tools %}"));
    assertEquals(Optional.empty(), ToolCallFormat.of("{{ messages }}"));
  }
}
