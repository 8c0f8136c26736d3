package io.fletch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;

/** Places in an answer, and how often its characters are looked at, however hostile it is. */
class AnswerTextTest {
  /** Pieces that begin calls in one notation or another and end none. */
  private static final List<String> HOSTILE =
      List.of(
          "<tool_call>",
          "<tool_call>{",
          "<tool_call>[",
          "<tool_call>{\"a\":",
          "<tool_call>{\"a\":\"",
          "<tool_call>[\"",
          "\"<tool_call>[\",",
          "<tool_call>{\\\"",
          "<tool_call>{\"name\":\"a\",\"arguments\":{\"x\":\"",
          "<tool_call>     ",
          "<function=",
          "<function=a",
          "<function=a>",
          "<function=a b>",
          "<function=a><parameter=",
          "<function=a><parameter=b>",
          "<function=a><parameter=b></parameter>",
          "<function=a><parameter=b><function=a><parameter=c></parameter>",
          "<function=a><parameter=b></parameter>x",
          "<function=a><parameter=b></parameter>    ",
          "</parameter><parameter=b>",
          "<tool_call>\n<function=a>\n<parameter=b>\nx\n</parameter>\n",
          "[TOOL_CALLS]",
          "[TOOL_CALLS]a[ARGS]{\"x\":\"",
          "[TOOL_CALLS]a",
          "[TOOL_CALLS][",
          "[TOOL_CALLS]a[ARGS]{}",
          "<|tool_call|>",
          "<|tool_call|>[{\"name\":\"a\"},",
          "{\"name\":\"a\"};",
          "{\"name\":\"a\",\"parameters\":{\"x\":",
          "    ",
          "<");

  /** What might make one of them whole after all. */
  private static final List<String> ENDS =
      List.of("", ">", "\"}}", "]", "[ARGS]{}", "</parameter>", "</parameter></function>", "\"");

  private static final Map<String, ?> TOOLS = Map.of("a", Map.of("type", "object"), "a<", Map.of());

  private static long looks(ToolCallFormat format, String text) {
    AnswerText answer = new AnswerText(text);
    format.parse(answer, TOOLS);
    return answer.looks();
  }

  private static String repeated(List<String> pieces, int length) {
    String one = String.join("", pieces);
    return one.repeat(length / one.length());
  }

  @Test
  void parsingLooksAtEveryCharacterAFewTimes() {
    SplittableRandom random = new SplittableRandom(5);
    for (ToolCallFormat format : ToolCallFormat.values()) {
      for (int i = 0; i < HOSTILE.size() + 60; i++) {
        List<String> pieces =
            i < HOSTILE.size()
                ? List.of(HOSTILE.get(i))
                : List.of(
                    HOSTILE.get(random.nextInt(HOSTILE.size())),
                    HOSTILE.get(random.nextInt(HOSTILE.size())));
        for (String end : ENDS) {
          String text = repeated(pieces, 4_000) + end;
          long looks = looks(format, text);
          assertTrue(looks <= 8L * text.length(), format + " " + pieces + end + ": " + looks);
        }
      }
    }
  }

  @Test
  void halfAMegabyteOfBeginnings() {
    Map<ToolCallFormat, String> marks =
        Map.of(ToolCallFormat.HERMES, "<tool_call>", ToolCallFormat.QWEN_CODER, "<function=");
    marks.forEach((format, mark) -> {
      for (String piece : HOSTILE) {
        if (piece.contains(mark)) {
          String text = repeated(List.of(piece), 500_000);
          long looks = looks(format, text);
          assertTrue(looks <= 8L * text.length(), format + " " + piece + ": " + looks);
        }
      }
    });
  }

  /** As a stream comes: in pieces of a few characters. */
  @Test
  void streamsAreLookedAtAFewTimes() {
    for (ToolCallFormat format : ToolCallFormat.values()) {
      for (String piece :
          List.of("    ", "<", "<tool", "text ", "<tool_call>", "[TOOL_CALL", "{")) {
        String text = repeated(List.of(piece), 100_000);
        PlainText plain = format.plainText();
        for (int at = 0; at < text.length(); at += 5) {
          plain.append(text.substring(at, Math.min(text.length(), at + 5)));
        }
        assertTrue(
            plain.looks() <= 20L * text.length(), format + " " + piece + ": " + plain.looks());
      }
    }
  }

  /** However a text is cut, the same of it is plain as of the whole. */
  @Test
  void plainTextDoesNotDependOnThePieces() {
    SplittableRandom random = new SplittableRandom(6);
    List<String> parts =
        List.of(
            "<tool",
            "_call>",
            "<|tool_call|>",
            "<",
            "|",
            " ",
            "\n",
            "a",
            "[TOOL",
            "_CALLS]",
            "<function",
            "=",
            "{",
            "<|python",
            "_tag|>");
    for (int i = 0; i < 3000; i++) {
      StringBuilder text = new StringBuilder();
      for (int n = random.nextInt(8); n > 0; n--) {
        text.append(parts.get(random.nextInt(parts.size())));
      }
      for (ToolCallFormat format : ToolCallFormat.values()) {
        PlainText plain = format.plainText();
        int last = 0;
        for (int at = 0; at < text.length(); ) {
          int to = Math.min(text.length(), at + 1 + random.nextInt(4));
          int length = plain.append(text.substring(at, to));
          assertTrue(length >= last && length <= to, format + " " + text);
          assertEquals(format.plainLength(text.substring(0, to)), length, format + " " + text);
          last = length;
          at = to;
        }
      }
    }
  }

  @Test
  void valuesEndWhereTheyEnd() {
    AnswerText text = new AnswerText("x {\"a\": [1, \"}\"]} y [] [1} {");
    assertEquals(
        Optional.of(new AnswerText.Value(Map.of("a", List.of(1, "}")), 17)), text.value(2));
    assertEquals(Optional.of(new AnswerText.Value(List.of(), 22)), text.value(20));
    for (int none : new int[] {0, 1, 3, 23, 27, 28, 100}) {
      assertEquals(Optional.empty(), text.value(none), "" + none);
    }
    assertEquals(18, text.findEither('y', '{', 3));
    assertEquals(22, text.behind("]", 21));
    assertEquals(23, text.behind("x", 23));
  }
}
