package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.Predicate;

/**
 * The tensors of a safetensors checkpoint that another tool quantized, as tensors that can be
 * computed with (specs weights 2.5 and 3.4): GPTQ, AWQ (gemm), compressed-tensors, bitsandbytes,
 * and FP8 with scales. {@code quantization_config} of {@code config.json} says which.
 *
 * <p>Decoding is exact. Integer codes with a scale that a half holds, one per 32 columns, become
 * Q4_0 or Q8_0 blocks; MXFP4 becomes MXFP4; 2:4 and bitmap sparsity become {@link SparseMatrix}
 * parts; everything else becomes F16 where all values fit, else F32. What is not known is refused,
 * by its key. Used by the thread that opens a model; reads every quantized tensor.
 */
public final class QuantizedCheckpoint {
  private static final String CONFIG = "quantization_config.";

  /** Order of the columns of a word (AWQ gemm): nibble k holds column {@code AWQ[k]}. */
  private static final int[] AWQ = {0, 2, 4, 6, 1, 3, 5, 7};

  /** Values of E2M1 codes. */
  private static final float[] E2M1 = {
    0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0f, -0.5f, -1, -1.5f, -2, -3, -4, -6
  };

  private final WeightFile file;
  private final Metadata config;
  private final TensorStore store;
  private final Map<String, Tensor> result = new LinkedHashMap<>();
  private final Set<String> dropped = new HashSet<>();

  private QuantizedCheckpoint(WeightFile file, TensorStore store) {
    this.file = file;
    this.config = file.metadata();
    this.store = store;
  }

  /**
   * The tensors of a file, decoded where they need it. A file without {@code quantization_config}
   * is as it is.
   *
   * @param store owns what is decoded
   * @throws WeightFileException if the scheme is not supported, or tensors do not fit it
   */
  public static Map<String, Tensor> tensors(WeightFile file, TensorStore store) {
    if (file.format() != WeightFile.Format.SAFETENSORS
        || file.metadata().entries().keySet().stream().noneMatch(k -> k.startsWith(CONFIG))) {
      return file.tensors();
    }
    return new QuantizedCheckpoint(file, store).decode();
  }

  private Map<String, Tensor> decode() {
    String method = config.string(CONFIG + "quant_method").orElse("");
    switch (method) {
      case "gptq" -> gptq();
      case "awq" -> awq();
      case "compressed-tensors" -> compressedTensors();
      case "bitsandbytes" -> bitsAndBytes();
      case "fp8" -> each(".weight", s -> hasScale(s), this::scaledFloats);
      default ->
          throw fail(
              CONFIG + "quant_method",
              "gptq, awq, compressed-tensors, bitsandbytes or fp8",
              method);
    }
    file.tensors()
        .forEach((name, t) -> {
          if (!dropped.contains(name) && !name.endsWith(".input_scale")) {
            result.putIfAbsent(name, t);
          }
        });
    return result;
  }

  private WeightFileException fail(String what, Object expected, Object actual) {
    return new WeightFileException(
        file.path() + ": " + what + ": expected=" + expected + " actual=" + actual);
  }

  // ---- access

  private Optional<Tensor> find(String name) {
    Tensor t = file.tensors().get(name);
    return t != null ? Optional.of(t) : file.raw(name);
  }

  private Tensor need(String name, String types, long... shape) {
    Tensor t = find(name).orElseThrow(() -> fail("tensor " + name, "present", "absent"));
    boolean fits = List.of(types.split("\\|")).contains(typeName(name));
    fits &= shape.length == 0 || Arrays.equals(shape, t.shape());
    if (!fits) {
      String dims = shape.length == 0 ? "" : " " + Arrays.toString(shape);
      throw fail("tensor " + name, types + dims, typeName(name) + " " + Arrays.toString(t.shape()));
    }
    return t;
  }

  private String typeName(String name) {
    Tensor t = file.tensors().get(name);
    return t != null ? t.type().name() : file.unsupported().get(name).type();
  }

  private interface Module {
    void decode(String stem);
  }

  /** Decodes every module that has a tensor with a suffix, and drops what it was made of. */
  private void each(String suffix, Predicate<String> wanted, Module module) {
    List<String> names = new ArrayList<>(file.tensors().keySet());
    names.addAll(file.unsupported().keySet());
    List<String> stems = new ArrayList<>();
    for (String name : names) {
      if (name.endsWith(suffix)) {
        String stem = name.substring(0, name.length() - suffix.length());
        if (wanted.test(stem)) {
          stems.add(stem);
        }
      }
    }
    for (String stem : stems) {
      for (String part :
          List.of(
              "qweight",
              "qzeros",
              "scales",
              "g_idx",
              "weight_packed",
              "weight_scale",
              "weight_scale_inv",
              "weight_zero_point",
              "weight_g_idx",
              "weight_shape",
              "weight_global_scale",
              "scale_packed",
              "meta",
              "input_scale",
              "input_global_scale",
              "SCB",
              "weight_format",
              "compressed",
              "bitmask",
              "shape",
              "row_offsets",
              "weight",
              "weight.absmax",
              "weight.quant_map",
              "weight.nested_absmax",
              "weight.nested_quant_map",
              "weight.quant_state.bitsandbytes__nf4",
              "weight.quant_state.bitsandbytes__fp4")) {
        dropped.add(stem + "." + part);
      }
      module.decode(stem);
    }
  }

  private static int bits(Tensor words, long word, long bit, int n) {
    long low = words.segment().get(ByteCursor.INT, 4 * (word + bit / 32)) & 0xffff_ffffL;
    int shift = (int) (bit % 32);
    if (shift + n > 32) {
      low |= (long) words.segment().get(ByteCursor.INT, 4 * (word + bit / 32 + 1)) << 32;
    }
    return (int) (low >>> shift) & (1 << n) - 1;
  }

  private static int u8(Tensor t, long i) {
    return t.segment().get(ValueLayout.JAVA_BYTE, i) & 0xff;
  }

  // ---- GPTQ and AWQ

  private void gptq() {
    int n = integer(CONFIG + "bits");
    String format = config.string(CONFIG + "checkpoint_format").orElse("gptq");
    if (n != 2 && n != 3 && n != 4 && n != 8) {
      throw fail(CONFIG + "bits", "2, 3, 4 or 8", n);
    }
    if (!format.equals("gptq") && !format.equals("gptq_v2")) {
      throw fail(CONFIG + "checkpoint_format", "gptq or gptq_v2", format);
    }
    int plus = format.equals("gptq") ? 1 : 0;
    each(
        ".qweight",
        s -> true,
        stem -> {
          Tensor q = need(stem + ".qweight", "I32");
          Tensor scales = need(stem + ".scales", "F16|BF16|F32");
          long out = scales.cols();
          long groups = scales.rows();
          long in = q.rows() * 32 / n;
          need(stem + ".qweight", "I32", in * n / 32, out);
          Tensor zeros = need(stem + ".qzeros", "I32", groups, out * n / 32);
          Optional<Tensor> index = find(stem + ".g_idx");
          int[] group = groups(stem, index, in, groups);
          float[][] s = matrix(scales);
          integers(
              stem,
              out,
              in,
              (o, codes, scale) -> {
                for (int i = 0; i < in; i++) {
                  long bit = (long) i * n;
                  long first = bit / 32 * out + o;
                  long word = q.segment().get(ByteCursor.INT, 4 * first) & 0xffff_ffffL;
                  int shift = (int) (bit % 32);
                  if (shift + n > 32) {
                    word |= (long) q.segment().get(ByteCursor.INT, 4 * (first + out)) << 32;
                  }
                  int code = (int) (word >>> shift) & (1 << n) - 1;
                  int g = group[i];
                  int zero = bits(zeros, g * zeros.cols(), o * n, n) + plus & (1 << n) - 1;
                  codes[i] = code - zero;
                  scale[i] = s[g][(int) o];
                }
              });
        });
  }

  /** The group of each column: as stored, else equal runs. */
  private int[] groups(String stem, Optional<Tensor> index, long in, long groups) {
    int[] all = new int[Math.toIntExact(in)];
    if (index.isEmpty() && (groups < 1 || in % groups != 0)) {
      throw fail(stem + ": groups", "a divisor of " + in, groups);
    }
    if (index.isPresent()) {
      need(index.get().name(), "I32", in);
    }
    for (int i = 0; i < all.length; i++) {
      all[i] =
          index.isPresent()
              ? index.get().segment().get(ByteCursor.INT, 4L * i)
              : (int) (i / (in / groups));
      if (all[i] < 0 || all[i] >= groups) {
        throw fail(stem + ": group of column " + i, "[0, " + groups + ")", all[i]);
      }
    }
    return all;
  }

  private void awq() {
    int n = integer(CONFIG + "bits");
    String version = config.string(CONFIG + "version").orElse("gemm");
    if (n != 4) {
      throw fail(CONFIG + "bits", 4, n);
    }
    if (!version.equalsIgnoreCase("gemm")) {
      throw fail(CONFIG + "version", "gemm", version);
    }
    each(
        ".qweight",
        s -> true,
        stem -> {
          Tensor q = need(stem + ".qweight", "I32");
          long in = q.rows();
          long out = q.cols() * 8;
          Tensor scales = need(stem + ".scales", "F16|BF16|F32");
          long groups = scales.rows();
          need(stem + ".scales", typeName(stem + ".scales"), groups, out);
          Tensor zeros = need(stem + ".qzeros", "I32", groups, out / 8);
          int[] group = groups(stem, Optional.empty(), in, groups);
          float[][] s = matrix(scales);
          int[] nibble = new int[8];
          for (int k = 0; k < 8; k++) {
            nibble[AWQ[k]] = k;
          }
          integers(
              stem,
              out,
              in,
              (o, codes, scale) -> {
                int shift = 4 * nibble[(int) (o % 8)];
                for (int i = 0; i < in; i++) {
                  int word = q.segment().get(ByteCursor.INT, 4 * (i * q.cols() + o / 8));
                  int g = group[i];
                  int zero = zeros.segment().get(ByteCursor.INT, 4 * (g * zeros.cols() + o / 8));
                  codes[i] = (word >>> shift & 15) - (zero >>> shift & 15);
                  scale[i] = s[g][(int) o];
                }
              });
        });
  }

  // ---- compressed-tensors

  private void compressedTensors() {
    String format = config.string(CONFIG + "format").orElse("dense");
    switch (format) {
      case "pack-quantized" -> each(".weight_packed", s -> true, stem -> packed(stem, numBits()));
      case "int-quantized", "float-quantized", "naive-quantized" ->
          each(".weight", this::hasScale, this::scaled);
      case "nvfp4-pack-quantized" -> each(".weight_packed", s -> true, this::nvfp4);
      case "mxfp4-pack-quantized" -> each(".weight_packed", s -> true, this::mxfp4);
      case "marlin-24" -> each(".weight_packed", s -> true, stem -> marlin24(stem, numBits()));
      case "dense", "sparse-24-bitmask", "sparse-bitmask" -> {}
      default ->
          throw fail(
              CONFIG + "format",
              "pack-quantized, int-quantized, float-quantized, naive-quantized,"
                  + " nvfp4-pack-quantized, mxfp4-pack-quantized, marlin-24, sparse-24-bitmask,"
                  + " sparse-bitmask or dense",
              format);
    }
    String sparsity =
        config
            .string(CONFIG + "sparsity_config.format")
            .orElse(format.startsWith("sparse") ? format : "dense");
    switch (sparsity) {
      case "dense" -> {}
      case "sparse-24-bitmask", "sparse-bitmask" -> {
        boolean two = sparsity.equals("sparse-24-bitmask");
        each(".bitmask", s -> true, stem -> bitmask(stem, two));
      }
      default ->
          throw fail(
              CONFIG + "sparsity_config.format",
              "dense, sparse-24-bitmask or sparse-bitmask",
              sparsity);
    }
  }

  private int numBits() {
    int n = 0;
    for (String key : config.entries().keySet()) {
      if (key.startsWith(CONFIG + "config_groups.") && key.endsWith(".weights.num_bits")) {
        int own = integer(key);
        if (n != 0 && own != n) {
          throw fail(key, "as the other groups: " + n, own);
        }
        n = own;
      }
    }
    if (n < 2 || n > 8) {
      throw fail(CONFIG + "config_groups.*.weights.num_bits", "2..8", n);
    }
    return n;
  }

  private int integer(String key) {
    long n = config.integer(key).orElseThrow(() -> fail(key, "present", "absent"));
    return Math.toIntExact(Math.clamp(n, Integer.MIN_VALUE, Integer.MAX_VALUE));
  }

  private boolean hasScale(String stem) {
    return find(stem + ".weight_scale").or(() -> find(stem + ".weight_scale_inv")).isPresent();
  }

  private void packed(String stem, int n) {
    Tensor q = need(stem + ".weight_packed", "I32");
    Tensor shape = need(stem + ".weight_shape", "I64|I32", 2);
    float[] dims = Dequantizer.toFloats(shape);
    long out = (long) dims[0];
    long in = (long) dims[1];
    if (out != q.rows() || in < 1 || in > 1 << 24) {
      throw fail(stem + ".weight_shape", q.rows() + " rows", out + " rows, " + in + " columns");
    }
    long dense = (in * n + 31) / 32;
    long words = (in + 32 / n - 1) / (32 / n);
    boolean whole = 32 % n == 0;
    if (q.cols() != dense && q.cols() != words || !whole && dense == words) {
      throw fail(
          stem + ".weight_packed: words of a row",
          whole || dense != words ? dense + " or " + words : "one that tells the packing",
          q.cols());
    }
    boolean stream = whole || q.cols() == dense;
    Scales scales = scales(stem, out, in);
    Optional<Tensor> zeros = find(stem + ".weight_zero_point");
    long zeroRows = zeros.map(Tensor::rows).orElse(0L);
    long zeroColumns = scales.columns;
    if (zeros.isPresent()) {
      long down = whole ? (out * n + 31) / 32 : zeroRows;
      need(zeros.get().name(), "I32", down, zeroColumns);
      if (!whole) {
        throw fail(stem + ".weight_zero_point", "absent for " + n + " bits", "present");
      }
    }
    int offset = 1 << n - 1;
    integers(
        stem,
        out,
        in,
        (o, codes, scale) -> {
          for (int i = 0; i < in; i++) {
            long bit = stream ? (long) i * n : i / (32 / n) * 32L + i % (32 / n) * n;
            int code = bits(q, o * q.cols(), bit, n) - offset;
            int g = scales.column(o, i);
            if (zeros.isPresent()) {
              int word =
                  zeros.get().segment().get(ByteCursor.INT, 4 * (o * n / 32 * zeroColumns + g));
              code -= (word >>> (int) (o * n % 32) & (1 << n) - 1) - offset;
            }
            codes[i] = code;
            scale[i] = scales.at(o, i);
          }
        });
  }

  /** Scales of any layout: one, per row, per group of columns, or per block. */
  private static final class Scales {
    final float[][] values;
    final long columns;
    private final long blockRows;
    private final int[] group;

    Scales(float[][] values, long blockRows, int[] group) {
      this.values = values;
      this.columns = values[0].length;
      this.blockRows = blockRows;
      this.group = group;
    }

    int column(long o, int i) {
      return group[i];
    }

    float at(long o, int i) {
      return values[(int) (o / blockRows)][group[i]];
    }
  }

  private Scales scales(String stem, long out, long in) {
    boolean inverse = find(stem + ".weight_scale").isEmpty();
    Tensor t = need(stem + (inverse ? ".weight_scale_inv" : ".weight_scale"), "F16|BF16|F32");
    long rows = t.rank() < 2 ? t.elements() : t.rows();
    long columns = t.rank() < 2 ? 1 : t.cols();
    float[][] values = matrix(t, rows, columns);
    Optional<Tensor> index = find(stem + ".weight_g_idx");
    int[] group = new int[Math.toIntExact(in)];
    long blockRows = rows == out ? 1 : rows == 1 ? out : (out + rows - 1) / rows;
    long width = columns == 1 ? in : (in + columns - 1) / columns;
    if (rows < 1 || rows > out || columns < 1 || columns > in) {
      throw fail(t.name(), "at most [" + out + ", " + in + "]", Arrays.toString(t.shape()));
    }
    if (rows != out && rows != 1) {
      // Blocks are squares of 128 in every known checkpoint; the shape must agree with them.
      blockRows = 128;
      width = 128;
    }
    if ((out + blockRows - 1) / blockRows != rows || (in + width - 1) / width != columns) {
      throw fail(
          t.name(),
          "one per tensor, row, group or block of 128 of [" + out + ", " + in + "]",
          Arrays.toString(t.shape()));
    }
    if (index.isPresent()) {
      return new Scales(values, blockRows, groups(stem, index, in, columns));
    }
    for (int i = 0; i < group.length; i++) {
      group[i] = (int) (i / width);
    }
    return new Scales(values, blockRows, group);
  }

  /** {@code .weight} of integers or FP8 with scales. */
  private void scaled(String stem) {
    if (!typeName(stem + ".weight").equals("I8")) {
      scaledFloats(stem);
      return;
    }
    Tensor q = need(stem + ".weight", "I8");
    long out = q.rows();
    long in = q.cols();
    Scales scales = scales(stem, out, in);
    Optional<float[][]> zeros =
        find(stem + ".weight_zero_point")
            .map(z -> {
              need(z.name(), "I8|I32|I64");
              if (z.elements() != scales.values.length * scales.columns) {
                throw fail(z.name(), "as many as scales", Arrays.toString(z.shape()));
              }
              return matrix(z, scales.values.length, scales.columns);
            });
    integers(
        stem,
        out,
        in,
        (o, codes, scale) -> {
          for (int i = 0; i < in; i++) {
            int zero =
                zeros.isEmpty()
                    ? 0
                    : (int) zeros.get()[(int) (o / scales.blockRows)][scales.column(o, i)];
            codes[i] = q.segment().get(ValueLayout.JAVA_BYTE, o * in + i) - zero;
            scale[i] = scales.at(o, i);
          }
        });
  }

  private void scaledFloats(String stem) {
    Tensor q = need(stem + ".weight", "F8_E4M3|F8_E5M2");
    boolean e4m3 = typeName(stem + ".weight").equals("F8_E4M3");
    long out = q.rows();
    long in = q.cols();
    Scales scales = scales(stem, out, in);
    floats(
        stem,
        out,
        in,
        (o, row) -> {
          for (int i = 0; i < in; i++) {
            int b = u8(q, o * in + i);
            row[i] = (e4m3 ? e4m3(b) : e5m2(b)) * scales.at(o, i);
          }
        });
  }

  /** The value of an FP8 code: 4 bits of exponent, no infinities, NaN at 0x7f and 0xff. */
  static float e4m3(int b) {
    int exponent = b >> 3 & 15;
    int mantissa = b & 7;
    float v =
        exponent == 15 && mantissa == 7
            ? Float.NaN
            : exponent == 0 ? mantissa * 0x1p-9f : Math.scalb(1 + mantissa / 8f, exponent - 7);
    return (b & 0x80) != 0 ? -v : v;
  }

  /** The value of an FP8 code with 5 bits of exponent: the upper half of a half. */
  static float e5m2(int b) {
    return Float.float16ToFloat((short) (b << 8));
  }

  private void nvfp4(String stem) {
    Tensor q = need(stem + ".weight_packed", "U8");
    long out = q.rows();
    long in = 2 * q.cols();
    Tensor scales = need(stem + ".weight_scale", "F8_E4M3", out, in / 16);
    Tensor global = need(stem + ".weight_global_scale", "F32");
    if (global.elements() != 1) {
      throw fail(global.name(), "1 element", global.elements());
    }
    float divisor = Dequantizer.element(global, 0);
    floats(
        stem,
        out,
        in,
        (o, row) -> {
          for (int i = 0; i < in; i++) {
            int code = u8(q, o * in / 2 + i / 2) >> i % 2 * 4 & 15;
            float scale = e4m3(u8(scales, o * (in / 16) + i / 16)) / divisor;
            row[i] = E2M1[code] * scale;
          }
        });
  }

  private void mxfp4(String stem) {
    Tensor q = need(stem + ".weight_packed", "U8");
    long out = q.rows();
    long in = 2 * q.cols();
    Tensor scales = need(stem + ".weight_scale", "U8|F8_E8M0", out, in / 32);
    Tensor t = store.allocate(stem + ".weight", TensorType.MXFP4, out, in);
    for (long block = 0; block < out * in / 32; block++) {
      int e = u8(scales, block);
      if (e == 0xff) {
        throw fail(scales.name() + "[" + block + "]", "0..254", e);
      }
      long at = 17 * block;
      t.segment().set(ValueLayout.JAVA_BYTE, at, (byte) e);
      for (int j = 0; j < 16; j++) {
        int low = u8(q, 16 * block + j / 2) >> j % 2 * 4 & 15;
        int high = u8(q, 16 * block + 8 + j / 2) >> j % 2 * 4 & 15;
        t.segment().set(ValueLayout.JAVA_BYTE, at + 1 + j, (byte) (low | high << 4));
      }
    }
    result.put(t.name(), t);
  }

  /**
   * 2:4 with codes, in the order in which a GPU kernel reads them (specs weights 3.4): tiles of
   * {@code [16 kept, 16 rows]}, four of which are permuted together, and the index as the tensor
   * cores' metadata in CUTLASS's order. Becomes 2:4 with Q4_0 or Q8_0 values, exactly.
   */
  private void marlin24(String stem, int n) {
    if (n != 4 && n != 8) {
      throw fail(CONFIG + "config_groups.*.weights.num_bits", "4 or 8 for marlin-24", n);
    }
    if (find(stem + ".weight_zero_point").isPresent() || find(stem + ".weight_g_idx").isPresent()) {
      throw fail(stem + ": zero points and g_idx", "absent for marlin-24", "present");
    }
    Tensor meta = need(stem + ".meta", "I16");
    long out = meta.rank() == 2 ? meta.cols() / 2 : 0;
    long words = meta.rank() == 2 ? 2 * meta.rows() : 0;
    long in = 16 * words;
    if (out < 64 || out % 64 != 0 || in < 64 || in % 64 != 0 || in > 1 << 24) {
      throw fail(meta.name(), "[in / 32, 2 out], multiples of 64", Arrays.toString(meta.shape()));
    }
    Tensor q = need(stem + ".weight_packed", "I32", in / 32, out * n / 2);
    Tensor s = need(stem + ".scale_packed", "F16|BF16|F32");
    long groups = s.rank() == 2 ? s.rows() : 0;
    if (groups < 1 || in % groups != 0 || s.cols() != out) {
      throw fail(s.name(), "[groups, " + out + "]", Arrays.toString(s.shape()));
    }
    float[][] scales = matrix(s);
    int[] slot = marlinSlots(n);
    integersNamed(
        stem + ".sp.val",
        out,
        in / 2,
        (o, codes, scale) -> {
          for (int k = 0; k < codes.length; k++) {
            // Tiles of a row of tiles are next to each other; a permutation covers four of them.
            long at =
                o / 64 * 1024 + slot[(int) (o % 64) / 16 * 256 + k % 16 * 16 + (int) (o % 16)];
            codes[k] = bits(q, k / 16 * q.cols(), at * n, n) - (1 << n - 1);
            int g = (int) (2L * k / (in / groups));
            // Within 64 rows, eight at a time as 0 4 1 5 2 6 3 7; scales of whole rows are in
            // order.
            int place = (int) (o % 8);
            place = groups == 1 ? place : place < 4 ? 2 * place : 2 * (place - 4) + 1;
            scale[k] = scales[g][(int) (o / 8 * 8) + place];
          }
        });
    Tensor index = store.allocate(stem + ".sp.idx", TensorType.I8, out, in / 8);
    for (long r = 0; r < out; r++) {
      for (long c = 0; c < words; c++) {
        long row = r / 64 * 64 + r % 2 * 2 + r % 8 / 4 + r % 32 % 4 / 2 * 32 + r % 64 / 8 * 4;
        long column = c;
        if (row % 2 != column % 2) {
          // The other diagonal of every two by two.
          long step = row % 2 == 0 ? 1 : -1;
          row += step;
          column -= step;
        }
        long at = column / 2 * out * 2 + row * 2 + column % 2;
        short word = meta.segment().get(ByteCursor.SHORT, 2 * at);
        index.segment().set(ByteCursor.SHORT, r * (in / 8) + 2 * c, word);
      }
    }
    result.put(index.name(), index);
  }

  /** Where each code of 16 kept values by 64 rows lies among the 1024 of them. */
  private static int[] marlinSlots(int bits) {
    int[] order = bits == 4 ? new int[] {0, 2, 4, 6, 1, 3, 5, 7} : new int[] {0, 2, 1, 3};
    int[] emitted = new int[1024];
    int n = 0;
    for (int i = 0; i < 32; i++) {
      int c = i / 4;
      for (int j = 0; j < 4; j++) {
        for (int block = 0; block < 2; block++) {
          for (int row = 0; row < 4; row++) {
            int r = 2 * (i % 4) + row % 2 + row / 2 * 8;
            emitted[n++] = 16 * r + 256 * (c / 2) + 8 * (c % 2) + 4 * block + j;
          }
        }
      }
    }
    int[] slot = new int[1024];
    for (int p = 0; p < 1024; p++) {
      slot[emitted[p / order.length * order.length + order[p % order.length]]] = p;
    }
    return slot;
  }

  private void bitmask(String stem, boolean twoOfFour) {
    String name = stem.endsWith(".weight") ? stem.substring(0, stem.length() - 7) : stem;
    boolean scaled = hasScale(name);
    Tensor values = need(stem + ".compressed", scaled ? "I8|F8_E4M3" : "F16|BF16|F32");
    Tensor mask = need(stem + ".bitmask", "U8");
    float[] dims = Dequantizer.toFloats(need(stem + ".shape", "I64|I32"));
    if (dims.length != 2) {
      throw fail(stem + ".shape", "2 numbers", dims.length);
    }
    long out = (long) dims[0];
    int in = (int) dims[1];
    need(mask.name(), "U8", out, (in + 7L) / 8);
    long width = mask.cols();
    boolean bytes = typeName(values.name()).equals("I8");
    Optional<Scales> scales = scaled ? Optional.of(scales(name, out, in)) : Optional.empty();
    try (TensorStore whole = TensorStore.create()) {
      Tensor dense =
          whole.allocate(name + ".weight", scaled ? TensorType.F32 : values.type(), out, in);
      long size = dense.type().blockBytes();
      boolean half = true;
      long k = 0;
      for (long o = 0; o < out; o++) {
        for (int i = 0; i < in; i++) {
          if ((u8(mask, o * width + i / 8) >> i % 8 & 1) == 0) {
            continue;
          }
          if (k == values.elements()) {
            throw fail(values.name(), "a value per bit of the mask", k);
          }
          if (scaled) {
            byte code = values.segment().get(ValueLayout.JAVA_BYTE, k);
            float x = (bytes ? code : e4m3(code & 0xff)) * scales.get().at(o, i);
            half &= isHalf(x);
            dense.segment().set(ByteCursor.FLOAT, (o * in + i) * size, x);
          } else {
            MemorySegment.copy(
                values.segment(), k * size, dense.segment(), (o * in + i) * size, size);
          }
          k++;
        }
      }
      if (k != values.elements()) {
        throw fail(values.name(), k + " values, one per bit", values.elements());
      }
      SparseEncoder.Zeros zeros = SparseEncoder.zeros(dense);
      if (twoOfFour && !zeros.twoOfFour()) {
        throw fail(mask.name(), "two of every four", "more");
      }
      TensorType type = scaled && half ? TensorType.F16 : dense.type();
      SparseMatrix m =
          twoOfFour
              ? SparseEncoder.twoOfFour(dense, type, store)
              : SparseEncoder.bitmap(dense, type, store);
      m.tensors().forEach(t -> result.put(t.name(), t));
    } catch (IllegalArgumentException e) {
      throw new WeightFileException(file.path() + ": " + e.getMessage(), e);
    }
  }

  // ---- bitsandbytes

  private void bitsAndBytes() {
    each(
        ".weight",
        s -> find(s + ".SCB").isPresent(),
        stem -> {
          Tensor q = need(stem + ".weight", "I8");
          long out = q.rows();
          long in = q.cols();
          float[] scale = Dequantizer.toFloats(need(stem + ".SCB", "F32", out));
          floats(
              stem,
              out,
              in,
              (o, row) -> {
                for (int i = 0; i < in; i++) {
                  row[i] =
                      q.segment().get(ValueLayout.JAVA_BYTE, o * in + i) * scale[(int) o] / 127f;
                }
              });
        });
    each(".weight", s -> find(s + ".weight.absmax").isPresent(), this::fourBits);
  }

  private void fourBits(String stem) {
    String at = stem + ".weight.";
    String nf4 = at + "quant_state.bitsandbytes__nf4";
    Tensor state = need(find(nf4).isPresent() ? nf4 : at + "quant_state.bitsandbytes__fp4", "U8");
    byte[] json = state.segment().toArray(ValueLayout.JAVA_BYTE);
    Metadata s = new JsonMetadata(state.name(), Json.flatten(file.path(), json));
    long block = s.integer("blocksize").orElse(64L);
    long[] shape = s.integers("shape").orElse(new long[0]);
    if (shape.length != 2 || block < 1 || shape[0] < 1 || shape[1] < 1) {
      throw fail(
          state.name() + ": shape, blocksize",
          "2 sizes, 1",
          new String(json, StandardCharsets.UTF_8));
    }
    long n = Math.multiplyExact(shape[0], shape[1]);
    Tensor q = need(stem + ".weight", "U8");
    if (q.bytes() != (n + 1) / 2) {
      throw fail(q.name(), (n + 1) / 2 + " bytes", q.bytes());
    }
    float[] map = Dequantizer.toFloats(need(at + "quant_map", "F32", 16));
    int blocks = Math.toIntExact((n + block - 1) / block);
    float[] absmax = absmax(at, blocks, s);
    long in = shape[1];
    floats(
        stem,
        shape[0],
        in,
        (o, row) -> {
          for (int i = 0; i < in; i++) {
            long e = o * in + i;
            row[i] = map[u8(q, e / 2) >> (e % 2 == 0 ? 4 : 0) & 15] * absmax[(int) (e / block)];
          }
        });
  }

  private float[] absmax(String at, int blocks, Metadata s) {
    if (find(at + "nested_absmax").isEmpty()) {
      return Dequantizer.toFloats(need(at + "absmax", "F32", blocks));
    }
    Tensor codes = need(at + "absmax", "U8", blocks);
    float[] map = Dequantizer.toFloats(need(at + "nested_quant_map", "F32", 256));
    float[] outer = Dequantizer.toFloats(need(at + "nested_absmax", "F32"));
    int size = s.integer("nested_blocksize").orElse(256L).intValue();
    float offset = s.number("nested_offset").orElse(0.0).floatValue();
    if (size < 1 || outer.length != (blocks + size - 1) / size) {
      throw fail(at + "nested_absmax", "one per " + size + " blocks", outer.length);
    }
    float[] all = new float[blocks];
    for (int k = 0; k < blocks; k++) {
      all[k] = map[u8(codes, k)] * outer[k / size] + offset;
    }
    return all;
  }

  // ---- results

  private static float[][] matrix(Tensor t) {
    return matrix(t, t.rows(), t.cols());
  }

  private static float[][] matrix(Tensor t, long rows, long columns) {
    float[] flat = Dequantizer.toFloats(t);
    int width = Math.toIntExact(columns);
    float[][] all = new float[Math.toIntExact(rows)][];
    for (int r = 0; r < all.length; r++) {
      all[r] = Arrays.copyOfRange(flat, r * width, (r + 1) * width);
    }
    return all;
  }

  /** Gives integer codes and the scale of each column of a row. */
  private interface IntegerRows {
    void row(long o, int[] codes, float[] scales);
  }

  private interface FloatRows {
    void row(long o, float[] row);
  }

  private void integers(String stem, long out, long in, IntegerRows rows) {
    integersNamed(stem + ".weight", out, in, rows);
  }

  private void integersNamed(String name, long out, long in, IntegerRows rows) {
    int n = Math.toIntExact(in);
    int[] codes = new int[n];
    float[] scales = new float[n];
    boolean blocks = n % 32 == 0;
    int low = 0;
    int high = 0;
    for (long o = 0; o < out && blocks; o++) {
      rows.row(o, codes, scales);
      for (int i = 0; i < n; i++) {
        low = Math.min(low, codes[i]);
        high = Math.max(high, codes[i]);
        blocks &= scales[i] == scales[i & -32] && isHalf(scales[i]);
      }
    }
    if (!blocks || low < -128 || high > 127) {
      floatsNamed(
          name,
          out,
          in,
          (o, row) -> {
            rows.row(o, codes, scales);
            for (int i = 0; i < n; i++) {
              row[i] = codes[i] * scales[i];
            }
          });
      return;
    }
    boolean four = low >= -8 && high <= 7;
    TensorType type = four ? TensorType.Q4_0 : TensorType.Q8_0;
    Tensor t = store.allocate(name, type, out, in);
    MemorySegment s = t.segment();
    long at = 0;
    for (long o = 0; o < out; o++) {
      rows.row(o, codes, scales);
      for (int b = 0; b < n; b += 32, at += type.blockBytes()) {
        s.set(ByteCursor.SHORT, at, Float.floatToFloat16(scales[b]));
        for (int j = 0; j < (four ? 16 : 32); j++) {
          int v = four ? codes[b + j] + 8 | codes[b + 16 + j] + 8 << 4 : codes[b + j];
          s.set(ValueLayout.JAVA_BYTE, at + 2 + j, (byte) v);
        }
      }
    }
    result.put(t.name(), t);
  }

  private static boolean isHalf(float x) {
    return Float.float16ToFloat(Float.floatToFloat16(x)) == x;
  }

  private void floats(String stem, long out, long in, FloatRows rows) {
    floatsNamed(stem + ".weight", out, in, rows);
  }

  private void floatsNamed(String name, long out, long in, FloatRows rows) {
    float[] row = new float[Math.toIntExact(in)];
    boolean half = true;
    for (long o = 0; o < out; o++) {
      rows.row(o, row);
      for (float x : row) {
        half &= isHalf(x);
        if (!Float.isFinite(x)) {
          throw fail(name + ": row " + o, "finite values", x);
        }
      }
    }
    TensorType type = half ? TensorType.F16 : TensorType.F32;
    Tensor t = store.allocate(name, type, out, in);
    for (long o = 0; o < out; o++) {
      rows.row(o, row);
      Quantizer.quantize(type, row, 0, row.length, t.segment(), o * t.rowBytes());
    }
    result.put(t.name(), t);
  }
}
