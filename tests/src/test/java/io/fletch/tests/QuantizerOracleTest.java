package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import de.kherud.llama.LlamaModel;
import de.kherud.llama.args.LogFormat;
import io.fletch.quant.Quantizer;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Byte equality with the quantizers inside the library of {@code de.kherud:llama}, called through
 * FFM, with and without importance (specs weights 6.5). Skipped where the library does not load.
 */
class QuantizerOracleTest {
  private static final int COLUMNS = 512;
  private static final int ROWS = 120;

  private static MethodHandle quantizeChunk;

  @BeforeAll
  static void oracleLoads() {
    try {
      LlamaModel.setLogger(LogFormat.TEXT, (level, message) -> {});
      Path library = loadedLibrary();
      MemorySegment function =
          SymbolLookup.libraryLookup(library, Arena.global()).findOrThrow("ggml_quantize_chunk");
      quantizeChunk =
          Linker.nativeLinker()
              .downcallHandle(
                  function,
                  FunctionDescriptor.of(
                      ValueLayout.JAVA_LONG,
                      ValueLayout.JAVA_INT,
                      ValueLayout.ADDRESS,
                      ValueLayout.ADDRESS,
                      ValueLayout.JAVA_LONG,
                      ValueLayout.JAVA_LONG,
                      ValueLayout.JAVA_LONG,
                      ValueLayout.ADDRESS));
    } catch (Throwable e) {
      System.out.println(
          "QuantizerOracleTest skipped: the library of de.kherud:llama does not load here: " + e);
      assumeTrue(false, () -> "the library of de.kherud:llama does not load here: " + e);
    }
  }

  /** The peer extracts its library to a folder of its own choice; the kernel knows where. */
  private static Path loadedLibrary() throws java.io.IOException {
    try (Stream<String> maps = Files.lines(Path.of("/proc/self/maps"))) {
      return maps.filter(line -> line.contains("jllama"))
          .map(line -> Path.of(line.substring(line.indexOf('/'))))
          .findFirst()
          .orElseThrow();
    }
  }

  static Stream<TensorType> types() {
    // The peer is older than MXFP4, which ignores importance anyway.
    return Arrays.stream(TensorType.values()).filter(t -> t.isQuantized() && t != TensorType.MXFP4);
  }

  @ParameterizedTest
  @MethodSource("types")
  void sameBytesAsThePeer(TensorType type) throws Throwable {
    check(type, null);
  }

  @ParameterizedTest
  @MethodSource("types")
  void sameBytesAsThePeerWithImportance(TensorType type) throws Throwable {
    SplittableRandom random = new SplittableRandom(7);
    float[] importance = new float[COLUMNS];
    for (int i = 0; i < COLUMNS; i++) {
      float v = bell(random);
      importance[i] = v * v * v * v + 0.001f;
    }
    check(type, importance);
  }

  private static void check(TensorType type, float[] importance) throws Throwable {
    float[] x = values();
    byte[] ours = new byte[(int) type.bytes(x.length)];
    long rowBytes = type.bytes(COLUMNS);
    for (int r = 0; r < ROWS; r++) {
      Quantizer.quantize(
          type, x, r * COLUMNS, COLUMNS, importance, MemorySegment.ofArray(ours), r * rowBytes);
    }
    byte[] theirs = new byte[ours.length];
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment src = arena.allocateFrom(ValueLayout.JAVA_FLOAT, x);
      MemorySegment dst = arena.allocate(theirs.length, 64);
      MemorySegment weights =
          importance == null
              ? MemorySegment.NULL
              : arena.allocateFrom(ValueLayout.JAVA_FLOAT, importance);
      long written =
          (long)
              quantizeChunk.invokeExact(
                  type.ggufId(), src, dst, 0L, (long) ROWS, (long) COLUMNS, weights);
      assertEquals(theirs.length, written);
      MemorySegment.copy(dst, ValueLayout.JAVA_BYTE, 0, theirs, 0, theirs.length);
    }
    for (int at = 0; at < ours.length; at += type.blockBytes()) {
      int block = at;
      assertEquals(
          HexFormat.of().formatHex(theirs, at, at + type.blockBytes()),
          HexFormat.of().formatHex(ours, at, at + type.blockBytes()),
          () -> "block " + block / type.blockBytes());
    }
  }

  /** Rows of eight kinds. */
  private static float[] values() {
    SplittableRandom random = new SplittableRandom(42);
    float[] x = new float[ROWS * COLUMNS];
    for (int i = 0; i < x.length; i++) {
      float v = bell(random);
      x[i] =
          switch (i / COLUMNS % 8) {
            case 0, 1 -> v * 0.02f;
            case 2 -> v * v * v * v * v;
            case 3 -> random.nextInt(10) < 7 ? 0 : v;
            case 4 -> Math.abs(v);
            case 5 -> v * (i % 64 == 0 ? 30 : 0.1f);
            case 6 -> -Math.abs(v);
            default -> (random.nextInt(16) - 8) * 0.125f;
          };
    }
    return x;
  }

  private static float bell(SplittableRandom random) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
      sum += random.nextInt(1 << 20) * 0x1p-20f;
    }
    return (sum - 2) * 1.75f;
  }
}
