package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.Tokenizer;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * WordPiece against the ids of Hugging Face tokenizers ({@code
 * runtime/src/test/python/wordpiece_vectors.py}), from tokenizer.json and as a GGUF converter
 * stores the vocabulary.
 */
class WordPieceTest {
  private static final String PREFIX = "tokenizer.ggml.";
  private static final Tokenizer UNCASED = Tokenizers.fromGguf(gguf("uncased"));
  private static final Tokenizer CASED = Tokenizers.fromGguf(gguf("cased"));

  private static byte[] resource(String name) {
    try (InputStream in = WordPieceTest.class.getResourceAsStream("wordpiece/" + name)) {
      return in.readAllBytes();
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  private static String text(String name) {
    return new String(resource(name), StandardCharsets.UTF_8);
  }

  /** What llama.cpp's converter makes of a vocabulary. */
  private static MapMetadata gguf(String name) {
    try {
      Map<String, Object> all = JSON.std.mapFrom(resource(name + "/tokenizer.json"));
      Map<?, ?> vocabulary = (Map<?, ?>) ((Map<?, ?>) all.get("model")).get("vocab");
      String[] tokens = new String[vocabulary.size()];
      long[] types = new long[tokens.length];
      Arrays.fill(types, 1);
      vocabulary.forEach((spelling, id) -> {
        String s = (String) spelling;
        int i = ((Number) id).intValue();
        boolean bracketed = s.startsWith("[") && s.endsWith("]");
        tokens[i] = bracketed ? s : s.startsWith("##") ? s.substring(2) : "\u2581" + s;
        types[i] = bracketed ? 3 : 1;
      });
      return new MapMetadata()
          .with(PREFIX + "model", "bert")
          .with(PREFIX + "tokens", tokens)
          .with(PREFIX + "token_type", types)
          .with(PREFIX + "token_type_count", 2L)
          .with(PREFIX + "unknown_token_id", 1L)
          .with(PREFIX + "seperator_token_id", 3L)
          .with(PREFIX + "padding_token_id", 0L)
          .with(PREFIX + "cls_token_id", 2L)
          .with(PREFIX + "mask_token_id", 4L);
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  private static Tokenizer folder(Path folder, String json) throws IOException {
    Files.writeString(folder.resolve("tokenizer.json"), json);
    return Tokenizers.fromFolder(folder);
  }

  private static int[] ids(Object list) {
    return ((List<?>) list).stream().mapToInt(id -> ((Number) id).intValue()).toArray();
  }

  @ParameterizedTest
  @CsvSource({"uncased,false", "uncased,true", "cased,false", "cased,true"})
  void idsAreThoseOfTokenizers(String name, boolean fromGguf, @TempDir Path temp)
      throws IOException {
    Tokenizer tokenizer =
        fromGguf ? Tokenizers.fromGguf(gguf(name)) : folder(temp, text(name + "/tokenizer.json"));
    List<Object> vectors = JSON.std.listFrom(resource(name + "/vectors.json"));
    assertEquals(194, vectors.size());
    for (Object entry : vectors) {
      Map<?, ?> vector = (Map<?, ?>) entry;
      String text = (String) vector.get("text");
      assertArrayEquals(ids(vector.get("ids")), tokenizer.encode(text), text);
      assertArrayEquals(ids(vector.get("plain")), tokenizer.encode(text, false, true), text);
    }
    assertEquals(4, tokenizer.id("[MASK]").orElseThrow());
    assertTrue(tokenizer.isSpecial(2));
  }

  @Test
  void decodingGivesWordsWithSpacesBetween(@TempDir Path temp) throws IOException {
    Tokenizer json = folder(temp, text("uncased/tokenizer.json"));
    for (Tokenizer tokenizer : List.of(UNCASED, json)) {
      int[] ids = tokenizer.encode("The Fox, na\u00efve!");
      assertEquals("the fox , naive !", tokenizer.decode(ids));
      assertEquals("[CLS]the fox , naive ![SEP]", tokenizer.decode(ids, true));
      Tokenizer.StreamDecoder stream = tokenizer.streamDecoder();
      StringBuilder out = new StringBuilder();
      for (int id : ids) {
        out.append(stream.accept(id));
      }
      assertEquals("the fox , naive !", out.append(stream.finish()).toString());
    }
    int[] untrusted = UNCASED.encode("[CLS]", false, false);
    assertTrue(Arrays.stream(untrusted).noneMatch(id -> id == 2), Arrays.toString(untrusted));
  }

  @Provide
  Arbitrary<String> texts() {
    return Arbitraries.oneOf(
        Arbitraries.strings().ofMaxLength(60),
        Arbitraries.strings()
            .withChars("abTHEfox \u00e9\u4eba\ud83d\ude80\n\t.,'1\u0301\u00a0[#]\u2581\ud800")
            .ofMaxLength(80),
        Arbitraries.of("embedding", "##s ", "[SEP]", "The ", "\u0130", "\u03a3", "  ", "x")
            .list()
            .ofMaxSize(12)
            .map(parts -> String.join("", parts)));
  }

  @Property(tries = 1000, seed = "21")
  void bothFormsAgreeAndDecodingCanBeEncoded(@ForAll("texts") String text) throws IOException {
    for (Tokenizer tokenizer : List.of(UNCASED, CASED)) {
      int[] ids = tokenizer.encode(text, false, false);
      int[] whole = tokenizer.encode(text, true, false);
      assertEquals(2, whole[0]);
      assertEquals(3, whole[whole.length - 1]);
      assertArrayEquals(ids, Arrays.copyOfRange(whole, 1, whole.length - 1));
      if (Arrays.stream(ids).noneMatch(id -> id == 1)) {
        assertArrayEquals(ids, tokenizer.encode(tokenizer.decode(ids), false, false), text);
      }
    }
    assertArrayEquals(
        JsonForms.UNCASED.encode(text), UNCASED.encode(text), () -> "uncased: " + text);
    assertArrayEquals(JsonForms.CASED.encode(text), CASED.encode(text), () -> "cased: " + text);
  }

  /** The tokenizers from tokenizer.json, read once. */
  private static final class JsonForms {
    static final Tokenizer UNCASED = read("uncased");
    static final Tokenizer CASED = read("cased");

    private static Tokenizer read(String name) {
      try {
        Path folder = Files.createTempDirectory("wordpiece");
        try {
          return folder(folder, text(name + "/tokenizer.json"));
        } finally {
          Files.delete(folder.resolve("tokenizer.json"));
          Files.delete(folder);
        }
      } catch (IOException e) {
        throw new java.io.UncheckedIOException(e);
      }
    }
  }

  @Test
  void longTextsTakeLinearTime() {
    String letters = "unaffableembeddings".repeat(4) + " ";
    assertTimeoutPreemptively(Duration.ofSeconds(20), () -> UNCASED.encode(letters.repeat(20_000)));
    assertEquals(3, UNCASED.encode("e".repeat(1 << 20)).length);
  }

  @Test
  void olderFormsAreRead(@TempDir Path temp) throws IOException {
    String json = text("uncased/tokenizer.json");
    int from = json.indexOf("\"post_processor\":");
    int to = json.indexOf("\"decoder\":");
    String older =
        json.substring(0, from)
            + "\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"[SEP]\",3],"
            + "\"cls\":[\"[CLS]\",2]},"
            + json.substring(to);
    assertArrayEquals(
        UNCASED.encode("the fox"), folder(temp, older).encode("the fox"), "BertProcessing");
    // Files that keep the marks of the vocabulary, without types.
    MapMetadata marked = gguf("uncased");
    String[] tokens = marked.strings(PREFIX + "tokens").orElseThrow().clone();
    for (int i = 0; i < tokens.length; i++) {
      if (!tokens[i].startsWith("[") || tokens[i].equals("[")) {
        tokens[i] = tokens[i].startsWith("\u2581") ? tokens[i].substring(1) : "##" + tokens[i];
      }
    }
    Tokenizer plain =
        Tokenizers.fromGguf(
            new MapMetadata().with(PREFIX + "model", "bert").with(PREFIX + "tokens", tokens));
    assertArrayEquals(UNCASED.encode("The fox"), plain.encode("The fox"));
    assertEquals("the fox", plain.decode(plain.encode("The fox")));
  }

  @Test
  void refusals(@TempDir Path temp) throws IOException {
    String json = text("uncased/tokenizer.json");
    refused(temp, json.replace("\"unk_token\":\"[UNK]\"", "\"unk_token\":\"<x>\""), "unk_token");
    refused(
        temp,
        json.replace("\"continuing_subword_prefix\":\"##\"", "\"continuing_subword_prefix\":\"\""),
        "continuing_subword_prefix");
    refused(
        temp,
        json.replace("\"max_input_chars_per_word\":100", "\"max_input_chars_per_word\":-1"),
        "max_input_chars_per_word");
    refused(
        temp, json.replace("\"type\":\"WordPiece\",\"unk", "\"type\":\"Unigram\",\"unk"), "Uni");
    FletchException e =
        assertThrows(
            FletchException.class,
            () ->
                Tokenizers.fromGguf(
                    new MapMetadata()
                        .with(PREFIX + "model", "bert")
                        .with(PREFIX + "tokens", new String[] {"\u2581a", "b"})));
    assertTrue(e.getMessage().contains("unknown_token_id"), e.getMessage());
  }

  private static void refused(Path temp, String json, String part) {
    FletchException e = assertThrows(FletchException.class, () -> folder(temp, json));
    assertTrue(e.getMessage().contains(part), e.getMessage());
  }
}
