package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.Kernels.Matmul;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Machine code touches nothing outside its operands: every operand ends (or starts) at an
 * inaccessible page, so a byte too far ends the process.
 */
class X86GuardPageTest {
  @ParameterizedTest
  @CsvSource({
    "AVX2,true",
    "AVX2,false",
    "AVX_VNNI,true",
    "AVX_VNNI,false",
    "AVX512_VNNI,true",
    "AVX512_VNNI,false"
  })
  void products(Isa isa, boolean behind) {
    Kernels kernels = X86TestSets.orSkip(isa);
    Random random = new Random(11);
    int run = 0;
    for (TensorType type : WeightOracle.TYPES) {
      for (int rows : new int[] {1, 2, 5, 13, 16}) {
        int in = type.isQuantized() ? 2 * type.blockSize() : 1 + random.nextInt(80);
        int out = 1 + random.nextInt(70);
        try (GuardedMemory memory = new GuardedMemory(behind)) {
          byte[] bytes = WeightOracle.random(type, in * out, random);
          MemorySegment w = memory.allocate(bytes.length).copyFrom(MemorySegment.ofArray(bytes));
          Matmul matmul = kernels.matmul(type, in);
          MemorySegment weight = w;
          if (matmul.packs()) {
            weight = memory.allocate(matmul.packedBytes(out));
            matmul.pack(w, weight, out, 0, out);
          }
          MemorySegment x = activations(kernels, memory, matmul.activation(), in, rows, random);
          MemorySegment y = memory.allocate(4L * rows * out);
          matmul.run(weight, out, 0, out, x, 0, rows, y, 0, out);
          kernels.matmulMapped(type, in).run(w, out, 0, out, x, 0, rows, y, 0, out);
          run++;
        }
      }
    }
    assertTrue(run > 50);
  }

  private static MemorySegment activations(
      Kernels kernels,
      GuardedMemory memory,
      ActivationFormat format,
      int in,
      int rows,
      Random random) {
    long stride = kernels.activationBytes(format, in);
    MemorySegment f = memory.allocate(4L * in);
    for (int i = 0; i < in; i++) {
      Segments.f32(f, i, (float) random.nextGaussian());
    }
    boolean floats = format == ActivationFormat.F32;
    MemorySegment x = memory.allocate(floats ? (rows - 1) * stride + 4L * in : rows * stride);
    for (int r = 0; r < rows; r++) {
      if (floats) {
        MemorySegment.copy(f, 0, x, r * stride, 4L * in);
      } else {
        kernels.quantize(format, f, 0, in, x, r * stride);
      }
    }
    return x;
  }

  @ParameterizedTest
  @CsvSource({
    "AVX2,true",
    "AVX2,false",
    "AVX_VNNI,true",
    "AVX_VNNI,false",
    "AVX512_VNNI,true",
    "AVX512_VNNI,false"
  })
  void attention(Isa isa, boolean behind) {
    Kernels kernels = X86TestSets.orSkip(isa);
    for (KvCache.Type type : KvCache.Type.values()) {
      for (int dim : new int[] {32, 64, 96}) {
        for (int slots : new int[] {1, 4, 31, 37, 64}) {
          try (GuardedMemory memory = new GuardedMemory(behind)) {
            int group = 1 + slots % 5;
            AttentionSpec spec = new AttentionSpec(0, group, 1, dim, dim, 0.1f, 0f, 0);
            MemorySegment q = memory.allocate(4L * group * dim);
            // Keys and values in the order that puts either at the end.
            long bytes = kernels.kvBytes(type, dim) * slots;
            MemorySegment kv = memory.allocate(2 * bytes);
            MemorySegment scratch = memory.allocate(4L * kernels.attentionScratch(spec));
            MemorySegment states = memory.allocate(4L * kernels.attentionState(spec));
            // At the start of a chunk, and across the end of one.
            for (int from : new int[] {0, 60}) {
              AttentionTile tile = new AttentionTile();
              tile.begin(0);
              tile.add(0, from, from + slots, 0);
              long first = -from * kernels.kvBytes(type, dim);
              kernels.attention(spec, type, q, tile, kv, first, first + bytes, scratch, 0, states);
              kernels.attention(spec, type, q, tile, kv, first + bytes, first, scratch, 0, states);
            }
          }
        }
      }
    }
  }
}
