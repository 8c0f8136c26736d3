package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.SyntheticModel;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.time.Instant;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Compiled modules on disk: used when whole, made anew when not, never a reason to fail. */
class ModuleCacheTest {
  private static final SyntheticModel.Shape TINY =
      new SyntheticModel.Shape(
          "tiny", "llama", 1, 32, 32, 1, 1, 32, 1024, 64, 10000f, false, true, false);

  @TempDir static Path models;

  private static Path model;
  private static List<Integer> expected;

  @TempDir Path folder;

  private SoftGpu gpu;

  @BeforeAll
  static void write() {
    SoftGpu.reset();
    model = models.resolve("tiny.gguf");
    SyntheticModel.write(model, TINY, SyntheticModel.Mix.Q8_0, 7);
    expected = answer(ModelOptions.PackCache.off());
  }

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset();
    gpu.trace();
  }

  private static List<Integer> answer(ModelOptions.PackCache cache) {
    ModelOptions options =
        ModelOptions.defaults()
            .withBackend(ModelOptions.Backend.GPU)
            .withContextLength(16)
            .withPrefillChunk(3)
            .withPackCache(cache);
    try (Model m = Model.open(model, options);
        Session session = m.newSession();
        Generation generation =
            session.generate(
                new int[] {300, 301, 302},
                GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(2))) {
      return generation.result().ids();
    }
  }

  private List<Integer> answer() {
    return answer(ModelOptions.PackCache.in(folder));
  }

  private long count(String call) {
    return gpu.traced().stream().filter(call::equals).count();
  }

  private List<Path> files() throws IOException {
    try (Stream<Path> all = Files.list(folder)) {
      return all.sorted().toList();
    }
  }

  @Test
  void theSecondStartCompilesNothing() throws IOException {
    assertEquals(expected, answer());
    List<Path> made = files();
    // One module for the chunk of the prompt, one for a token.
    assertEquals(2, made.size(), made.toString());
    assertEquals(2, count("cuLinkComplete"));
    assertEquals(expected, answer());
    assertEquals(2, count("cuLinkComplete"));
    assertEquals(4, count("cuModuleLoadDataEx"));
    assertEquals(made, files());
    assertEquals(0, gpu.liveObjects());
  }

  @Test
  void nothingIsWrittenWhenOffOrSmall() throws IOException {
    answer(ModelOptions.PackCache.off());
    // The default leaves small models alone.
    answer(ModelOptions.PackCache.on());
    assertEquals(0, count("cuLinkCreate_v2"));
    assertEquals(List.of(), files());
  }

  @Test
  void damagedFilesAreMadeAnew() throws IOException {
    answer();
    List<Path> made = files();
    byte[] whole = Files.readAllBytes(made.getFirst());
    byte[] flipped = whole.clone();
    flipped[flipped.length - 7] ^= 1;
    byte[] newer = whole.clone();
    newer[11] = 2;
    byte[] longer = Arrays.copyOf(whole, whole.length + 1);
    byte[][] broken = {
      new byte[0],
      new byte[56],
      Arrays.copyOf(whole, whole.length / 2),
      Arrays.copyOf(whole, 57),
      flipped,
      newer,
      longer
    };
    for (int i = 0; i < broken.length; i++) {
      Files.write(made.getFirst(), broken[i]);
      long before = count("cuLinkComplete");
      assertEquals(expected, answer(), "damage " + i);
      assertEquals(1, count("cuLinkComplete") - before, "damage " + i);
      assertArrayEquals(whole, Files.readAllBytes(made.getFirst()), "damage " + i);
    }
    assertEquals(made, files());
  }

  /** What the driver no longer takes, though it is whole. */
  @Test
  void refusedMachineCodeIsCompiledAgain() throws IOException {
    answer();
    long load = gpu.traced().indexOf("cuModuleLoadDataEx");
    for (int code : new int[] {209, 999}) {
      gpu = SoftGpu.reset();
      gpu.trace();
      // The linker's calls are missing now, but the place of the first load is not after them.
      gpu.failCall(load + 1 - 4, code);
      assertEquals(expected, answer());
      assertEquals("cuModuleLoadDataEx", gpu.failedCall());
      assertEquals(1, count("cuLinkComplete"));
      assertEquals(0, gpu.liveObjects());
    }
  }

  @Test
  void anotherDeviceHasFilesOfItsOwn() throws IOException {
    answer();
    gpu = SoftGpu.reset(80, 1L << 30);
    gpu.trace();
    assertEquals(expected, answer());
    assertEquals(2, count("cuLinkComplete"));
    gpu = SoftGpu.reset().pretend(13_010, 1);
    gpu.trace();
    assertEquals(expected, answer());
    assertEquals(2, count("cuLinkComplete"));
    assertEquals(6, files().size());
  }

  @Test
  void theCompilersFailureIsNoReasonToFail() throws IOException {
    answer();
    for (Path p : files()) {
      Files.delete(p);
    }
    List<String> calls = gpu.traced();
    for (String name :
        List.of("cuLinkCreate_v2", "cuLinkAddData_v2", "cuLinkComplete", "cuLinkDestroy")) {
      gpu = SoftGpu.reset();
      gpu.failCall(1 + calls.indexOf(name), 999);
      assertEquals(expected, answer(), name);
      assertEquals(name, gpu.failedCall());
      assertEquals(0, gpu.liveObjects(), name);
      assertEquals(0, gpu.liveBytes(), name);
      for (Path p : files()) {
        Files.delete(p);
      }
    }
  }

  @Test
  void aFolderThatIsNoneIsNoReasonToFail() throws IOException {
    Path file = Files.createFile(folder.resolve("file"));
    assertEquals(expected, answer(ModelOptions.PackCache.in(file)));
    assertEquals(expected, answer(ModelOptions.PackCache.in(file.resolve("below"))));
    assertEquals(List.of(file), files());
  }

  @Test
  void oldFilesGo() throws IOException {
    answer();
    Instant longAgo = Instant.now().minusSeconds(1_000_000);
    Path left = Files.createFile(folder.resolve("module123.new"));
    Path others = Files.createFile(folder.resolve("notes.txt"));
    Files.setLastModifiedTime(left, FileTime.from(longAgo));
    Files.setLastModifiedTime(others, FileTime.from(longAgo));
    for (int i = 0; i < 300; i++) {
      Path p = Files.createFile(folder.resolve("old" + i + ".cubin"));
      Files.setLastModifiedTime(p, FileTime.from(longAgo.plusSeconds(i)));
    }
    gpu = SoftGpu.reset(80, 1L << 30);
    assertEquals(expected, answer());
    List<Path> kept = files();
    assertEquals(256 + 1, kept.size());
    assertFalse(kept.contains(left));
    assertTrue(kept.contains(others));
    assertTrue(kept.contains(folder.resolve("old299.cubin")));
    assertFalse(kept.contains(folder.resolve("old40.cubin")));
  }
}
