package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.MatmulCode;
import io.fletch.graph.cpu.x86.PackedLayout;
import io.fletch.graph.cpu.x86.Streaming;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** How weights are read changes no bit of a product. */
class X86StreamingTest {
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

  private static void check(
      Isa isa, TensorType type, PackedLayout layout, int in, int out, Random random) {
    try (Arena arena = Arena.ofConfined()) {
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
      long stride = ActivationLayout.bytes(format, in);
      MemorySegment x = arena.allocate(stride, 64);
      ScalarKernels.INSTANCE.quantize(format, floats, 0, in, x, 0);
      MemorySegment expected = arena.allocate(4L * out, 64);
      scalar.run(w, out, 0, out, x, 0, 1, expected, 0, out);
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
                          stride,
                          ActivationLayout.scalesOffset(format, in),
                          ActivationLayout.sumsOffset(format, in),
                          1));
          X86Code.call(code, packed.address(), x.address(), y.address(), 0, out / layout.lanes());
          assertArrayEquals(
              expected.toArray(ValueLayout.JAVA_INT),
              y.toArray(ValueLayout.JAVA_INT),
              () -> isa + " " + type + " in=" + in + " out=" + out + " " + streaming);
        }
      }
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
