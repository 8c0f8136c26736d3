package io.fletch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.GrammarTokens;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;

/**
 * The grammar of Qwen3-Coder's calls and the parser of them: what one writes the other reads, and
 * what is in it survives.
 */
class XmlToolCallsPropertyTest {
  private static final String END = "</parameter>";
  private static final Map<String, ?> TOOLS =
      Map.of(
          "edit",
          Map.of(
              "type", "object", "properties", properties(), "required", List.of("text", "count")));

  /** All bytes and an end. */
  private static final GrammarTokens TOKENS = tokens();

  private static Map<String, Object> properties() {
    Map<String, Object> out = new LinkedHashMap<>();
    out.put("text", Map.of("type", "string"));
    out.put("more", Map.of("type", "string"));
    out.put("count", Map.of("type", "integer"));
    return out;
  }

  private static GrammarTokens tokens() {
    byte[][] octets = new byte[257][];
    for (int i = 0; i < octets.length; i++) {
      octets[i] = i < 256 ? new byte[] {(byte) i} : new byte[0];
    }
    Grammar grammar = ToolCallFormat.QWEN_CODER.grammar(TOOLS);
    return new GrammarTokens(grammar, octets, new int[] {256});
  }

  /** Text of beginnings and pieces of tags, with or without the tag that ends a value. */
  @Provide
  Arbitrary<String> values() {
    Arbitrary<String> cut =
        Arbitraries.integers().between(1, END.length() - 1).map(n -> END.substring(0, n));
    Arbitrary<String> piece =
        Arbitraries.of(
            "<",
            "/",
            "a",
            "\n",
            " ",
            ">",
            "<parameter=more>",
            "</function>",
            "</tool_call>",
            "<function=edit>",
            "<tool_call>",
            "\"",
            "\\",
            "\u00e9",
            "\ud83d\ude00",
            "</para",
            "meter",
            END);
    return Arbitraries.oneOf(piece, cut).list().ofMaxSize(12).map(l -> String.join("", l));
  }

  private static String call(String text, String more, int count) {
    return "<tool_call>\n<function=edit>\n<parameter=text>\n"
        + text
        + "\n</parameter>\n<parameter=more>\n"
        + more
        + "\n</parameter>\n<parameter=count>\n"
        + count
        + "\n</parameter>\n</function>\n</tool_call>";
  }

  private static boolean isAccepted(String text) {
    GrammarTokens.Mask mask = TOKENS.newMask();
    for (byte b : text.getBytes(StandardCharsets.UTF_8)) {
      if (!mask.check(b & 0xff)) {
        return false;
      }
      mask.commit(b & 0xff);
    }
    return mask.isComplete();
  }

  /** Exactly the values without the tag are written, and come back as they are. */
  @Property(tries = 1000)
  void valuesRoundTrip(@ForAll("values") String text, @ForAll("values") String more)
      throws IOException {
    String call = call(text, more, -7);
    boolean isPlain = !text.contains(END) && !more.contains(END);
    assertEquals(isPlain, isAccepted(call), call);
    if (isPlain) {
      ToolCallFormat.Parsed parsed = ToolCallFormat.QWEN_CODER.parse(call, TOOLS);
      assertEquals("", parsed.content());
      assertEquals(1, parsed.calls().size());
      assertEquals(
          Map.of("text", text, "more", more, "count", -7),
          JSON.std.mapFrom(parsed.calls().getFirst().arguments()));
    }
  }

  /**
   * What the parser reads from a call, written in the template's way, is one the grammar allows.
   */
  @Property(tries = 1000)
  void whatIsParsedIsAllowed(@ForAll("values") String text, @ForAll("values") String more)
      throws IOException {
    List<ToolCallFormat.Call> calls =
        ToolCallFormat.QWEN_CODER.parse(call(text, more, 3), TOOLS).calls();
    assertFalse(calls.isEmpty());
    Map<String, Object> read = JSON.std.mapFrom(calls.getFirst().arguments());
    boolean isWhole =
        calls.size() == 1
            && read.keySet().equals(properties().keySet())
            && read.values().stream().noneMatch(v -> v.toString().contains(END));
    if (isWhole) {
      String again =
          call((String) read.get("text"), (String) read.get("more"), (int) read.get("count"));
      assertTrue(isAccepted(again), again);
      assertEquals(calls, ToolCallFormat.QWEN_CODER.parse(again, TOOLS).calls());
    }
  }

  /** Whatever is sampled from the grammar is read as one call with nothing beside it. */
  @Property(tries = 200)
  void whatIsWrittenIsRead(@ForAll long seed) throws IOException {
    SplittableRandom random = new SplittableRandom(seed);
    GrammarTokens.Mask mask = TOKENS.newMask();
    StringBuilder out = new StringBuilder();
    while (!mask.isFinished()) {
      // Values are full of beginnings of the tag, and end: else text would go on for ever.
      String liked = random.nextInt(4) == 0 ? "\n" + END + "\n" : END + "<</ \n7";
      int from = random.nextInt(liked.length());
      int to = liked.startsWith("\n") ? liked.length() : from + 1;
      int start = to == liked.length() ? 0 : from;
      boolean isTaken = false;
      for (char c : liked.substring(start, to).toCharArray()) {
        isTaken |= commit(mask, c, out);
      }
      for (char c = 0; c < 128 && !isTaken; c++) {
        isTaken = commit(mask, c, out);
      }
      assertTrue(isTaken && out.length() < 100_000, out.toString());
    }
    ToolCallFormat.Parsed parsed = ToolCallFormat.QWEN_CODER.parse(out.toString(), TOOLS);
    assertEquals("", parsed.content(), out.toString());
    assertEquals(1, parsed.calls().size(), out.toString());
    Map<String, Object> read = JSON.std.mapFrom(parsed.calls().getFirst().arguments());
    assertTrue(
        out.toString().contains("=text>\n" + read.get("text") + "\n</parameter>\n"),
        out.toString());
  }

  private static boolean commit(GrammarTokens.Mask mask, char c, StringBuilder out) {
    if (!mask.check(c)) {
      return false;
    }
    mask.commit(c);
    out.append(c);
    return true;
  }
}
