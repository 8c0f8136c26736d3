package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.Tokenizer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.IntStream;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Assume;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;

/** What holds for any text and any ids. */
class TokenizerPropertyTest {
  private static final Map<String, Tokenizer> TOKENIZERS = new LinkedHashMap<>();

  static {
    TOKENIZERS.put("small", Tokenizers.fromGguf(MapMetadata.small()));
    for (String name : new String[] {"gpt-2", "deepseek-coder", "llama-spm"}) {
      if (Files.exists(Path.of("../../shared/tokenizers"))) {
        TOKENIZERS.put(name, Shared.gguf("tokenizers/" + name + ".gguf"));
      } else {
        System.out.println("skipped: no ../../shared/tokenizers, " + name);
      }
    }
  }

  @Provide
  Arbitrary<String> texts() {
    return Arbitraries.oneOf(
        Arbitraries.strings().ofMaxLength(60),
        Arbitraries.strings()
            .withChars("ab Z\u00e9\u4f60\ud83d\ude80\n\r\t.,'s1\u0301\u00a0<|>")
            .ofMaxLength(80),
        Arbitraries.of("hello ", "<s>", "don't", "\u2581", "  ", "\ud83d\ude80", "x")
            .list()
            .ofMaxSize(12)
            .map(parts -> String.join("", parts)));
  }

  /** Unpaired surrogates become U+FFFD. */
  private static String wellFormed(String text) {
    return text.codePoints()
        .map(c -> c >= 0xD800 && c <= 0xDFFF ? 0xFFFD : c)
        .collect(StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
        .toString();
  }

  @Property(tries = 400, seed = "20")
  void decodingUndoesEncoding(@ForAll("texts") String text) {
    TOKENIZERS.forEach((name, tokenizer) -> {
      // SentencePiece writes spaces as U+2581, so it cannot tell the two apart.
      String expected = name.equals("llama-spm") ? text.replace('\u2581', ' ') : text;
      assertEquals(
          wellFormed(expected), tokenizer.decode(tokenizer.encode(text, false, false)), name);
    });
  }

  @Property(tries = 200, seed = "20")
  void specialTokensSplitTheText(@ForAll("texts") String before, @ForAll("texts") String after) {
    Tokenizer tokenizer = TOKENIZERS.get("small");
    Assume.that(!before.contains("<") && !after.contains("<") && !after.startsWith(">"));
    int[] joined = tokenizer.encode(before + "<s>" + after, false, true);
    int[] parts =
        IntStream.of(tokenizer.encode(before, false, true)).boxed().toList().stream()
            .mapToInt(id -> id)
            .toArray();
    int[] tail = tokenizer.encode(after, false, true);
    int[] expected = Arrays.copyOf(parts, parts.length + 1 + tail.length);
    expected[parts.length] = 259;
    System.arraycopy(tail, 0, expected, parts.length + 1, tail.length);
    assertArrayEquals(expected, joined);
  }

  @Property(tries = 300, seed = "20")
  void streamsGiveWhatDecodingGives(@ForAll("texts") String text, @ForAll long seed) {
    TOKENIZERS.forEach((name, tokenizer) -> {
      int[] ids = tokenizer.encode(text, false, false);
      // Not only what an encoder makes: any ids, so also torn and wrong UTF-8.
      int[] random = new java.util.Random(seed).ints(40, 0, tokenizer.vocabularySize()).toArray();
      int[] bytes =
          new java.util.Random(seed)
              .ints(40, 0, Math.min(256, tokenizer.vocabularySize()))
              .toArray();
      for (int[] sequence : new int[][] {ids, random, bytes}) {
        Tokenizer.StreamDecoder decoder = tokenizer.streamDecoder();
        StringBuilder out = new StringBuilder();
        for (int id : sequence) {
          String part = decoder.accept(id);
          assertEquals(wellFormed(part), part);
          out.append(part);
        }
        out.append(decoder.finish());
        assertEquals(tokenizer.decode(sequence), out.toString(), name);
      }
    });
  }

  @Property(tries = 300, seed = "20")
  void heapAndScanMergeAlike(@ForAll("texts") String text) {
    // A long piece goes through the heap, its parts through the scan.
    Tokenizer tokenizer = TOKENIZERS.get("small");
    String word = "hello".repeat(30);
    int[] ids = tokenizer.encode(word, false, false);
    assertEquals(60, ids.length);
    String letters = text.replaceAll("[^a-z]", "") + "q";
    int[] one = tokenizer.encode(letters, false, false);
    int[] many = tokenizer.encode(letters.repeat(100), false, false);
    Assume.that(letters.length() < 40);
    assertEquals(one.length * 100, many.length);
    for (int i = 0; i < many.length; i++) {
      assertEquals(one[i % one.length], many[i]);
    }
  }
}
