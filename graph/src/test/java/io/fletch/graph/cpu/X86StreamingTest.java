package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.MatmulCode;
import io.fletch.graph.cpu.x86.PackedLayout;
import io.fletch.graph.cpu.x86.Streaming;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** How weights are read changes no bit of a product. */
class X86StreamingTest {
  private static final boolean[] NONE = {};

  @ParameterizedTest
  @EnumSource(Isa.class)
  void everyWayGivesTheBitsOfTheScalarProduct(Isa isa) {
    X86TestSets.orSkip(isa);
    Random random = new Random(5);
    for (TensorType type : WeightOracle.TYPES) {
      if (!PackedLayout.supports(type)) {
        continue;
      }
      for (int blocks : new int[] {1, 5}) {
        int in = blocks * type.blockSize();
        PackedLayout layout = new PackedLayout(type, in, isa);
        // With and without groups beside what streams share.
        for (int groups : new int[] {1, 7}) {
          check(isa, type, layout, in, groups * layout.lanes(), random);
        }
      }
    }
  }

  /** A matrix, a row of activations and their product by the scalar kernels. */
  private record Product(
      MemorySegment w, MemorySegment packed, MemorySegment x, int out, int[] expected) {
    static Product random(
        Arena arena, TensorType type, PackedLayout layout, int in, int out, Random random) {
      Kernels.Matmul scalar = ScalarKernels.INSTANCE.matmul(type, in);
      byte[] bytes = WeightOracle.random(type, in * out, random);
      MemorySegment w = arena.allocate(bytes.length, 64).copyFrom(MemorySegment.ofArray(bytes));
      MemorySegment packed = arena.allocate(layout.bytes(out), 64);
      layout.pack(w, 0, out, packed, 0);
      MemorySegment floats = arena.allocate(4L * in, 64);
      for (int i = 0; i < in; i++) {
        Segments.f32(floats, i, (float) random.nextGaussian());
      }
      Kernels.ActivationFormat format = scalar.activation();
      MemorySegment x = arena.allocate(ActivationLayout.bytes(format, in), 64);
      ScalarKernels.INSTANCE.quantize(format, floats, 0, in, x, 0);
      MemorySegment expected = arena.allocate(4L * out, 64);
      scalar.run(w, out, 0, out, x, 0, 1, expected, 0, out);
      return new Product(w, packed, x, out, expected.toArray(ValueLayout.JAVA_INT));
    }

    /** Multiplies and compares the bits. */
    void check(Kernels.Matmul matmul, String what) {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment y = arena.allocate(4L * out, 64);
        y.fill((byte) 0xa5);
        matmul.run(packed, out, 0, out, x, 0, 1, y, 0, out);
        assertArrayEquals(expected, y.toArray(ValueLayout.JAVA_INT), what);
      }
    }
  }

  private static void check(
      Isa isa, TensorType type, PackedLayout layout, int in, int out, Random random) {
    try (Arena arena = Arena.ofConfined()) {
      Product product = Product.random(arena, type, layout, in, out, random);
      Kernels.ActivationFormat format = WeightBlocks.activation(type);
      for (int streams : new int[] {1, 2, 4}) {
        for (boolean half : isa == Isa.AVX512_VNNI ? new boolean[] {false, true} : new boolean[1]) {
          Streaming streaming = new Streaming(streams, half ? 0 : 128, half);
          MemorySegment y = arena.allocate(4L * out, 64);
          MemorySegment code =
              X86Code.function(
                  "streaming test " + isa + " " + type + " " + in + " " + streaming,
                  () ->
                      MatmulCode.emit(
                          layout,
                          isa,
                          streaming,
                          ActivationLayout.bytes(format, in),
                          ActivationLayout.scalesOffset(format, in),
                          ActivationLayout.sumsOffset(format, in),
                          1));
          X86Code.call(
              code,
              product.packed.address(),
              product.x.address(),
              y.address(),
              0,
              out / layout.lanes());
          assertArrayEquals(
              product.expected,
              y.toArray(ValueLayout.JAVA_INT),
              () -> isa + " " + type + " in=" + in + " out=" + out + " " + streaming);
        }
      }
    }
  }

  /** A choice that has settled, for now, on one of its ways. */
  private static StreamingChoice chosen(List<Streaming> ways, int way) {
    StreamingChoice choice = new StreamingChoice("test", ways);
    for (int i = 0; i < ways.size() * StreamingChoice.SAMPLES; i++) {
      int turn = choice.begin(StreamingChoice.MIN_BYTES);
      choice.end(turn, StreamingChoice.MIN_BYTES, choice.way(turn) == way ? 1000 : 2000);
    }
    assertEquals(way, choice.chosen());
    return choice;
  }

  /** Names of functions of a type, an instruction set and a width that read in a certain way. */
  private static Set<String> emitted(Isa isa, TensorType type, int in) {
    String start = type + " " + isa.label() + " in=" + in + " Streaming[";
    return X86Code.names().stream()
        .filter(n -> n.startsWith(start))
        .map(n -> n.substring(n.indexOf("Streaming[")))
        .collect(Collectors.toSet());
  }

  /** Products follow the choice to each way that some CPU may take. */
  @ParameterizedTest
  @EnumSource(Isa.class)
  void productsReadByTheChosenWay(Isa isa) {
    X86TestSets.orSkip(isa);
    Random random = new Random(6);
    for (TensorType type : WeightOracle.TYPES) {
      // A width that nobody else multiplies, so that functions of that name come from here.
      int blocks = 40;
      for (boolean amd : PackedLayout.supports(type) ? new boolean[] {false, true} : NONE) {
        List<Streaming> ways = Streaming.candidates(isa, type, amd);
        for (int way = 0; way < ways.size(); way++) {
          int in = type.blockSize() * blocks++;
          PackedLayout layout = new PackedLayout(type, in, isa);
          try (Arena arena = Arena.ofConfined()) {
            // Groups beside what streams share, and rows that fill no group.
            int out = 7 * layout.lanes() + 3;
            Product product = Product.random(arena, type, layout, in, out, random);
            Kernels.Matmul matmul = new X86Matmul(type, in, isa, false, chosen(ways, way));
            product.check(matmul, isa + " " + type + " in=" + in + " " + ways.get(way));
            assertEquals(Set.of(ways.get(way).toString()), emitted(isa, type, in));
          }
        }
      }
    }
  }

  /** The first long products try every way, and each gives the same bits. */
  @ParameterizedTest
  @EnumSource(Isa.class)
  void longProductsTryAllWays(Isa isa) {
    X86TestSets.orSkip(isa);
    TensorType type = TensorType.Q4_0;
    int in = 39 * 32;
    PackedLayout layout = new PackedLayout(type, in, isa);
    int groups = (int) (StreamingChoice.MIN_BYTES / layout.groupBytes()) + 1;
    List<Streaming> ways = Streaming.candidates(isa, type);
    StreamingChoice choice = new StreamingChoice("test", ways);
    try (Arena arena = Arena.ofConfined()) {
      Product product =
          Product.random(arena, type, layout, in, groups * layout.lanes(), new Random(7));
      Kernels.Matmul matmul = new X86Matmul(type, in, isa, false, choice);
      for (int i = 0; i < ways.size() * StreamingChoice.SAMPLES + 3; i++) {
        product.check(matmul, isa + " product " + i);
      }
      assertEquals(
          ways.stream().map(Streaming::toString).collect(Collectors.toSet()),
          emitted(isa, type, in));
    }
  }

  @Test
  void impossibleWaysAreRefused() {
    assertThrows(IllegalArgumentException.class, () -> new Streaming(3, 0, false));
    assertThrows(IllegalArgumentException.class, () -> new Streaming(1, -1, false));
    PackedLayout layout = new PackedLayout(TensorType.Q8_0, 64, Isa.AVX2);
    assertThrows(
        IllegalArgumentException.class,
        () -> MatmulCode.emit(layout, Isa.AVX2, new Streaming(1, 0, true), 256, 64, 128, 1));
  }
}
