package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch.RowStatistics;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.Kernels.Matmul;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.PackedLayout;
import io.fletch.graph.cpu.x86.Streaming;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.List;
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
      for (int rows = 1; rows < 20; rows++) {
        int blocks = 1 + random.nextInt(3);
        int in = type.isQuantized() ? blocks * type.blockSize() : 1 + random.nextInt(80);
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
    assertTrue(run > 200);
  }

  /** Every way of reading weights, with groups beside those that streams share. */
  @ParameterizedTest
  @CsvSource({
    "AVX2,true",
    "AVX2,false",
    "AVX_VNNI,true",
    "AVX_VNNI,false",
    "AVX512_VNNI,true",
    "AVX512_VNNI,false"
  })
  void waysOfReading(Isa isa, boolean behind) {
    Kernels kernels = X86TestSets.orSkip(isa);
    Random random = new Random(12);
    for (TensorType type : WeightOracle.TYPES) {
      if (!PackedLayout.supports(type)) {
        continue;
      }
      int in = 3 * type.blockSize();
      for (boolean amd : new boolean[] {false, true}) {
        for (Streaming way : Streaming.candidates(isa, type, amd)) {
          try (GuardedMemory memory = new GuardedMemory(behind)) {
            X86Matmul matmul =
                new X86Matmul(
                    type, in, isa, false, new StreamingChoice(way.toString(), List.of(way)));
            int out = (1 + random.nextInt(9)) * isa.lanes() + random.nextInt(isa.lanes());
            MemorySegment weight = memory.allocate(matmul.packedBytes(out));
            MemorySegment x = activations(kernels, memory, matmul.activation(), in, 1, random);
            MemorySegment y = memory.allocate(4L * out);
            matmul.run(weight, out, 0, out, x, 0, 1, y, 0, out);
          }
        }
      }
    }
  }

  /** Packing in parts, columns, low-rank terms, quantization of activations and statistics. */
  @ParameterizedTest
  @CsvSource({
    "AVX2,true",
    "AVX2,false",
    "AVX_VNNI,true",
    "AVX_VNNI,false",
    "AVX512_VNNI,true",
    "AVX512_VNNI,false"
  })
  void otherKernels(Isa isa, boolean behind) {
    Kernels kernels = X86TestSets.orSkip(isa);
    Random random = new Random(13);
    for (TensorType type : WeightOracle.TYPES) {
      if (PackedLayout.supports(type)) {
        try (GuardedMemory memory = new GuardedMemory(behind)) {
          int in = type.blockSize() * (1 + random.nextInt(3));
          Matmul matmul = kernels.matmul(type, in);
          int group = matmul.rowGranule();
          int out = 2 * group + random.nextInt(group);
          MemorySegment rows = memory.allocate(type.bytes((long) out * in));
          MemorySegment packed = memory.allocate(matmul.packedBytes(out));
          matmul.pack(rows, packed, out, 0, group);
          matmul.pack(rows, packed, out, group, out);
        }
      }
    }
    for (TensorType type : new TensorType[] {TensorType.F32, TensorType.F16, TensorType.BF16}) {
      for (int rows = 1; rows < 9; rows++) {
        columns(kernels, type, rows, behind, random);
      }
      for (int n = 1; n < 70; n++) {
        try (GuardedMemory memory = new GuardedMemory(behind)) {
          int rank = 1 + random.nextInt(9);
          int row = n + 15 & -16;
          MemorySegment b = memory.allocate(type.bytes((long) rank * row));
          MemorySegment h = memory.allocate(4L * rank);
          MemorySegment y = memory.allocate(4L * n);
          LowRankFactor factor = new LowRankFactor(type, b, type.bytes(row), rank);
          kernels.accumulate(factor, 0, n, h, 0, y, 0);
        }
      }
    }
    for (ActivationFormat format :
        new ActivationFormat[] {ActivationFormat.Q8_BLOCK32, ActivationFormat.Q8_BLOCK256}) {
      for (int blocks = 1; blocks < 10; blocks++) {
        try (GuardedMemory memory = new GuardedMemory(behind)) {
          int n = blocks * ActivationLayout.blockSize(format);
          activations(kernels, memory, format, n, 1 + blocks % 3, random);
        }
      }
    }
    for (int n = 1; n < 300; n++) {
      try (GuardedMemory memory = new GuardedMemory(behind)) {
        RowStatistics into = new RowStatistics();
        assertTrue(kernels.statistics(memory.allocate(4L * n), 0, n, into));
      }
    }
  }

  private static void columns(
      Kernels kernels, TensorType type, int rows, boolean behind, Random random) {
    try (GuardedMemory memory = new GuardedMemory(behind)) {
      int in = 1 + random.nextInt(70);
      int out = 1 + random.nextInt(600);
      Matmul matmul = kernels.columnsMatmul(type, in);
      MemorySegment w = memory.allocate(type.bytes((long) out * in));
      MemorySegment packed = memory.allocate(matmul.packedBytes(out));
      matmul.pack(w, packed, out, 0, out);
      MemorySegment x = activations(kernels, memory, ActivationFormat.F32, in, rows, random);
      for (int i = 0; i < in; i += 2) {
        Segments.f32(x, i, 0);
      }
      matmul.run(packed, out, 0, out, x, 0, rows, memory.allocate(4L * rows * out), 0, out);
    }
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
          for (int rows : new int[] {1, 6, AttentionTile.ROWS}) {
            attention(kernels, type, dim, slots, rows, behind);
          }
        }
      }
    }
  }

  private static void attention(
      Kernels kernels, KvCache.Type type, int dim, int slots, int rows, boolean behind) {
    try (GuardedMemory memory = new GuardedMemory(behind)) {
      int group = 1 + slots % 5;
      AttentionSpec spec = new AttentionSpec(0, group, 1, dim, dim, 0.1f, 0f, 0);
      MemorySegment q = memory.allocate(4L * rows * group * dim);
      // Keys and values in the order that puts either at the end.
      long bytes = kernels.kvBytes(type, dim) * slots;
      MemorySegment kv = memory.allocate(2 * bytes);
      MemorySegment scratch = memory.allocate(4L * kernels.attentionScratch(spec));
      int stateFloats = kernels.attentionState(spec);
      MemorySegment states = memory.allocate(4L * rows * stateFloats);
      // At the start of a chunk, and across the end of one.
      for (int from : new int[] {0, 60}) {
        AttentionTile tile = new AttentionTile();
        tile.begin(0, q, states);
        for (int r = 0; r < rows; r++) {
          int to = from + Math.max(0, slots + r + 1 - rows);
          tile.add((long) r * group * dim, from, to, (long) r * stateFloats);
        }
        long first = -from * kernels.kvBytes(type, dim);
        KvRun run = new KvRun();
        kernels.attention(spec, tile, run.set(type, kv, first, first + bytes), scratch);
        kernels.attention(spec, tile, run.set(type, kv, first + bytes, first), scratch);
      }
      MemorySegment two = memory.allocate(8L * stateFloats);
      MemorySegment out = memory.allocate(4L * group * dim);
      kernels.attentionMerge(spec, two, 0, stateFloats);
      kernels.attentionMerge(spec, two, stateFloats, 0);
      kernels.attentionFinish(spec, two, stateFloats, out, 0);
    }
  }
}
