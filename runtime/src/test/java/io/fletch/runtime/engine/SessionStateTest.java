package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import java.util.zip.CRC32C;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Fork, save, restore and shared beginnings: each equals having run the tokens. */
class SessionStateTest {
  private static final String PROMPT =
      "<|im_start|>user\nWhat is 457 + 386?<|im_end|>\n<|im_start|>assistant\n";
  private static final GenerationOptions OPTIONS =
      GenerationOptions.greedy().withLogprobs(1).withMaxTokens(24);

  @TempDir private Path folder;

  private static ModelOptions options() {
    return TestModels.options(ModelOptions.Backend.CPU).withContextLength(128);
  }

  private static List<Generation.TokenLogprob> read(Generation generation) {
    List<Generation.TokenLogprob> out = new ArrayList<>();
    while (generation.hasNext()) {
      out.addAll(generation.next().logprobs());
    }
    return out;
  }

  @ParameterizedTest
  @EnumSource(ModelOptions.KvType.class)
  void forkAndFileEqualTheOriginal(ModelOptions.KvType type) {
    Path file = folder.resolve("chat.session");
    for (ModelOptions.Backend backend :
        List.of(ModelOptions.Backend.CPU, ModelOptions.Backend.REFERENCE)) {
      ModelOptions options = options().withKvType(type).withBackend(backend);
      try (Model model = TestModels.open("demo-small", options);
          Session first = model.newSession()) {
        first.generate(PROMPT, OPTIONS).result();
        List<Integer> past = first.tokens();
        first.save(file);
        int[] next =
            IntStream.concat(
                    past.stream().mapToInt(i -> i),
                    Arrays.stream(model.tokenizer().encode("\nWhat is 12 + 30?")))
                .toArray();
        try (Session forked = first.fork();
            Session restored = model.newSession()) {
          assertEquals(past, forked.tokens());
          restored.generate("something else", OPTIONS.withMaxTokens(3)).result();
          restored.restore(file);
          assertEquals(past, restored.tokens());
          List<Generation.TokenLogprob> expected = read(first.generate(next, OPTIONS));
          Generation a = forked.generate(next, OPTIONS);
          assertEquals(expected, read(a));
          assertEquals(past.size(), a.result().reusedTokens());
          Generation b = restored.generate(next, OPTIONS);
          assertEquals(expected, read(b));
          assertEquals(past.size(), b.result().reusedTokens());
          // Rewinding one leaves the other alone.
          forked.truncate(2);
          assertTrue(restored.tokens().size() > past.size());
        }
      }
    }
  }

  @Test
  void refusesForeignAndDamagedFiles() throws IOException {
    Path file = folder.resolve("s");
    byte[] good;
    try (Model model = TestModels.open("demo-small", options());
        Session session = model.newSession()) {
      session.generate(PROMPT, OPTIONS).result();
      List<Integer> past = session.tokens();
      session.save(file);
      good = Files.readAllBytes(file);
      try (Stream<Path> files = Files.list(folder)) {
        assertEquals(1, files.count(), "no temporary file stays");
      }
      SplittableRandom random = new SplittableRandom(1);
      for (int i = 0; i < 300; i++) {
        byte[] bad = good.clone();
        // The header more often than the rest.
        int at = i < 100 ? i : random.nextInt(bad.length);
        bad[at] ^= (byte) (1 << random.nextInt(8));
        Files.write(file, bad);
        assertThrows(FletchException.class, () -> session.restore(file), "byte " + at);
      }
      for (int n : new int[] {0, 1, 7, 55, 56, 60, 64, good.length - 1, good.length - 5}) {
        Files.write(file, Arrays.copyOf(good, n));
        assertThrows(FletchException.class, () -> session.restore(file), "length " + n);
      }
      Files.write(file, Arrays.copyOf(good, good.length + 1));
      assertThrows(FletchException.class, () -> session.restore(file));
      // Right checksum, wrong content.
      for (int[] forged :
          new int[][] {
            {44, 1 << 30}, {44, -1}, {40, -1}, {40, 1 << 20}, {48, 0}, {56, -1}, {56, 1 << 20}
          }) {
        Files.write(file, signed(good, forged[0], forged[1]));
        assertThrows(FletchException.class, () -> session.restore(file));
      }
      int firstToken = 60 + 7;
      Files.write(file, signed(good, firstToken, Integer.MAX_VALUE));
      FletchException e = assertThrows(FletchException.class, () -> session.restore(file));
      assertTrue(e.getMessage().contains("token 0: expected=[0, "), e.getMessage());
      assertEquals(past, session.tokens(), "a refused file changes nothing");
      assertThrows(UncheckedIOException.class, () -> session.restore(folder.resolve("none")));
      assertTrue(session.generate(PROMPT, OPTIONS).hasNext());
      assertThrows(IllegalStateException.class, () -> session.save(file));
    }
    Files.write(file, good);
    refused(file, "demo-small", options().withKvType(ModelOptions.KvType.Q8_0), "KV cache");
    refused(file, "demo-small", options().withBackend(ModelOptions.Backend.REFERENCE), "KV cache");
    refused(file, "demo-small", options().withContextLength(8), "tokens");
    refused(file, "demo", options(), "model");
  }

  private static byte[] signed(byte[] good, int at, int value) {
    ByteBuffer out = ByteBuffer.wrap(good.clone()).order(ByteOrder.LITTLE_ENDIAN);
    out.putInt(at, value);
    CRC32C sum = new CRC32C();
    sum.update(out.array(), 0, good.length - 4);
    out.putInt(good.length - 4, (int) sum.getValue());
    return out.array();
  }

  private static void refused(Path file, String name, ModelOptions options, String what) {
    try (Model model = TestModels.open(name, options);
        Session session = model.newSession()) {
      FletchException e = assertThrows(FletchException.class, () -> session.restore(file));
      assertTrue(e.getMessage().contains(what), e.getMessage());
    }
  }

  @Test
  void sessionsShareBeginnings() {
    try (Model model = TestModels.open("demo-small", options().withPrefixCache(1 << 20));
        Model plain = TestModels.open("demo-small", options())) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      String other = PROMPT.replace("86?", "87?") + "x".repeat(5);
      int[] a = model.tokenizer().encode(PROMPT);
      int[] b = model.tokenizer().encode(other);
      int common = Arrays.mismatch(a, b);
      List<Generation.TokenLogprob> expected;
      try (Session session = plain.newSession()) {
        expected = read(session.generate(other, OPTIONS));
      }
      try (Session session = model.newSession()) {
        assertEquals(0, session.generate(PROMPT, OPTIONS).result().reusedTokens());
      }
      try (Session session = model.newSession()) {
        Generation g = session.generate(PROMPT, OPTIONS);
        read(g);
        assertEquals(a.length - 1, g.result().reusedTokens(), "from a session that is closed");
      }
      assertTrue(common >= PrefixStore.LEAST_TOKENS - 8, "prompts too different: " + common);
      try (Session session = model.newSession()) {
        Generation g = session.generate(other, OPTIONS);
        assertEquals(expected, read(g));
      }
      // Many different prompts: the bytes stay bounded.
      for (int i = 0; i < 60; i++) {
        try (Session session = model.newSession()) {
          session.generate(i + " different " + PROMPT, OPTIONS.withMaxTokens(1)).result();
        }
      }
      long slot = loaded.kvBytesPerToken();
      assertTrue(loaded.prefixes().size() * 16 * slot <= 1 << 20);
      assertTrue(loaded.prefixes().size() < 60);
    }
  }

  @Test
  void diffusionModelsRefuse() {
    try (Model model = TestModels.open("demo-diffusion", options());
        Session session = model.newSession()) {
      assertThrows(FletchException.class, session::fork);
      assertThrows(FletchException.class, () -> session.save(folder.resolve("x")));
      assertThrows(FletchException.class, () -> session.restore(folder.resolve("x")));
      assertArrayEquals(new Object[0], session.tokens().toArray());
    }
  }

  /** A process that was killed while it saved; what others call alike stays. */
  @Test
  void savingRemovesWhatAKilledSaveLeft() throws IOException {
    Path file = folder.resolve("chat.session");
    Path left =
        Files.writeString(folder.resolve(".chat.session.0123456789abcdef.tmp"), "half a session");
    Path other = Files.writeString(folder.resolve("chat.session.17.tmp"), "another's");
    try (Model model = TestModels.open("demo-small", options());
        Session session = model.newSession()) {
      session.save(file);
    }
    assertFalse(Files.exists(left));
    assertTrue(Files.exists(other));
    if (Files.getFileStore(folder).supportsFileAttributeView("posix")) {
      assertEquals(
          PosixFilePermissions.fromString("rw-------"), Files.getPosixFilePermissions(file));
    }
  }
}
