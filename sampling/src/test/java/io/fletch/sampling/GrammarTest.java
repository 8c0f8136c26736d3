package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Grammars against texts, one byte per token unless a test says otherwise. */
class GrammarTest {
  private static final int END = 256;

  private static byte[][] octets() {
    byte[][] out = new byte[257][];
    for (int i = 0; i < 256; i++) {
      out[i] = new byte[] {(byte) i};
    }
    out[END] = new byte[0];
    return out;
  }

  private static GrammarTokens tokens(String gbnf) {
    return new GrammarTokens(Grammar.parse(gbnf), octets(), new int[] {END});
  }

  private static boolean allows(TokenMask mask, int id) {
    return (mask.allowed()[id >> 6] >>> id & 1) != 0;
  }

  /** Whether a text is in the language; -1 dead, 0 viable, 1 complete. */
  private static int status(GrammarTokens tokens, String text) {
    GrammarTokens.Mask mask = tokens.newMask();
    for (byte b : text.getBytes(StandardCharsets.UTF_8)) {
      if (!allows(mask, b & 0xff)) {
        assertThrows(IllegalArgumentException.class, () -> mask.commit(b & 0xff));
        return -1;
      }
      mask.commit(b & 0xff);
    }
    assertEquals(mask.isComplete(), allows(mask, END));
    return mask.isComplete() ? 1 : 0;
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '~',
      quoteCharacter = '`',
      value = {
        "root ::= \"a\" | \"bc\"* ~ (a|(bc)*)",
        "root ::= [a-b]+ \"c\"? ~ [ab]+c?",
        "root ::= (\"a\" | \"b\"){2,3} ~ [ab]{2,3}",
        "root ::= \"ab\"{2} c\\nc ::= [^ab] ~ abab[^ab]",
        "root ::= (\"a\"?)* \"b\" ~ a*b",
        "root ::= x{0,2} y{1,}\\nx ::= \"a\"\\ny ::= \"b\" | \"c\" ~ a{0,2}[bc]+",
        "root ::= (\"a\" | \"ab\") (\"c\" | \"bc\") ~ (a|ab)(c|bc)",
      })
  void equalsARegularExpression(String gbnf, String regex) {
    GrammarTokens tokens = tokens(gbnf.replace("\\n", "\n"));
    Pattern pattern = Pattern.compile(regex.strip());
    List<String> texts = new ArrayList<>(List.of(""));
    for (int from = 0, n = 0; n < 5; n++) {
      int to = texts.size();
      for (; from < to; from++) {
        for (String c : List.of("a", "b", "c")) {
          texts.add(texts.get(from) + c);
        }
      }
    }
    for (String text : texts) {
      boolean expected = pattern.matcher(text).matches();
      assertEquals(expected, status(tokens, text) == 1, text);
      // Viable if and only if some text goes on from here (all are short enough to be in the list,
      // apart from the last length).
      if (text.length() < 4) {
        boolean viable =
            texts.stream().anyMatch(t -> t.startsWith(text) && pattern.matcher(t).matches());
        if (!gbnf.contains("[^")) {
          assertEquals(viable, status(tokens, text) >= 0, text);
        }
      }
    }
  }

  @Test
  void nestsWithoutLimit() {
    GrammarTokens tokens = tokens("root ::= \"(\" root \")\" root | \"\"");
    String deep = "(".repeat(3000) + ")".repeat(3000);
    assertEquals(1, status(tokens, deep));
    assertEquals(1, status(tokens, "(()())()"));
    assertEquals(0, status(tokens, "(()"));
    assertEquals(-1, status(tokens, "())"));
  }

  @Test
  void classesAreCharacters() {
    GrammarTokens tokens =
        tokens("root ::= [a\u00e9\u20ac-\u20af\\U0001F600-\\U0001F64F]+ \"\u00fc\"");
    assertEquals(1, status(tokens, "a\u00e9\u20ac\u20af\ud83d\ude00\u00fc"));
    assertEquals(-1, status(tokens, "\u20b0\u00fc"));
    GrammarTokens any = tokens("root ::= .");
    for (int c :
        new int[] {0, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff}) {
      assertEquals(1, status(any, Character.toString(c)), Integer.toHexString(c));
    }
    // Overlong forms, surrogates and beyond the last character.
    for (int[] bad :
        new int[][] {
          {0xc0},
          {0xc1},
          {0xe0, 0x9f},
          {0xed, 0xa0},
          {0xf0, 0x8f},
          {0xf4, 0x90},
          {0xf5},
          {0x80},
          {0xff}
        }) {
      TokenMask mask = any.newMask();
      for (int i = 0; i + 1 < bad.length; i++) {
        mask.commit(bad[i]);
      }
      assertFalse(allows(mask, bad[bad.length - 1]), Integer.toHexString(bad[0]));
    }
    assertEquals(1, status(tokens("root ::= [^a]"), "\u20ac"));
    assertEquals(-1, status(tokens("root ::= [^a\u20ac]"), "\u20ac"));
  }

  /** A mask over tokens of many bytes holds exactly those that the byte states let through. */
  @Test
  void masksAreExact() {
    List<byte[]> vocabulary = new ArrayList<>();
    vocabulary.add(new byte[0]);
    String[] pieces = {
      "{",
      "}",
      "\"",
      "\"a",
      "\"a\"",
      "\":",
      ": ",
      ",",
      "1",
      "12",
      "{\"",
      "\"}",
      "\"a\":1}",
      " ",
      "  ",
      "x",
      "\u20ac",
      "true",
      "tru",
      "\"}x",
      "[[",
      "]"
    };
    for (String p : pieces) {
      vocabulary.add(p.getBytes(StandardCharsets.UTF_8));
    }
    for (int i = 0; i < 256; i++) {
      vocabulary.add(new byte[] {(byte) i});
    }
    vocabulary.add("</s>".getBytes(StandardCharsets.UTF_8));
    byte[][] bytes = vocabulary.toArray(byte[][]::new);
    int end = bytes.length - 1;
    Grammar grammar = Grammar.ofJsonObject();
    GrammarTokens whole = new GrammarTokens(grammar, bytes, new int[] {end});
    GrammarTokens single = new GrammarTokens(grammar, octets(), new int[] {END});
    java.util.SplittableRandom random = new java.util.SplittableRandom(3);
    for (int run = 0; run < 40; run++) {
      GrammarTokens.Mask mask = whole.newMask();
      StringBuilder path = new StringBuilder();
      List<Byte> text = new ArrayList<>();
      for (int step = 0; step < 25 && !mask.isFinished(); step++) {
        List<Integer> allowed = new ArrayList<>();
        for (int id = 0; id < bytes.length; id++) {
          GrammarTokens.Mask slow = single.newMask();
          text.forEach(b -> slow.commit(b & 0xff));
          boolean expected = id == end ? slow.isComplete() : bytes[id].length > 0;
          if (id != end) {
            for (byte b : bytes[id]) {
              if (expected && allows(slow, b & 0xff)) {
                slow.commit(b & 0xff);
              } else {
                expected = false;
              }
            }
          }
          assertEquals(expected, allows(mask, id), path + " token " + id);
          if (expected && id != end) {
            allowed.add(id);
          }
        }
        assertTrue(mask.isComplete() || !allowed.isEmpty());
        if (allowed.isEmpty()) {
          break;
        }
        int id = allowed.get(random.nextInt(allowed.size()));
        mask.commit(id);
        for (byte b : bytes[id]) {
          text.add(b);
        }
        path.append(id).append(' ');
      }
    }
  }

  @Test
  void endsOnlyWhereTheTextIsComplete() {
    GrammarTokens.Mask mask = tokens("root ::= \"ab\"").newMask();
    mask.commit('a');
    assertFalse(allows(mask, END) || mask.isComplete());
    mask.commit('b');
    assertTrue(mask.isFinished());
    assertTrue(allows(mask, END));
    assertEquals(1, java.util.Arrays.stream(mask.allowed()).map(Long::bitCount).sum());
    mask.commit(END);
    assertTrue(allows(mask, END) && mask.isFinished());
    // A grammar of only the empty text.
    assertTrue(tokens("root ::= \"\"").newMask().isFinished());
  }

  @Test
  void statesThatWereDroppedComeBack() {
    // Every count is a state of its own: more than are kept.
    GrammarTokens tokens = tokens("root ::= [a-z]{10000} | \"x\"{9000} \"y\"");
    for (int round = 0; round < 2; round++) {
      for (String text : List.of("x".repeat(9000) + "y", "q".repeat(10000))) {
        GrammarTokens.Mask mask = tokens.newMask();
        for (int i = 0; i < text.length(); i++) {
          mask.commit(text.charAt(i));
        }
        assertTrue(mask.isComplete());
      }
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "a ::= \"x\"",
        "root ::= ",
        "root ::= \"a",
        "root ::= [a",
        "root ::= []",
        "root ::= [z-a]",
        "root ::= b",
        "root ::= (\"a\"",
        "root ::= \"a\" )",
        "root ::= \"a\"{3,2}",
        "root ::= \"a\"{99999}",
        "root ::= \"a\"{",
        "root ::= \"\\q\"",
        "root ::= \"\\uD800\"",
        "root ::= \"\\x0\"",
        "root = \"a\"",
        "root ::= *",
        "root ::= \"a\"\nroot ::= \"b\"",
        "root ::= root \"a\" | \"a\"",
        "root ::= x\nx ::= y? x \"b\" | \"c\"\ny ::= \"d\"",
        "root ::= a\na ::= b \"x\" | \"\"\nb ::= a",
        "root ::= \"a\" root",
        "root ::= \"a\" | x\nx ::= \"b\" y\ny ::= x",
      })
  void refuses(String gbnf) {
    if (gbnf.equals("root ::= ")) {
      // A rule of the empty text.
      assertEquals(1, status(tokens(gbnf), ""));
      return;
    }
    SamplingException e = assertThrows(SamplingException.class, () -> Grammar.parse(gbnf));
    assertTrue(e.getMessage().matches("(?s).*(expected|left-recursive).*"), e.getMessage());
  }

  private static Map<String, Object> map(Object... pairs) {
    Map<String, Object> out = new LinkedHashMap<>();
    for (int i = 0; i < pairs.length; i += 2) {
      out.put((String) pairs[i], pairs[i + 1]);
    }
    return out;
  }

  private static int status(Map<String, Object> schema, String text) {
    return status(new GrammarTokens(Grammar.ofJsonSchema(schema), octets(), new int[] {END}), text);
  }

  @Test
  void objectsOfASchema() {
    Map<String, Object> schema =
        map(
            "type",
            "object",
            "properties",
            map(
                "name", map("type", "string", "maxLength", 3),
                "age", map("type", "integer", "minimum", 0, "maximum", 130),
                "tags",
                    map("type", "array", "items", map("enum", List.of("x", "y\"")), "maxItems", 2),
                "deep", map("$ref", "#/$defs/tree")),
            "required",
            List.of("age"),
            "additionalProperties",
            false,
            "$defs",
            map(
                "tree",
                map("type", "object", "properties", map("l", map("$ref", "#/$defs/tree")))));
    for (String good :
        List.of(
            "{\"age\":0}",
            "{ \"name\" : \"\u20ac\\n\u00e9\" , \"age\" : 130 }",
            "{\"age\":7,\"tags\":[\"x\",\"y\\\"\"]}",
            "{\"age\":7,\"tags\":[],\"deep\":{\"l\":{\"l\":{}}}}")) {
      assertEquals(1, status(schema, good), good);
    }
    for (String bad :
        List.of(
            "{}",
            "{\"age\":131}",
            "{\"age\":-1}",
            "{\"age\":07}",
            "{\"name\":\"abcd\"",
            "{\"age\":1,\"name\"",
            "{\"age\":1,}",
            "{\"age\":1,\"tags\":[\"x\",\"x\",",
            "{\"other\"",
            "[")) {
      assertEquals(-1, status(schema, bad), bad);
    }
  }

  /** No members are described, which is something else than that nothing is said of them. */
  @Test
  void objectsWithoutMembers() {
    Map<String, Object> none = map("type", "object", "properties", map());
    assertEquals(1, status(none, "{}"));
    assertEquals(-1, status(none, "{\""));
    none.put("additionalProperties", map("type", "integer"));
    assertEquals(1, status(none, "{\"a\":1}"));
    assertEquals(-1, status(none, "{\"a\":\""));
    none.remove("additionalProperties");
    none.put("minProperties", 1);
    assertEquals(-1, status(none, "{}"));
    assertEquals(1, status(none, "{\"a\":\"b\"}"));
    assertEquals(1, status(map("type", "object"), "{\"a\":1}"));
  }

  @ParameterizedTest
  @CsvSource({"0,9", "-5,17", "99,1203", "-130,-7", "10,10", "0,0", "-1,0", "7,1000", "385,4021"})
  void integersBetween(int low, int high) {
    GrammarTokens tokens =
        new GrammarTokens(
            Grammar.ofJsonSchema(map("type", "integer", "minimum", low, "maximum", high)),
            octets(),
            new int[] {END});
    for (int i = -1500; i < 5000; i++) {
      assertEquals(i >= low && i <= high, status(tokens, Integer.toString(i)) == 1, "" + i);
    }
    assertEquals(-1, status(tokens, "-0"));
  }

  @Test
  void schemasThatCannotBeGuaranteedAreRefused() {
    for (Map<String, Object> schema :
        List.of(
            map("type", "string", "pattern", "a+"),
            map("type", "number", "maximum", 3),
            map("type", "array", "uniqueItems", true),
            map("not", map("type", "string")),
            map("type", "strange"),
            map("$ref", "http://example.com/x"),
            map("$ref", "#/nowhere"),
            map("$ref", "#"),
            map("enum", List.of()),
            map("type", "string", "minLength", 5, "maxLength", 4),
            map("type", "integer", "minimum", 5, "maximum", 4),
            map("type", "string", "maxLength", 1_000_000),
            map("allOf", List.of(map("type", "string"), map("type", "null"))))) {
      assertThrows(SamplingException.class, () -> Grammar.ofJsonSchema(schema), schema.toString());
    }
  }

  @Test
  void eitherOfTwoGrammars() {
    String names = "root ::= \"root [\" x \"]\" # x\nx ::= [x\\]]{1,2} | \"\\\"root\"";
    Grammar both =
        Grammar.parse(names).or(Grammar.ofJsonSchema(map("type", "integer", "minimum", 0)));
    for (String good : List.of("root [x]", "root []x]", "root [\"root]", "7", "120")) {
      assertEquals(1, status(new GrammarTokens(both, octets(), new int[] {END}), good), good);
    }
    for (String bad : List.of("root [xxx]", "-1", "7root", "a-root")) {
      assertEquals(-1, status(new GrammarTokens(both, octets(), new int[] {END}), bad), bad);
    }
    assertEquals(
        Grammar.parse("root ::= p-root\n" + Grammar.parse("root ::= \"a\"").part("p")).text(),
        "root ::= p-root\np-root ::= \"a\"");
    assertThrows(IllegalArgumentException.class, () -> both.part("1 x"));
  }
}
