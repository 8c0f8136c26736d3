package io.fletch.tools;

import io.fletch.FletchException;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Whole models with damage anywhere before their weights: each opens and can be used, or is refused
 * by a {@link FletchException} that does not hide an error of a program. The damage is the same in
 * every run.
 */
class DamagedModelTest {
  private static final int MUTANTS = 20;
  private static final Pattern JSON_TOKEN =
      Pattern.compile("\"(?:[^\"\\\\]|\\\\.)*\"|-?[0-9][0-9.eE+-]*|true|false|null|[{}\\[\\],:]");
  private static final String[] VALUES = {
    "null",
    "-1",
    "0",
    "1e400",
    "2147483648",
    "9223372036854775808",
    "1.5",
    "true",
    "\"\"",
    "\"\\ud800\"",
    "\"(a*)*b\"",
    "[]",
    "{}",
    "[null]",
    "{\"a\": null}",
    "[".repeat(2000) + "]".repeat(2000)
  };
  private static final long[] NUMBERS = {
    0, 1, -1, 31, 255, 1 << 20, 1L << 31, 1L << 62, Long.MAX_VALUE, Long.MIN_VALUE
  };

  @TempDir static Path folder;

  @BeforeAll
  static void makeModels() {
    for (String name : List.of("model.gguf", "model.arrow", "model")) {
      Fletch.ok("convert", "-m", "demo-small", "-o", folder.resolve(name).toString());
    }
  }

  @Test
  void gguf() throws IOException {
    binary("model.gguf", 0, 40_000);
  }

  @Test
  void arrow() throws IOException {
    // Its footer is at the end.
    binary("model.arrow", (int) Files.size(folder.resolve("model.arrow")) - 60_000, 60_000);
  }

  @Test
  void safetensors() throws IOException {
    binary("model/model.safetensors", 0, 6000);
  }

  @Test
  void json() throws IOException {
    Path model = folder.resolve("model");
    List<Path> files;
    try (Stream<Path> all = Files.list(model)) {
      files = all.filter(f -> f.toString().endsWith(".json")).sorted().toList();
    }
    for (Path file : files) {
      String whole = Files.readString(file);
      for (int seed = 0; seed < MUTANTS; seed++) {
        Files.writeString(file, mutant(whole, new SplittableRandom(seed)));
        use(model, file.getFileName() + " seed " + seed);
      }
      Files.writeString(file, whole);
    }
  }

  private static void binary(String name, int from, int length) throws IOException {
    Path file = folder.resolve(name);
    byte[] whole = Files.readAllBytes(file);
    Path model = name.startsWith("model/") ? folder.resolve("model") : file;
    for (int seed = 0; seed < MUTANTS; seed++) {
      SplittableRandom random = new SplittableRandom(seed);
      byte[] bytes = whole.clone();
      for (int i = random.nextInt(3); i >= 0; i--) {
        int at = from + random.nextInt(length - 8);
        switch (random.nextInt(4)) {
          case 0 -> bytes[at] ^= (byte) (1 << random.nextInt(8));
          case 1 -> bytes[at] = (byte) random.nextInt(256);
          case 2 -> {
            long number = NUMBERS[random.nextInt(NUMBERS.length)];
            for (int b = 0; b < 8; b++) {
              bytes[at + b] = (byte) (number >> 8 * b);
            }
          }
          default -> System.arraycopy(whole, at, bytes, from + random.nextInt(length - 8), 8);
        }
      }
      int end = random.nextInt(8) == 0 ? from + random.nextInt(length) : bytes.length;
      Files.write(file, Arrays.copyOf(bytes, end));
      use(model, name + " seed " + seed);
    }
    Files.write(file, whole);
  }

  /** Another value, or none, for a token near the start or the end, where few are vocabulary. */
  private static String mutant(String json, SplittableRandom random) {
    List<MatchResult> tokens =
        JSON_TOKEN
            .matcher(json)
            .results()
            .filter(t -> t.start() < 3000 || t.start() > json.length() - 400)
            .toList();
    MatchResult token = tokens.get(random.nextInt(tokens.size()));
    String other = random.nextInt(5) == 0 ? "" : VALUES[random.nextInt(VALUES.length)];
    return json.substring(0, token.start()) + other + json.substring(token.end());
  }

  private static void use(Path path, String what) {
    ModelOptions options =
        ModelOptions.defaults()
            .withThreads(1)
            .withContextLength(32)
            .withPackCache(ModelOptions.PackCache.off());
    try (Model model = Model.open(path, options);
        Session session = model.newSession()) {
      int[] ids = model.tokenizer().encode("4 + 3? \u00e9\u6f22\ud83d\ude00\u0000", true, true);
      model.tokenizer().decode(ids);
      model.toolCallFormat();
      if (ids.length > 0) {
        session.logits(new int[] {ids[0]});
      }
      model.chatPrompt(List.of(Message.user("hi")), true, Map.of());
    } catch (FletchException e) {
      for (Throwable c = e.getCause(); c != null; c = c.getCause()) {
        boolean isProgramError =
            c instanceof IndexOutOfBoundsException
                || c instanceof NullPointerException
                || c instanceof ClassCastException
                || c instanceof NegativeArraySizeException;
        if (isProgramError) {
          throw new AssertionError(what, e);
        }
      }
    } catch (UncheckedIOException e) {
      // The file cannot be read: that is no matter of its content.
      throw new AssertionError(what, e);
    } catch (RuntimeException | StackOverflowError | OutOfMemoryError e) {
      throw new AssertionError(what, e);
    }
  }
}
