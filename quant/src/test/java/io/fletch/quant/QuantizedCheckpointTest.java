package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Checkpoints of other quantizers (specs weights 2.5, 3.4 and property 21). Each test makes codes,
 * scales and zero points, packs them as the format says with arithmetic of its own, and expects
 * {@code (code - zero) * scale} exactly.
 */
class QuantizedCheckpointTest {
  @TempDir Path folder;

  private final SplittableRandom random = new SplittableRandom(7);
  private final StringBuilder header = new StringBuilder();
  private final ByteArrayOutputStream data = new ByteArrayOutputStream();

  @BeforeEach
  void start() {
    header.append("{\"__metadata__\":{\"format\":\"pt\"}");
  }

  private void add(String name, String type, byte[] bytes, long... shape) {
    header.append(
        ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%d,%d]}"
            .formatted(
                name, type, Arrays.toString(shape), data.size(), data.size() + bytes.length));
    data.writeBytes(bytes);
  }

  private static byte[] ints(int... x) {
    ByteBuffer b = ByteBuffer.allocate(4 * x.length).order(ByteOrder.LITTLE_ENDIAN);
    b.asIntBuffer().put(x);
    return b.array();
  }

  private static byte[] longs(long... x) {
    ByteBuffer b = ByteBuffer.allocate(8 * x.length).order(ByteOrder.LITTLE_ENDIAN);
    b.asLongBuffer().put(x);
    return b.array();
  }

  private static byte[] floats(float... x) {
    ByteBuffer b = ByteBuffer.allocate(4 * x.length).order(ByteOrder.LITTLE_ENDIAN);
    b.asFloatBuffer().put(x);
    return b.array();
  }

  private static byte[] halves(float... x) {
    ByteBuffer b = ByteBuffer.allocate(2 * x.length).order(ByteOrder.LITTLE_ENDIAN);
    for (float v : x) {
      b.putShort(Float.floatToFloat16(v));
    }
    return b.array();
  }

  private float[] scales(int n) {
    float[] s = new float[n];
    for (int i = 0; i < n; i++) {
      s[i] = Float.float16ToFloat(Float.floatToFloat16(0.01f + (float) random.nextDouble() / 50));
    }
    return s;
  }

  private int[] codes(int n, int bits) {
    int[] q = new int[n];
    for (int i = 0; i < n; i++) {
      q[i] = random.nextInt(1 << bits);
    }
    return q;
  }

  private interface Check {
    void of(Map<String, Tensor> tensors);
  }

  private void open(String config, Check check) throws IOException {
    byte[] json = (header + "}").getBytes(StandardCharsets.UTF_8);
    ByteBuffer file =
        ByteBuffer.allocate(8 + json.length + data.size()).order(ByteOrder.LITTLE_ENDIAN);
    file.putLong(json.length).put(json).put(data.toByteArray());
    Files.write(folder.resolve("model.safetensors"), file.array());
    Files.writeString(folder.resolve("config.json"), "{\"quantization_config\":" + config + "}");
    try (WeightFile f = WeightFile.open(folder);
        TensorStore store = TensorStore.create()) {
      check.of(QuantizedCheckpoint.tensors(f, store));
    }
  }

  private static void assertWeight(
      Map<String, Tensor> tensors, TensorType type, float[] expected, long... shape) {
    Tensor t = tensors.get("m.weight");
    assertEquals(type, t.type());
    assertArrayEquals(shape, t.shape());
    assertArrayEquals(expected, Dequantizer.toFloats(t));
    assertEquals(1, tensors.size(), tensors.keySet().toString());
  }

  /** Packs codes of a contiguous stream, least significant bit first. */
  private static int[] stream(int[] codes, int bits) {
    int[] words = new int[(codes.length * bits + 31) / 32];
    for (int i = 0; i < codes.length; i++) {
      for (int b = 0; b < bits; b++) {
        int at = i * bits + b;
        words[at / 32] |= (codes[i] >> b & 1) << at % 32;
      }
    }
    return words;
  }

  @ParameterizedTest
  @ValueSource(ints = {2, 3, 4, 8})
  void gptq(int bits) throws IOException {
    int out = 32;
    int in = 64;
    int groups = 2;
    int[] q = codes(out * in, bits);
    int[] z = codes(groups * out, bits);
    float[] s = scales(groups * out);
    int[] index = new int[in];
    float[] expected = new float[out * in];
    int[] words = new int[in * bits / 32 * out];
    for (int o = 0; o < out; o++) {
      int[] column = new int[in];
      for (int i = 0; i < in; i++) {
        index[i] = i / 32;
        column[i] = q[o * in + i];
        // One is subtracted when the zero is stored.
        int zero = (z[index[i] * out + o] + 1) & (1 << bits) - 1;
        expected[o * in + i] = (column[i] - zero) * s[index[i] * out + o];
      }
      int[] packed = stream(column, bits);
      for (int w = 0; w < packed.length; w++) {
        words[w * out + o] = packed[w];
      }
    }
    int zeroWords = out * bits / 32;
    int[] zeros = new int[groups * zeroWords];
    for (int g = 0; g < groups; g++) {
      int[] packed = stream(Arrays.copyOfRange(z, g * out, (g + 1) * out), bits);
      System.arraycopy(packed, 0, zeros, g * zeroWords, zeroWords);
    }
    add("m.qweight", "I32", ints(words), in * bits / 32, out);
    add("m.qzeros", "I32", ints(zeros), groups, zeroWords);
    add("m.scales", "F16", halves(s), groups, out);
    add("m.g_idx", "I32", ints(index), in);
    String config = "{\"quant_method\":\"gptq\",\"bits\":%d,\"group_size\":32}";
    TensorType type = bits == 8 ? TensorType.F32 : TensorType.Q8_0;
    open(
        config.formatted(bits),
        t -> assertWeight(t, bits < 4 ? TensorType.Q4_0 : type, expected, out, in));
  }

  @Test
  void gptqWithColumnsInAnyOrderIsExactToo() throws IOException {
    int out = 8;
    int in = 32;
    int[] q = codes(out * in, 4);
    float[] s = scales(2 * out);
    int[] index = new int[in];
    float[] expected = new float[out * in];
    int[] words = new int[in / 8 * out];
    for (int i = 0; i < in; i++) {
      index[i] = i * 5 % 3 % 2;
      for (int o = 0; o < out; o++) {
        words[i / 8 * out + o] |= q[o * in + i] << 4 * (i % 8);
        expected[o * in + i] = (q[o * in + i] - 8) * s[index[i] * out + o];
      }
    }
    add("m.qweight", "I32", ints(words), in / 8, out);
    add("m.qzeros", "I32", ints(0x77777777, 0x77777777), 2, 1);
    add("m.scales", "F16", halves(s), 2, out);
    add("m.g_idx", "I32", ints(index), in);
    open(
        "{\"quant_method\":\"gptq\",\"bits\":4}",
        t -> assertWeight(t, TensorType.F32, expected, out, in));
  }

  @Test
  void awq() throws IOException {
    int out = 16;
    int in = 64;
    int[] order = {0, 2, 4, 6, 1, 3, 5, 7};
    int[] q = codes(in * out, 4);
    int[] z = codes(2 * out, 4);
    float[] s = scales(2 * out);
    int[] words = new int[in * out / 8];
    int[] zeros = new int[2 * out / 8];
    for (int i = 0; i < words.length; i++) {
      for (int k = 0; k < 8; k++) {
        words[i] |= q[8 * i + order[k]] << 4 * k;
      }
    }
    for (int i = 0; i < zeros.length; i++) {
      for (int k = 0; k < 8; k++) {
        zeros[i] |= z[8 * i + order[k]] << 4 * k;
      }
    }
    float[] expected = new float[out * in];
    for (int o = 0; o < out; o++) {
      for (int i = 0; i < in; i++) {
        int g = i / 32;
        expected[o * in + i] = (q[i * out + o] - z[g * out + o]) * s[g * out + o];
      }
    }
    add("m.qweight", "I32", ints(words), in, out / 8);
    add("m.qzeros", "I32", ints(zeros), 2, out / 8);
    add("m.scales", "F16", halves(s), 2, out);
    open(
        "{\"quant_method\":\"awq\",\"bits\":4,\"version\":\"gemm\"}",
        t -> assertWeight(t, TensorType.Q8_0, expected, out, in));
  }

  private static String compressed(String format, int bits) {
    return ("{\"quant_method\":\"compressed-tensors\",\"format\":\"%s\","
            + "\"config_groups\":{\"group_0\":{\"weights\":{\"num_bits\":%d}}}}")
        .formatted(format, bits);
  }

  @ParameterizedTest
  @ValueSource(ints = {2, 4, 8})
  void packQuantized(int bits) throws IOException {
    int out = 6;
    int in = 64;
    int[] q = codes(out * in, bits);
    float[] s = scales(out * 2);
    float[] expected = new float[out * in];
    int[] words = new int[out * in * bits / 32];
    for (int o = 0; o < out; o++) {
      int[] row = Arrays.copyOfRange(q, o * in, (o + 1) * in);
      int[] packed = stream(row, bits);
      System.arraycopy(packed, 0, words, o * packed.length, packed.length);
      for (int i = 0; i < in; i++) {
        expected[o * in + i] = (row[i] - (1 << bits - 1)) * s[o * 2 + i / 32];
      }
    }
    add("m.weight_packed", "I32", ints(words), out, in * bits / 32);
    add("m.weight_scale", "F16", halves(s), out, 2);
    add("m.weight_shape", "I64", longs(out, in), 2);
    TensorType type = bits == 8 ? TensorType.Q8_0 : TensorType.Q4_0;
    open(compressed("pack-quantized", bits), t -> assertWeight(t, type, expected, out, in));
  }

  @Test
  void packQuantizedWithZeroPoints() throws IOException {
    int out = 16;
    int in = 32;
    int[] q = codes(out * in, 4);
    int[] z = codes(out, 4);
    float[] s = scales(out);
    float[] expected = new float[out * in];
    int[] words = new int[out * in / 8];
    int[] zeros = new int[out / 8];
    for (int o = 0; o < out; o++) {
      zeros[o / 8] |= z[o] << 4 * (o % 8);
      for (int i = 0; i < in; i++) {
        words[(o * in + i) / 8] |= q[o * in + i] << 4 * (i % 8);
        expected[o * in + i] = (q[o * in + i] - z[o]) * s[o];
      }
    }
    add("m.weight_packed", "I32", ints(words), out, in / 8);
    add("m.weight_scale", "F16", halves(s), out, 1);
    add("m.weight_zero_point", "I32", ints(zeros), out / 8, 1);
    add("m.weight_shape", "I64", longs(out, in), 2);
    open(compressed("pack-quantized", 4), t -> assertWeight(t, TensorType.Q8_0, expected, out, in));
  }

  @Test
  void packingOfThreeBitsIsToldByItsWidth() throws IOException {
    int in = 64;
    int[] q = codes(in, 3);
    float[] expected = new float[in];
    int[] old = new int[7];
    for (int i = 0; i < in; i++) {
      expected[i] = (q[i] - 4) * 0.5f;
      old[i / 10] |= q[i] << i % 10 * 3;
    }
    add("m.weight_packed", "I32", ints(old), 1, 7);
    add("m.weight_scale", "F16", halves(0.5f), 1, 1);
    add("m.weight_shape", "I64", longs(1, in), 2);
    open(compressed("pack-quantized", 3), t -> assertWeight(t, TensorType.Q4_0, expected, 1, in));
  }

  @Test
  void int8AndFp8() throws IOException {
    byte[] q = new byte[4 * 32];
    random.nextBytes(q);
    float[] s = scales(4);
    float[] expected = new float[q.length];
    for (int i = 0; i < q.length; i++) {
      expected[i] = q[i] * s[i / 32];
    }
    add("m.weight", "I8", q, 4, 32);
    add("m.weight_scale", "F16", halves(s), 4, 1);
    add("m.input_scale", "F32", floats(1), 1);
    open(compressed("int-quantized", 8), t -> assertWeight(t, TensorType.Q8_0, expected, 4, 32));
  }

  /** E4M3 by a search over all numbers of that form. */
  private static float e4m3(int b) {
    int e = b >> 3 & 15;
    float m = (b & 7) / 8f;
    float v = e == 0 ? m / 64 : (1 + m) * (float) Math.pow(2, e - 7);
    return b > 127 ? -v : v;
  }

  @ParameterizedTest
  @ValueSource(strings = {"weight_scale", "weight_scale_inv"})
  void fp8PerTensorAndInBlocks(String name) throws IOException {
    int out = 130;
    int in = 200;
    byte[] q = new byte[out * in];
    boolean blocks = name.endsWith("inv");
    float[] s = blocks ? new float[] {0.1f, 0.2f, 0.3f, 0.4f} : new float[] {0.7f};
    float[] expected = new float[q.length];
    for (int i = 0; i < q.length; i++) {
      int b = random.nextInt(127) | random.nextInt(2) << 7;
      q[i] = (byte) b;
      int block = blocks ? i / in / 128 * 2 + i % in / 128 : 0;
      expected[i] = e4m3(b) * s[block];
    }
    add("m.weight", "F8_E4M3", q, out, in);
    add("m." + name, "F32", floats(s), blocks ? new long[] {2, 2} : new long[] {1});
    open("{\"quant_method\":\"fp8\"}", t -> assertWeight(t, TensorType.F32, expected, out, in));
  }

  @Test
  void mxfp4AndNvfp4() throws IOException {
    float[] values = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    byte[] q = new byte[2 * 32];
    random.nextBytes(q);
    byte[] e = {120, (byte) 128, 127, 100};
    float[] expected = new float[2 * 64];
    for (int i = 0; i < expected.length; i++) {
      int code = q[i / 2] >> i % 2 * 4 & 15;
      float v = values[code & 7] * (float) Math.pow(2, (e[i / 32] & 255) - 127);
      expected[i] = code > 7 ? -v : v;
    }
    add("m.weight_packed", "U8", q, 2, 32);
    add("m.weight_scale", "U8", e, 2, 2);
    open(
        compressed("mxfp4-pack-quantized", 4),
        t -> {
          float[] actual = Dequantizer.toFloats(t.get("m.weight"));
          assertEquals(TensorType.MXFP4, t.get("m.weight").type());
          for (int i = 0; i < expected.length; i++) {
            assertTrue(expected[i] == actual[i], "element " + i);
          }
        });
  }

  @Test
  void nvfp4() throws IOException {
    float[] values = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    byte[] q = new byte[32];
    random.nextBytes(q);
    byte[] e = {0x38, 0x41, 0x12, 0x7e};
    float[] expected = new float[64];
    for (int i = 0; i < expected.length; i++) {
      int code = q[i / 2] >> i % 2 * 4 & 15;
      float v = values[code & 7] * (e4m3(e[i / 16]) / 3f);
      expected[i] = code > 7 ? -v : v;
    }
    add("m.weight_packed", "U8", q, 1, 32);
    add("m.weight_scale", "F8_E4M3", e, 1, 4);
    add("m.weight_global_scale", "F32", floats(3), 1);
    open(
        compressed("nvfp4-pack-quantized", 4),
        t -> assertWeight(t, TensorType.F32, expected, 1, 64));
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void bitmasks(boolean two) throws IOException {
    int out = 3;
    int in = 16;
    float[] dense = new float[out * in];
    byte[] mask = new byte[out * 2];
    float[] kept = new float[out * in];
    int n = 0;
    for (int i = 0; i < dense.length; i++) {
      boolean keep = two ? i % 4 == 1 || i % 4 == 2 + i / 4 % 2 : random.nextInt(3) == 0;
      if (keep) {
        dense[i] = (float) (1 + i) / 4;
        kept[n++] = dense[i];
        mask[i / 8] |= (byte) (1 << i % 8);
      }
    }
    String stem = two ? "m" : "m.weight";
    add(stem + ".shape", "I64", longs(out, in), 2);
    long[] shape = two ? new long[] {out, in / 2} : new long[] {n};
    add(stem + ".compressed", "F16", halves(Arrays.copyOf(kept, n)), shape);
    add(stem + ".bitmask", "U8", mask, out, 2);
    String format = two ? "sparse-24-bitmask" : "sparse-bitmask";
    open(
        compressed(format, 8),
        t -> {
          LinearOp op =
              LinearOpTensors.find(x -> Optional.ofNullable(t.get(x)), "m", in).orElseThrow();
          SparseMatrix m = ((LinearOp.Sparse) op).matrix();
          assertEquals(two ? "nm" : "bitmap", m.kind());
          assertArrayEquals(dense, SparseMatrix.toFloats(m));
          assertFalse(t.containsKey(stem + ".compressed"));
        });
  }

  /** 8-bit values under a mask, with a scale per row. */
  @ParameterizedTest
  @ValueSource(strings = {"I8", "F8_E4M3"})
  void bitmasksOverCodes(String type) throws IOException {
    int out = 3;
    int in = 16;
    float[] scale = scales(out);
    float[] dense = new float[out * in];
    byte[] mask = new byte[out * 2];
    byte[] kept = new byte[out * in / 2];
    int n = 0;
    for (int i = 0; i < dense.length; i++) {
      if (i % 4 == 1 || i % 4 == 2 + i / 4 % 2) {
        byte code = (byte) (1 + random.nextInt(100));
        dense[i] = (type.equals("I8") ? code : e4m3(code)) * scale[i / in];
        kept[n++] = code;
        mask[i / 8] |= (byte) (1 << i % 8);
      }
    }
    add("m.shape", "I64", longs(out, in), 2, 1);
    add("m.compressed", type, kept, out, in / 2);
    add("m.bitmask", "U8", mask, out, 2);
    add("m.weight_scale", "F16", halves(scale), out, 1);
    String config = compressed("int-quantized", 8);
    config =
        config.substring(0, config.lastIndexOf('}'))
            + ",\"sparsity_config\":{\"format\":\"sparse-24-bitmask\"}}";
    open(
        config,
        t -> {
          LinearOp op =
              LinearOpTensors.find(x -> Optional.ofNullable(t.get(x)), "m", in).orElseThrow();
          SparseMatrix m = ((LinearOp.Sparse) op).matrix();
          assertEquals("nm", m.kind());
          assertArrayEquals(dense, SparseMatrix.toFloats(m));
        });
  }

  /** What the producer does, step by step: 2:4, metadata, transposition, permutation, packing. */
  @ParameterizedTest
  @ValueSource(ints = {4, 8})
  void marlin24(int bits) throws IOException {
    for (int groups : new int[] {1, 2}) {
      marlin24(bits, groups);
      header.setLength(0);
      data.reset();
      start();
    }
  }

  private void marlin24(int bits, int groups) throws IOException {
    int out = 128;
    int in = 256;
    int kept = in / 2;
    float[] scale = scales(groups * out);
    int[] codes = new int[out * kept];
    byte[] index = new byte[out * in / 8];
    float[] dense = new float[out * in];
    int[] legal = {0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110};
    for (int o = 0; o < out; o++) {
      for (int g = 0; g < in / 4; g++) {
        int nibble = legal[random.nextInt(6)];
        index[o * in / 8 + g / 2] |= (byte) (nibble << g % 2 * 4);
        for (int i = 0; i < 2; i++) {
          int code = random.nextInt(1 << bits);
          codes[o * kept + 2 * g + i] = code;
          int column = 4 * g + (nibble >> 2 * i & 3);
          float s = scale[column / (in / groups) * out + o];
          dense[o * in + column] = (code - (1 << bits - 1)) * s;
        }
      }
    }
    // Metadata: rows reordered, two by two swapped, columns in pairs.
    short[] meta = new short[out * in / 16];
    for (int r = 0; r < out; r++) {
      for (int c = 0; c < in / 16; c++) {
        int row = r / 64 * 64 + r % 2 * 2 + r % 8 / 4 + (r % 32) % 4 / 2 * 32 + (r % 64) / 8 * 4;
        int topRight = row % 2 == 0 && c % 2 == 1 ? 1 : 0;
        int bottomLeft = row % 2 == 1 && c % 2 == 0 ? 1 : 0;
        int toRow = row + topRight - bottomLeft;
        int toColumn = c - topRight + bottomLeft;
        int at = r * in / 8 + 2 * c;
        meta[toColumn / 2 * out * 2 + toRow * 2 + toColumn % 2] =
            (short) (index[at] & 255 | index[at + 1] << 8);
      }
    }
    // The map of 1024, as the specification lists it.
    List<Integer> map = new ArrayList<>();
    for (int i = 0; i < 32; i++) {
      int c = i / 4;
      List<Integer> base = new ArrayList<>();
      for (int block : new int[] {0, 1}) {
        int a = 2 * (i % 4);
        int b = 2 * (i % 4 + 4);
        for (int row : new int[] {a, a + 1, b, b + 1}) {
          base.add(16 * row + 256 * (c / 2) + 8 * (c % 2) + 4 * block);
        }
      }
      for (int j = 0; j < 4; j++) {
        for (int x : base) {
          map.add(x + j);
        }
      }
    }
    int[] interleave = bits == 4 ? new int[] {0, 2, 4, 6, 1, 3, 5, 7} : new int[] {0, 2, 1, 3};
    int pack = 32 / bits;
    int[] packed = new int[kept / 16 * out * 16 / pack];
    for (int tile = 0; tile < kept / 16; tile++) {
      // [16 kept, out] as tiles of 16 by 16 after each other.
      int[] flat = new int[16 * out];
      for (int k = 0; k < 16; k++) {
        for (int o = 0; o < out; o++) {
          flat[o / 16 * 256 + k * 16 + o % 16] = codes[o * kept + tile * 16 + k];
        }
      }
      for (int p = 0; p < flat.length; p++) {
        int within = p % 1024;
        int n = interleave.length;
        int from = map.get(within / n * n + interleave[within % n]);
        int word = tile * (out * 16 / pack) + p / pack;
        packed[word] |= flat[p / 1024 * 1024 + from] << bits * (p % pack);
      }
    }
    float[] scalesPacked = scale.clone();
    int[] eight = {0, 4, 1, 5, 2, 6, 3, 7};
    for (int i = 0; i < scale.length && groups > 1; i++) {
      scalesPacked[i] = scale[i / 8 * 8 + eight[i % 8]];
    }
    ByteBuffer words = ByteBuffer.allocate(2 * meta.length).order(ByteOrder.LITTLE_ENDIAN);
    words.asShortBuffer().put(meta);
    add("m.weight_packed", "I32", ints(packed), kept / 16, out * 16 / pack);
    add("m.scale_packed", "F16", halves(scalesPacked), groups, out);
    add("m.meta", "I16", words.array(), in / 32, 2 * out);
    open(
        compressed("marlin-24", bits),
        t -> {
          assertEquals(java.util.Set.of("m.sp.idx", "m.sp.val"), t.keySet());
          TensorType type = bits == 4 ? TensorType.Q4_0 : TensorType.Q8_0;
          assertEquals(type, t.get("m.sp.val").type());
          LinearOp op =
              LinearOpTensors.find(x -> Optional.ofNullable(t.get(x)), "m", in).orElseThrow();
          assertArrayEquals(dense, SparseMatrix.toFloats(((LinearOp.Sparse) op).matrix()));
        });
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void bitsAndBytesNf4(boolean nested) throws IOException {
    int out = 8;
    int in = 64;
    byte[] q = new byte[out * in / 2];
    random.nextBytes(q);
    float[] map = new float[16];
    for (int i = 0; i < 16; i++) {
      map[i] = (i - 7) / 8f;
    }
    float[] absmax = scales(8);
    byte[] codes = new byte[8];
    float[] outerMap = new float[256];
    for (int i = 0; i < 256; i++) {
      outerMap[i] = i / 255f;
    }
    for (int k = 0; nested && k < 8; k++) {
      codes[k] = (byte) (31 * k);
      absmax[k] = outerMap[31 * k] * 0.25f + 0.125f;
    }
    float[] expected = new float[out * in];
    for (int i = 0; i < expected.length; i++) {
      int b = q[i / 2] & 255;
      expected[i] = map[i % 2 == 0 ? b >> 4 : b & 15] * absmax[i / 64];
    }
    String state =
        "{\"quant_type\":\"nf4\",\"blocksize\":64,\"shape\":[8,64],\"dtype\":\"float16\""
            + (nested ? ",\"nested_blocksize\":256,\"nested_offset\":0.125}" : "}");
    byte[] json = state.getBytes(StandardCharsets.UTF_8);
    add("m.weight", "U8", q, q.length, 1);
    add("m.weight.quant_map", "F32", floats(map), 16);
    add("m.weight.quant_state.bitsandbytes__nf4", "U8", json, json.length);
    if (nested) {
      add("m.weight.absmax", "U8", codes, 8);
      add("m.weight.nested_absmax", "F32", floats(0.25f), 1);
      add("m.weight.nested_quant_map", "F32", floats(outerMap), 256);
    } else {
      add("m.weight.absmax", "F32", floats(absmax), 8);
    }
    open(
        "{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true}",
        t -> {
          assertEquals(1, t.size());
          assertArrayEquals(expected, Dequantizer.toFloats(t.get("m.weight")));
        });
  }

  @Test
  void bitsAndBytesInt8() throws IOException {
    byte[] q = new byte[3 * 5];
    random.nextBytes(q);
    float[] scb = {1.5f, 2.25f, 0.3f};
    float[] expected = new float[q.length];
    for (int i = 0; i < q.length; i++) {
      expected[i] = q[i] * scb[i / 5] / 127f;
    }
    add("m.weight", "I8", q, 3, 5);
    add("m.SCB", "F32", floats(scb), 3);
    open(
        "{\"quant_method\":\"bitsandbytes\",\"load_in_8bit\":true}",
        t -> assertWeight(t, TensorType.F32, expected, 3, 5));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'quant_method':'hqq'}|quantization_config.quant_method",
        "{'quant_method':'gptq','bits':5}|quantization_config.bits",
        "{'quant_method':'gptq','bits':4,'checkpoint_format':'marlin'}"
            + "|quantization_config.checkpoint_format",
        "{'quant_method':'awq','bits':4,'version':'gemv'}|quantization_config.version",
        "{'quant_method':'compressed-tensors','format':'marlin'}|quantization_config.format",
        "{'quant_method':'compressed-tensors','sparsity_config':{'format':'x'}}"
            + "|quantization_config.sparsity_config.format"
      })
  void unknownSchemesAreRefusedByTheirKey(String line) {
    String[] parts = line.replace('\'', '"').split("\\|");
    add("x", "F32", floats(1), 1);
    WeightFileException e = assertThrows(WeightFileException.class, () -> open(parts[0], t -> {}));
    assertTrue(e.getMessage().contains(parts[1] + ": expected="), e.getMessage());
  }

  @Test
  void tensorsThatDoNotFitAreRefused() {
    add("m.qweight", "I32", ints(new int[16]), 4, 4);
    add("m.scales", "F16", halves(1, 1, 1, 1), 1, 4);
    add("m.qzeros", "I32", ints(0, 0), 2, 1);
    WeightFileException e =
        assertThrows(
            WeightFileException.class,
            () -> open("{\"quant_method\":\"gptq\",\"bits\":4}", t -> {}));
    assertTrue(e.getMessage().contains("m.qzeros"), e.getMessage());
  }
}
