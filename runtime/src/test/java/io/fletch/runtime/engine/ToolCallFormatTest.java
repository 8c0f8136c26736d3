package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Message;
import io.fletch.ToolCallFormat;
import io.fletch.ToolCallFormat.Call;
import io.fletch.runtime.template.ChatTemplate;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.GrammarTokens;
import io.fletch.sampling.SamplingException;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.LinkedHashMap;
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
  void argumentsStayAsTheyAre() {
    String arguments = "{\"x\":null,\"y\":[0.1234567890123456789,1E+999,{\"z\":null}]}";
    Call call = new Call("a", arguments);
    String object = "{\"name\":\"a\",\"arguments\":" + arguments + "}";
    check(ToolCallFormat.HERMES, "<tool_call>" + object + "</tool_call>", "", call);
    check(ToolCallFormat.LLAMA3, object, "", call);
    check(ToolCallFormat.MISTRAL, "[TOOL_CALLS][" + object + "]", "", call);
    check(ToolCallFormat.MISTRAL, "[TOOL_CALLS]a[ARGS]" + arguments, "", call);
    check(ToolCallFormat.GRANITE, "<|tool_call|>[" + object + "]", "", call);
  }

  /** As vLLM's parser for Granite 3.1, and Phi 4 mini with its closing tag. */
  @Test
  void graniteAndItsRelatives() {
    ToolCallFormat f = ToolCallFormat.GRANITE;
    Call call = new Call("a", "{\"x\":1}");
    check(f, "<tool_call>[{\"name\": \"a\", \"arguments\": {\"x\": 1}}]", "", call);
    check(f, "<|tool_call|> <tool_call> [{\"name\":\"a\",\"arguments\":{\"x\":1}}]", "", call);
    check(
        f,
        "Yes.<|tool_call|>[{\"name\":\"a\",\"arguments\":{\"x\":1}}]<|/tool_call|>",
        "Yes.",
        call);
    check(f, "<tool_call>{\"name\":\"a\"}", "<tool_call>{\"name\":\"a\"}");
    assertEquals(2, f.plainLength("Ok <tool_"));
    assertEquals(2, f.plainLength("Ok <tool_call>[ <|tool_call|>"));
  }

  /** The example that the template of Qwen3-Coder shows the model. */
  private static final String EXAMPLE =
      """
      <tool_call>
      <function=example_function_name>
      <parameter=example_parameter_1>
      value_1
      </parameter>
      <parameter=example_parameter_2>
      This is the value for the second parameter
      that can span
      multiple lines
      </parameter>
      </function>
      </tool_call>\
      """;

  private static final Map<String, ?> TOOLS =
      Map.of(
          "f",
          Map.of(
              "$defs",
              Map.of("n", Map.of("type", "integer")),
              "type",
              "object",
              "properties",
              Map.of(
                  "s", Map.of("type", "string"),
                  "i", Map.of("$ref", "#/$defs/n"),
                  "d", Map.of("type", "number"),
                  "b", Map.of("type", "boolean"),
                  "o", Map.of("type", "object"),
                  "a", Map.of("type", "array"),
                  "e", Map.of("enum", List.of("on", "off")),
                  "n", Map.of("anyOf", List.of(Map.of("type", "string"), Map.of("type", "null"))),
                  "l", Map.of("type", List.of("integer", "null"))),
              "required",
              List.of("s")));

  /** The argument as JSON that a value of {@link #TOOLS} is read as. */
  private static String argument(String key, String value) {
    ToolCallFormat.Parsed parsed =
        ToolCallFormat.QWEN_CODER.parse(
            "<tool_call><function=f><parameter="
                + key
                + ">"
                + value
                + "</parameter></function></tool_call>",
            TOOLS);
    assertEquals("", parsed.content());
    String all = parsed.calls().getFirst().arguments();
    String begin = "{\"" + key + "\":";
    assertTrue(all.startsWith(begin) && all.endsWith("}"), all);
    return all.substring(begin.length(), all.length() - 1);
  }

  @Test
  void qwenCoder() {
    ToolCallFormat f = ToolCallFormat.QWEN_CODER;
    Call example =
        new Call(
            "example_function_name",
            "{\"example_parameter_1\":\"value_1\",\"example_parameter_2\":\"This is the value for"
                + " the second parameter\\nthat can span\\nmultiple lines\"}");
    check(f, EXAMPLE, "", example);
    Call none = new Call("list", "{}");
    check(
        f,
        "I look.\n\n" + EXAMPLE + "\n<tool_call>\n<function=list>\n</function>\n</tool_call>",
        "I look.",
        example,
        none);
    // Text between calls and behind them is content, also in other notations.
    check(
        ToolCallFormat.MISTRAL,
        "1 [TOOL_CALLS]a[ARGS]{\"x\":\"[TOOL_CALLS]b[ARGS]{}\"} 2 [TOOL_CALLS]c[ARGS]{} 3",
        "1  2  3",
        new Call("a", "{\"x\":\"[TOOL_CALLS]b[ARGS]{}\"}"),
        new Call("c", "{}"));
    check(
        ToolCallFormat.MISTRAL,
        "[TOOL_CALLS]a [TOOL_CALLS]b[ARGS]{}",
        "[TOOL_CALLS]a [TOOL_CALLS]b[ARGS]{}");
    // Without the tag that opens, or the one that closes.
    check(f, "Well: <function=list>\n</function>\n</tool_call>", "Well:", none);
    check(f, "<tool_call><function=list></function>", "", none);
    // What stands in a value is text, whatever it looks like, but for the end itself.
    check(
        f,
        "<function=w><parameter=c>\n<p>&amp;\n</parameter>x</p>\n\n</parameter></function>",
        "",
        new Call("w", "{\"c\":\"<p>&amp;\\n</parameter>x</p>\\n\"}"));
    for (String text :
        List.of(
            "<tool_call>",
            "<tool_call>\n<function=a",
            "<function=a>",
            "<function=></function>",
            "<function=a><parameter=b",
            "<function=a><parameter=b>c",
            "<function=a><parameter=b>c</parameter>",
            "<function=a>text</function>",
            "After <function= it is clear that a > </function>",
            "<tool_call>{\"name\":\"a\"}</tool_call>")) {
      check(f, text, text);
    }
    for (int n = 0; n < EXAMPLE.length(); n++) {
      String part = "Yes <b>. " + EXAMPLE.substring(0, n);
      assertEquals(8, f.plainLength(part), part);
    }
    assertEquals(2, f.plainLength("Ok\n<func"));
    assertEquals(2, f.plainLength("Ok\n<function=a>"));
  }

  @Test
  void valuesOfQwenCoderHaveTheTypesOfTheSchema() {
    assertEquals("\"12\"", argument("s", "\n12\n"));
    assertEquals("\"null\"", argument("s", "null"));
    assertEquals("12", argument("i", "\n 12\n"));
    assertEquals("\"twelve\"", argument("i", "twelve"), "never lost");
    assertEquals("\"1.5\"", argument("i", "1.5"));
    assertEquals("-1.5", argument("d", "-1.5"));
    assertEquals("123456789012345678901234567890", argument("i", "123456789012345678901234567890"));
    assertEquals("1E+999", argument("d", "1e999"));
    assertEquals("0.1234567890123456789", argument("d", "0.1234567890123456789"));
    assertEquals("true", argument("b", "True"));
    assertEquals("false", argument("b", "false"));
    assertEquals("\"tRUE\"", argument("b", "tRUE"));
    assertEquals("{\"x\":[null,1]}", argument("o", "\n{\"x\": [null, 1]}\n"));
    assertEquals("\"{} x\"", argument("o", "{} x"));
    assertEquals("[\"]\"]", argument("a", "[\"]\"]"));
    assertEquals("\"on\"", argument("e", "\non\n"));
    assertEquals("null", argument("n", "None"));
    assertEquals("\"7\"", argument("n", "7"));
    assertEquals("null", argument("l", "null"));
    assertEquals("7", argument("l", "7"));
    assertEquals("\"7\"", argument("unknown", "7"));
    assertEquals("\"\"", argument("s", "\n\n"));
    assertEquals("\"\"", argument("s", ""));
  }

  /** Each reference goes to all others: paths through them are without number. */
  @Test
  void referencesInCirclesAreFollowedOnce() {
    Map<String, Object> all = Map.of("$ref", "#/$defs/a");
    Map<String, Object> schema =
        Map.of(
            "$defs",
            Map.of(
                "a",
                Map.of("anyOf", Collections.nCopies(1000, all), "oneOf", List.of(Map.of(), all))),
            "properties",
            Map.of("x", all));
    String text = "<function=f><parameter=x>1</parameter></function>";
    assertEquals(
        List.of(new Call("f", "{\"x\":\"1\"}")),
        ToolCallFormat.QWEN_CODER.parse(text, Map.of("f", schema)).calls());
    Grammar grammar = ToolCallFormat.QWEN_CODER.grammar(Map.of("f", schema));
    String begin = "<tool_call>\n<function=f>\n";
    assertEquals(begin.length(), allowed(grammar, begin));
  }

  /** How many octets of a text the grammar allows, one more if the text is then complete. */
  private static int allowed(Grammar grammar, String text) {
    byte[][] octets = new byte[257][];
    for (int i = 0; i < octets.length; i++) {
      octets[i] = i < 256 ? new byte[] {(byte) i} : new byte[0];
    }
    GrammarTokens.Mask mask = new GrammarTokens(grammar, octets, new int[] {256}).newMask();
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    for (int i = 0; i < bytes.length; i++) {
      int b = bytes[i] & 0xff;
      if ((mask.allowed()[b >> 6] >>> b & 1) == 0) {
        return i;
      }
      mask.commit(b);
    }
    return bytes.length + (mask.isComplete() ? 1 : 0);
  }

  @Test
  void grammarOfQwenCoder() {
    Map<String, Object> properties = new LinkedHashMap<>();
    properties.put("s", Map.of("type", "string"));
    properties.put("i", Map.of("$ref", "#/$defs/n"));
    properties.put("e", Map.of("enum", List.of("on", "\"off\"")));
    Map<String, Object> schema =
        Map.of(
            "$defs",
            Map.of("n", Map.of("type", "integer")),
            "properties",
            properties,
            "required",
            List.of("s"));
    Grammar grammar = ToolCallFormat.QWEN_CODER.grammar(Map.of("f", schema));
    String begin = "<tool_call>\n<function=f>\n<parameter=s>\n";
    String end = "\n</parameter>\n</function>\n</tool_call>";
    for (String value :
        List.of(
            "",
            "two\nlines",
            "<b>x</b>",
            "<</p></pre>",
            "</p</p/a",
            "\u00e9",
            "</<b",
            "<",
            "</part> </pa",
            "</parameter",
            "</parameter </function><parameter=s>",
            "</</parameter\n</param")) {
      String text = begin + value + end;
      assertEquals(text.getBytes(StandardCharsets.UTF_8).length + 1, allowed(grammar, text), text);
      String json = value.replace("\n", "\\n");
      check(ToolCallFormat.QWEN_CODER, text, "", new Call("f", "{\"s\":\"" + json + "\"}"));
    }
    String all =
        begin + "x\n</parameter>\n<parameter=i>\n-12\n</parameter>\n<parameter=e>\n\"off\"" + end;
    assertEquals(all.length() + 1, allowed(grammar, all));
    // The end of the value, whatever comes then; and what is required is there.
    assertThrows(
        SamplingException.class,
        () ->
            ToolCallFormat.QWEN_CODER.grammar(
                Map.of("f", Map.of("properties", Map.of("a>b", Map.of())))));
    assertEquals(begin.length() + 14, allowed(grammar, begin + "x\n</parameter> </parameter>"));
    String without = "<tool_call>\n<function=f>\n</function>";
    assertEquals(without.indexOf("</") + 1, allowed(grammar, without));
    String word = all.replace("-12", "twelve");
    assertEquals(word.indexOf("twelve"), allowed(grammar, word));
  }

  @Test
  void familiesByTemplate() {
    assertEquals(
        Optional.of(ToolCallFormat.GRANITE),
        ToolCallFormat.of("respond with <|tool_call|> followed by a JSON list of tools used"));
    assertEquals(Optional.of(ToolCallFormat.HERMES), ToolCallFormat.of("{{ '<tool_call>' }}"));
    assertEquals(Optional.of(ToolCallFormat.QWEN_CODER), ToolCallFormat.of(EXAMPLE));
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

  @Test
  void callsAndResultsAreMessages() {
    List<Call> calls =
        List.of(
            new Call("add", "{\"a\":[4,null],\"b\":3}"), new Call("now", ""), new Call("x", "{"));
    Message called = Message.assistant("One moment.", calls);
    Message result = Message.tool(1, calls.get(1), "12:00");
    assertEquals("tool", result.role());
    assertEquals(Map.of("tool_call_id", "call00001", "name", "now"), result.more());
    // What a template of this kind makes of them.
    String template =
        "{{ messages[0].content }}{% for c in messages[0].tool_calls %}"
            + "<{{ c.id }} {{ c.function.name }}({{ c.function.arguments | tojson }})>{% endfor %}";
    assertEquals(
        "One moment.<call00000 add({\"a\": [4, null], \"b\": 3})><call00001 now({})>"
            + "<call00002 x(\"{\")>",
        ChatTemplate.parse(template)
            .render(
                Map.of(
                    "messages",
                    List.of(
                        Map.of(
                            "content",
                            called.content(),
                            "tool_calls",
                            called.more().get("tool_calls"))))));
  }
}
