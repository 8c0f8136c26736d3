package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.management.ThreadMXBean;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Objects;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.LongRange;
import net.jqwik.api.lifecycle.AfterContainer;
import net.jqwik.api.lifecycle.BeforeContainer;

/**
 * Damaged files (specs weights section 6, items 12 and 13): whatever was changed, the result is a
 * {@link WeightFileException} or a file that can be used, in memory bounded by the file's size.
 */
class MutationPropertyTest {
  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();
  private static final Path NAME = Path.of("mutant");
  private static final long[] NASTY = {
    0,
    1,
    -1,
    2,
    3,
    31,
    33,
    255,
    256,
    65535,
    1 << 20,
    1L << 31,
    (1L << 31) - 1,
    1L << 32,
    1L << 62,
    Long.MAX_VALUE,
    Long.MIN_VALUE,
    -32
  };

  private static Path folder;
  private static byte[] gguf;
  private static byte[] safetensors;

  @BeforeContainer
  static void makeSamples() throws IOException {
    folder = Files.createTempDirectory("mutants");
    gguf = GgufBytes.sample(folder);
    Path path = folder.resolve("a.safetensors");
    try (TensorStore store = TensorStore.create()) {
      new SafetensorsWriter()
          .put("format", "pt")
          .add(store.allocate("a", TensorType.BF16, 3, 5))
          .add(store.floats("b", new float[] {1, 2, 3, 4, 5, 6}, 3, 2))
          .add(store.allocate("c", TensorType.I64))
          .add(store.allocate("d", TensorType.I8, 0, 2))
          .write(path);
    }
    safetensors = Files.readAllBytes(path);
    // The first use of a class allocates what no later one does.
    useSafetensors(MemorySegment.ofArray(safetensors));
    useGguf(MemorySegment.ofArray(gguf));
  }

  @AfterContainer
  static void removeSamples() throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      for (Path file : files.toList()) {
        Files.delete(file);
      }
    }
    Files.delete(folder);
  }

  private static byte[] mutate(byte[] original, SplittableRandom random) {
    byte[] bytes = original.clone();
    int count = 1 + random.nextInt(3);
    for (int i = 0; i < count && bytes.length > 16; i++) {
      int at = random.nextInt(bytes.length - 8);
      switch (random.nextInt(7)) {
        case 0 -> bytes[at] ^= (byte) (1 << random.nextInt(8));
        case 1 -> bytes[at] = (byte) random.nextInt(256);
        case 2 -> put(bytes, at, 4, NASTY[random.nextInt(NASTY.length)]);
        case 3 -> put(bytes, at, 8, NASTY[random.nextInt(NASTY.length)]);
        case 4 -> bytes = Arrays.copyOf(bytes, at);
        case 5 -> {
          int to = random.nextInt(bytes.length - 8);
          int length = random.nextInt(Math.min(64, bytes.length - Math.max(at, to)));
          System.arraycopy(bytes, at, bytes, to, length);
        }
        default -> {
          int cut = Math.min(random.nextInt(16), bytes.length - at);
          byte[] shorter = Arrays.copyOf(bytes, bytes.length - cut);
          System.arraycopy(bytes, at + cut, shorter, at, bytes.length - at - cut);
          bytes = shorter;
        }
      }
    }
    return bytes;
  }

  private static void put(byte[] bytes, int at, int size, long value) {
    for (int i = 0; i < size; i++) {
      bytes[at + i] = (byte) (value >> 8 * i);
    }
  }

  private interface Use {
    void of(MemorySegment file);
  }

  /** Whether the file was usable. Any other exception than the documented one passes through. */
  private static boolean isUsable(byte[] bytes, Use use) {
    MemorySegment segment = MemorySegment.ofArray(bytes);
    long before = THREADS.getCurrentThreadAllocatedBytes();
    boolean usable;
    try {
      use.of(segment);
      usable = true;
    } catch (WeightFileException e) {
      usable = false;
    }
    long allocated = THREADS.getCurrentThreadAllocatedBytes() - before;
    // The sample has arrays of one-byte elements, which as boxed values take 20 times that.
    assertTrue(allocated < 1_000_000 + 100L * bytes.length, "allocated " + allocated);
    return usable;
  }

  private static void useGguf(MemorySegment file) {
    GgufReader.Header header = GgufReader.read(NAME, file);
    assertEquals(header.metadata().entries().toString(), header.metadata().entries().toString());
    for (String key : header.metadata().index().keySet()) {
      Objects.requireNonNull(header.metadata().value(key));
    }
    for (GgufReader.Info t : header.tensors()) {
      file.asSlice(t.start(), t.bytes());
    }
  }

  private static void useSafetensors(MemorySegment file) {
    for (SafetensorsReader.Info t : SafetensorsReader.read(NAME, file).tensors()) {
      file.asSlice(t.start(), t.bytes());
    }
  }

  @Property(tries = 30, seed = "1")
  void mutatedGguf(@ForAll @LongRange(min = 0, max = 1 << 30) long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    int usable = 0;
    for (int i = 0; i < 300; i++) {
      usable += isUsable(mutate(gguf, random), MutationPropertyTest::useGguf) ? 1 : 0;
    }
    assertTrue(usable > 0 && usable < 300, "usable " + usable);
  }

  @Property(tries = 30, seed = "2")
  void mutatedSafetensors(@ForAll @LongRange(min = 0, max = 1 << 30) long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    int usable = 0;
    for (int i = 0; i < 300; i++) {
      usable += isUsable(mutate(safetensors, random), MutationPropertyTest::useSafetensors) ? 1 : 0;
    }
    assertTrue(usable > 0 && usable < 300, "usable " + usable);
  }

  /** The whole way through mapping and Arrow, whose allocator reports what is not released. */
  @Property(tries = 100, seed = "3")
  void mutatedFilesOnDisk(@ForAll @LongRange(min = 0, max = 1 << 30) long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    boolean first = random.nextBoolean();
    Path path = folder.resolve(first ? "m.gguf" : "m.safetensors");
    try {
      Files.write(path, mutate(first ? gguf : safetensors, random));
      try (WeightFile file = WeightFile.open(path)) {
        for (Tensor t : file.tensors().values()) {
          for (long i = 0; i < t.elements(); i++) {
            Dequantizer.element(t, i);
          }
        }
      } catch (WeightFileException e) {
        assertTrue(e.getMessage().startsWith(path.toString()), e.getMessage());
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  @Example
  void truncatedFiles() {
    int dataEnd =
        GgufReader.read(NAME, MemorySegment.ofArray(gguf)).tensors().stream()
            .mapToInt(t -> (int) (t.start() + t.bytes()))
            .max()
            .orElseThrow();
    for (int length = 0; length < dataEnd; length++) {
      byte[] prefix = Arrays.copyOf(gguf, length);
      assertThrows(
          WeightFileException.class, () -> useGguf(MemorySegment.ofArray(prefix)), "" + length);
    }
    for (int length = 0; length < safetensors.length; length++) {
      byte[] prefix = Arrays.copyOf(safetensors, length);
      assertThrows(
          WeightFileException.class,
          () -> useSafetensors(MemorySegment.ofArray(prefix)),
          "" + length);
    }
    assertTrue(isUsable(gguf, MutationPropertyTest::useGguf));
    assertTrue(isUsable(safetensors, MutationPropertyTest::useSafetensors));
  }
}
