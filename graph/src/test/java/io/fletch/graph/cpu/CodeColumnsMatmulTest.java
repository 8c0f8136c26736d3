package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.graph.Activation;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Quantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Optional;
import java.util.SplittableRandom;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.lifecycle.AddLifecycleHook;
import org.junit.jupiter.api.Test;

/** Products with quantized weights that leave out columns whose activation is zero. */
@NeedsIsa(Isa.AVX512_VNNI)
@AddLifecycleHook(NeedsIsa.Hook.class)
class CodeColumnsMatmulTest {
  private static final Isa ISA = Isa.AVX512_VNNI;

  private static boolean runs() {
    return ISA.supportedBy(CpuFeatures.host()) && ExecutableMemory.refusal().isEmpty();
  }

  /** What may be special about operands. */
  private enum Special {
    NOTHING,
    WEIGHT_SCALES,
    ACTIVATIONS,
    TINY
  }

  @Property(tries = 50)
  void hasTheBitsOfOtherProducts(
      @ForAll long seed,
      @ForAll boolean nibbles,
      @ForAll @IntRange(min = 1, max = 600) int out,
      @ForAll @IntRange(min = 1, max = 12) int blocks,
      @ForAll @IntRange(min = 1, max = 26) int rows,
      @ForAll @IntRange(min = 0, max = 5) int fifths,
      @ForAll Special special) {
    assumeTrue(runs());
    SplittableRandom random = new SplittableRandom(seed);
    TensorType type = nibbles ? TensorType.Q4_0 : TensorType.Q8_0;
    int in = 32 * blocks;
    try (TensorStore store = TensorStore.create();
        GuardedMemory memory = new GuardedMemory(true)) {
      Tensor w = weights(type, out, in, special, random, store);
      CodeColumnsMatmul m = new CodeColumnsMatmul(w, ISA);
      MemorySegment packed = memory.allocate(m.packedBytes(out));
      packed.fill((byte) 0x55);
      long middle = Math.min(out, CodeColumnsMatmul.PANEL);
      m.pack(w.segment(), packed, out, middle, out);
      m.pack(w.segment(), packed, out, 0, middle);
      ActivationFormat format = m.activation();
      long stride = ActivationLayout.bytes(format, in);
      MemorySegment x = memory.allocate(rows * stride);
      int zeros = 0;
      MemorySegment row = store.allocate("row", TensorType.F32, in).segment();
      for (int r = 0; r < rows; r++) {
        float size = special == Special.TINY ? 0x1p-119f : 1;
        for (int i = 0; i < in; i++) {
          boolean isZero = random.nextInt(5) >= fifths || i / 32 % 3 == r % 3;
          float v = isZero ? 0 : size * (float) random.nextDouble(-1, 1);
          boolean strange = special == Special.ACTIVATIONS && random.nextInt(4 * in) == 0;
          row.setAtIndex(ValueLayout.JAVA_FLOAT, i, strange ? Float.NEGATIVE_INFINITY : v);
        }
        KernelSets.scalar().quantize(format, row, 0, in, x, r * stride);
      }
      for (int i = 0; i < in; i++) {
        zeros += x.get(ValueLayout.JAVA_BYTE, i) == 0 ? 1 : 0;
      }
      long yStride = out + 3L;
      MemorySegment y = memory.allocate(4 * ((rows - 1) * yStride + out));
      MemorySegment expected = store.allocate("e", TensorType.I8, y.byteSize()).segment();
      y.fill((byte) 0x7a);
      expected.fill((byte) 0x7a);
      m.run(packed, out, 0, middle, x, 0, rows, y, 0, yStride);
      m.run(packed, out, middle, out, x, 0, rows, y, 0, yStride);
      KernelSets.scalar()
          .matmul(type, in)
          .run(w.segment(), out, 0, out, x, 0, rows, expected, 0, yStride);
      for (long i = 0; i < y.byteSize() / 4; i++) {
        float e = expected.getAtIndex(ValueLayout.JAVA_FLOAT, i);
        assertEquals(e, y.getAtIndex(ValueLayout.JAVA_FLOAT, i), "float " + i);
      }
      if (rows == 1 && special == Special.NOTHING) {
        // Whole blocks of zeros spare their scales, too.
        long columns = (long) zeros * (nibbles ? 128 : 256) * Math.ceilDiv(out, 256);
        assertTrue(m.skippedBytes() >= columns, "skipped " + m.skippedBytes());
      }
    }
  }

  /** The bytes are what the layout says, from and to exactly the memory there is. */
  @Property(tries = 40)
  void packsAsTheLayoutSays(
      @ForAll long seed,
      @ForAll boolean nibbles,
      @ForAll @IntRange(min = 1, max = 600) int out,
      @ForAll @IntRange(min = 1, max = 9) int blocks,
      @ForAll Special special) {
    assumeTrue(runs());
    TensorType type = nibbles ? TensorType.Q4_0 : TensorType.Q8_0;
    int in = 32 * blocks;
    try (TensorStore store = TensorStore.create();
        GuardedMemory memory = new GuardedMemory(seed % 2 == 0)) {
      Tensor w = weights(type, out, in, special, new SplittableRandom(seed), store);
      CodeColumnsMatmul m = new CodeColumnsMatmul(w, ISA);
      MemorySegment source = memory.allocate(w.bytes()).copyFrom(w.segment());
      MemorySegment packed = memory.allocate(m.packedBytes(out)).fill((byte) 0x55);
      long middle = Math.min(out, CodeColumnsMatmul.PANEL);
      m.pack(source, packed, out, middle, out);
      m.pack(source, packed, out, 0, middle);
      MemorySegment expected = MemorySegment.ofArray(new byte[(int) m.packedBytes(out)]);
      for (int o = 0; o < out; o++) {
        expect(type, w.segment().asSlice(o * w.rowBytes(), w.rowBytes()), o, blocks, expected);
      }
      assertArrayEquals(
          expected.toArray(ValueLayout.JAVA_BYTE), packed.toArray(ValueLayout.JAVA_BYTE));
    }
  }

  /** Puts a row to its place, in the words of {@code CodeColumnsCode}. */
  private static void expect(
      TensorType type, MemorySegment row, int output, int blocks, MemorySegment packed) {
    boolean nibbles = type == TensorType.Q4_0;
    int o = output % 256;
    int column = nibbles ? 128 : 256;
    int block = 512 + 32 * column;
    long panel = output / 256 * (64L + (long) blocks * block);
    for (int b = 0; b < blocks; b++) {
      long from = b * type.bytes(32);
      long to = panel + (long) b * block;
      short scale = row.get(ValueLayout.JAVA_SHORT_UNALIGNED, from);
      packed.set(ValueLayout.JAVA_SHORT_UNALIGNED, to + 2L * o, scale);
      if (!Float.isFinite(Float.float16ToFloat(scale))) {
        packed.set(ValueLayout.JAVA_BYTE, panel + (long) blocks * block, (byte) 1);
      }
      // Byte 16 l + 4 k + m of a line has output 16 k + 4 l + m of 64.
      int byteOfLine = 16 * (o % 16 / 4) + 4 * (o % 64 / 16) + o % 4;
      int line = nibbles ? o / 128 : o / 64;
      for (int j = 0; j < 32; j++) {
        long at = to + 512 + (long) j * column + 64 * line + byteOfLine;
        int code = row.get(ValueLayout.JAVA_BYTE, from + 2 + (nibbles ? j % 16 : j));
        if (nibbles) {
          int nibble = (j < 16 ? code : code >> 4) & 15;
          int other = packed.get(ValueLayout.JAVA_BYTE, at);
          code = other | nibble << (o % 128 < 64 ? 0 : 4);
        } else {
          code += 128;
        }
        packed.set(ValueLayout.JAVA_BYTE, at, (byte) code);
      }
    }
  }

  private static Tensor weights(
      TensorType type,
      int out,
      int in,
      Special special,
      SplittableRandom random,
      TensorStore store) {
    float[] values = new float[out * in];
    for (int i = 0; i < values.length; i++) {
      values[i] = (special == Special.TINY ? 0x1p-20f : 1) * (float) random.nextDouble(-1, 1);
    }
    Tensor w = Quantizer.quantize(store.floats("w", values, out, in), type, store);
    long blockBytes = type.bytes(32);
    for (long b = 0; special == Special.WEIGHT_SCALES && b < w.bytes() / blockBytes; b++) {
      if (random.nextInt(2 * out) == 0) {
        short scale = Float.floatToFloat16(random.nextBoolean() ? Float.NaN : 1e9f);
        w.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, b * blockBytes, scale);
      }
    }
    return w;
  }

  /** A product behind a ReLU in a whole graph: packed weights skip, mapped ones do not. */
  @Test
  void graphsSkipWhatIsZero() {
    assumeTrue(runs());
    SplittableRandom random = new SplittableRandom(4);
    try (TensorStore store = TensorStore.create()) {
      Graph graph = reluGraph(random, store);
      float[] packed = new float[64];
      float[] mapped = new float[64];
      long skipped = run(graph, CpuBackend.Layout.PACKED, packed);
      assertTrue(skipped > 0, "nothing skipped");
      assertEquals(0, run(graph, CpuBackend.Layout.MAPPED, mapped));
      for (int i = 0; i < packed.length; i++) {
        assertEquals(mapped[i], packed[i], "logit " + i);
      }
    }
  }

  private static Graph reluGraph(SplittableRandom random, TensorStore store) {
    Graph.Builder g = Graph.builder("relu");
    Tensor up = weights(TensorType.Q4_0, 320, 64, Special.NOTHING, random, store);
    Tensor down = weights(TensorType.Q4_0, 64, 320, Special.NOTHING, random, store);
    Tensor table = weights(TensorType.Q4_0, 64, 64, Special.NOTHING, random, store);
    Value h = g.embedding("h", table, 1);
    Value u = g.linear("up", h, LinearOp.dense(up), Optional.empty(), Optional.empty());
    Value a = g.activate("act", Activation.RELU, Optional.empty(), u, Optional.empty());
    Value d = g.linear("down", a, LinearOp.dense(down), Optional.empty(), Optional.empty());
    Value last = g.selectRows("last", d);
    return g.build(
        g.linear("logits", last, LinearOp.dense(table), Optional.empty(), Optional.empty()));
  }

  private static long run(Graph graph, CpuBackend.Layout layout, float[] logits) {
    CpuBackend.Options options =
        CpuBackend.Options.defaults()
            .withLayout(layout)
            .withThreads(2)
            .withKernels(KernelSets.machineCode().orElseThrow());
    try (Executable e = new CpuBackend(options).compile(graph, 4);
        KvCache kv = e.newKvCache(4, KvCache.Type.F32);
        Batch b = e.newBatch(1, 1)) {
      boolean columns =
          e.plans().getFirst().steps().stream()
              .map(Plan.Step::kernel)
              .anyMatch(k -> k.contains("q4_0 columns x256"));
      assertEquals(layout == CpuBackend.Layout.PACKED, columns);
      b.append(kv, new int[] {5}, 0, 1);
      b.wantLogits(0);
      e.forward(b);
      b.logits(0, logits);
      return b.skippedBytes();
    }
  }

  @Test
  void onlyForTheMatrixItIsOf() {
    assumeTrue(runs());
    try (TensorStore store = TensorStore.create()) {
      Tensor w = weights(TensorType.Q8_0, 256, 32, Special.NOTHING, new SplittableRandom(1), store);
      CodeColumnsMatmul m = new CodeColumnsMatmul(w, ISA);
      assertEquals(256, m.rowGranule());
      assertTrue(m.packs());
      MemorySegment none = MemorySegment.NULL;
      for (long[] range : List.of(new long[] {512, 0, 256}, new long[] {256, 16, 256})) {
        assertThrows(
            IllegalArgumentException.class,
            () -> m.run(none, range[0], range[1], range[2], none, 0, 1, none, 0, 0));
      }
      Tensor other =
          weights(TensorType.Q5_0, 32, 32, Special.NOTHING, new SplittableRandom(1), store);
      assertThrows(IllegalArgumentException.class, () -> new CodeColumnsMatmul(other, ISA));
      assertTrue(KernelSets.scalar().codeColumnsMatmul(w).isEmpty());
    }
  }
}
