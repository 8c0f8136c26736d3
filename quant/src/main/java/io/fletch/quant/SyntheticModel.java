package io.fletch.quant;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.stream.IntStream;

/**
 * Writes GGUF models of real shapes with random weights: what a benchmark needs of a model without
 * its download. Every key that engines ask for is there, including a vocabulary with consistent
 * merges; every block is valid; values have the spread of trained weights, so activations neither
 * vanish nor overflow. The text they produce means nothing.
 *
 * <p>The content depends on shape, mix and seed alone. Stateless; each call uses all processors.
 */
public final class SyntheticModel {
  /** Control tokens at the end of each vocabulary. */
  private static final int CONTROL_TOKENS = 256;

  private static final int CHUNK_BYTES = 32 << 20;

  private SyntheticModel() {}

  /**
   * The shape of a model.
   *
   * @param architecture {@code llama}, {@code qwen3} or {@code llada}
   * @param vocabulary number of tokens, at least 1024
   * @param llama3Rope whether the file holds the frequency factors of Llama 3.1 and later
   * @param tied whether the output reuses the embedding
   * @param bytePairs whether the vocabulary is a byte-level BPE, else a SentencePiece one
   */
  public record Shape(
      String name,
      String architecture,
      int layers,
      int embedding,
      int feedForward,
      int heads,
      int kvHeads,
      int headDim,
      int vocabulary,
      int context,
      float ropeBase,
      boolean llama3Rope,
      boolean tied,
      boolean bytePairs) {
    /** Llama 3.2 1B. */
    public static final Shape LLAMA_3_2_1B =
        new Shape(
            "llama-3.2-1b",
            "llama",
            16,
            2048,
            8192,
            32,
            8,
            64,
            128256,
            131072,
            500000f,
            true,
            true,
            true);

    /** Llama 3.1 8B. */
    public static final Shape LLAMA_3_1_8B =
        new Shape(
            "llama-3.1-8b",
            "llama",
            32,
            4096,
            14336,
            32,
            8,
            128,
            128256,
            131072,
            500000f,
            true,
            false,
            true);

    /** Qwen3 8B. */
    public static final Shape QWEN3_8B =
        new Shape(
            "qwen3-8b",
            "qwen3",
            36,
            4096,
            12288,
            32,
            8,
            128,
            151936,
            40960,
            1000000f,
            false,
            false,
            true);

    /** LLaDA 8B: a diffusion model with as many key heads as heads. */
    public static final Shape LLADA_8B =
        new Shape(
            "llada-8b",
            "llada",
            32,
            4096,
            12288,
            32,
            32,
            128,
            126464,
            4096,
            500000f,
            false,
            false,
            true);

    /** The 15M model of the TinyStories family; its widths are no multiples of 256. */
    public static final Shape STORIES =
        new Shape(
            "stories", "llama", 6, 288, 768, 6, 6, 48, 32000, 256, 10000f, false, true, false);

    /** Checks what the other sizes rely on. */
    public Shape {
      if (!List.of("llama", "qwen3", "llada").contains(architecture)) {
        throw new IllegalArgumentException(
            "architecture: expected=llama, qwen3 or llada actual=" + architecture);
      }
      if (layers < 1
          || embedding < 32
          || embedding % 32 != 0
          || feedForward < 32
          || feedForward % 32 != 0
          || kvHeads < 1
          || heads < 1
          || heads % kvHeads != 0
          || headDim < 2
          || headDim % 2 != 0
          || heads * headDim % 32 != 0
          || vocabulary < 1024) {
        throw new IllegalArgumentException(
            "shape: expected=positive sizes, widths that are multiples of 32, heads a multiple of"
                + " kvHeads, vocabulary>=1024 actual="
                + name);
      }
    }

    /** The presets. */
    public static List<Shape> presets() {
      return List.of(LLAMA_3_2_1B, LLAMA_3_1_8B, QWEN3_8B, LLADA_8B, STORIES);
    }

    /**
     * The preset of that name.
     *
     * @throws IllegalArgumentException if there is none
     */
    public static Shape named(String name) {
      return presets().stream()
          .filter(s -> s.name.equals(name))
          .findFirst()
          .orElseThrow(() ->
              new IllegalArgumentException(
                  "shape: expected=one of "
                      + presets().stream().map(Shape::name).toList()
                      + " actual="
                      + name));
    }

    /** The same with another number of layers. */
    public Shape withLayers(int layers) {
      return new Shape(
          name,
          architecture,
          layers,
          embedding,
          feedForward,
          heads,
          kvHeads,
          headDim,
          vocabulary,
          context,
          ropeBase,
          llama3Rope,
          tied,
          bytePairs);
    }
  }

  /**
   * Which types the matrices have. As in common quantized files, the output matrix (or the
   * embedding that doubles as one) has more bits than the rest. Where a row is no multiple of a
   * type's block, the nearest type of 32-element blocks takes its place.
   */
  public enum Mix {
    F32(TensorType.F32, TensorType.F32, 0),
    F16(TensorType.F16, TensorType.F16, 1),
    BF16(TensorType.BF16, TensorType.BF16, 32),
    Q4_0(TensorType.Q4_0, TensorType.Q6_K, 2),
    Q4_1(TensorType.Q4_1, TensorType.Q6_K, 3),
    Q5_0(TensorType.Q5_0, TensorType.Q6_K, 8),
    Q5_1(TensorType.Q5_1, TensorType.Q6_K, 9),
    Q8_0(TensorType.Q8_0, TensorType.Q8_0, 7),
    Q2_K(TensorType.Q2_K, TensorType.Q6_K, 10),
    Q3_K(TensorType.Q3_K, TensorType.Q6_K, 11),
    Q4_K_S(TensorType.Q4_K, TensorType.Q6_K, 14),
    /** Half of the attn_v and ffn_down matrices are Q6_K. */
    Q4_K_M(TensorType.Q4_K, TensorType.Q6_K, 15),
    Q5_K_S(TensorType.Q5_K, TensorType.Q6_K, 16),
    /** Half of the attn_v and ffn_down matrices are Q6_K. */
    Q5_K_M(TensorType.Q5_K, TensorType.Q6_K, 17),
    Q6_K(TensorType.Q6_K, TensorType.Q6_K, 18),
    IQ4_NL(TensorType.IQ4_NL, TensorType.Q6_K, 25),
    IQ4_XS(TensorType.IQ4_XS, TensorType.Q6_K, 30),
    MXFP4(TensorType.MXFP4, TensorType.Q8_0, 38);

    private final TensorType base;
    private final TensorType output;
    private final int fileType;

    Mix(TensorType base, TensorType output, int fileType) {
      this.base = base;
      this.output = output;
      this.fileType = fileType;
    }

    private boolean isMedium() {
      return this == Q4_K_M || this == Q5_K_M;
    }
  }

  /**
   * Writes a model.
   *
   * @throws UncheckedIOException if writing fails; there is then no new file
   */
  public static void write(Path target, Shape shape, Mix mix, long seed) {
    write(target, shape, mix, seed, Map.of());
  }

  /**
   * The same with further metadata.
   *
   * @param options strings by their keys, such as {@code fletch.hidden_act}
   */
  public static void write(
      Path target, Shape shape, Mix mix, long seed, Map<String, String> options) {
    GgufWriter writer = new GgufWriter();
    options.forEach(writer::put);
    putHyperParameters(writer, shape, mix);
    if (shape.bytePairs()) {
      putBytePairs(writer, shape);
    } else {
      putSentencePieces(writer, shape);
    }
    try (Arena arena = Arena.ofShared()) {
      addTensors(new Tensors(writer, arena, seed), shape, mix);
      writer.write(target);
    }
  }

  private static void putHyperParameters(GgufWriter writer, Shape s, Mix mix) {
    String a = s.architecture() + ".";
    writer
        .put("general.architecture", s.architecture())
        .put("general.type", "model")
        .put("general.name", s.name() + " synthetic")
        .put("general.file_type", mix.fileType)
        .put("general.quantization_version", 2)
        .put(a + "block_count", s.layers())
        .put(a + "context_length", s.context())
        .put(a + "embedding_length", s.embedding())
        .put(a + "feed_forward_length", s.feedForward())
        .put(a + "attention.head_count", s.heads())
        .put(a + "attention.head_count_kv", s.kvHeads())
        .put(a + "attention.key_length", s.headDim())
        .put(a + "attention.value_length", s.headDim())
        .put(a + "attention.layer_norm_rms_epsilon", 1e-5f)
        .put(a + "rope.dimension_count", s.headDim())
        .put(a + "rope.freq_base", s.ropeBase())
        .put(a + "vocab_size", s.vocabulary());
  }

  /** A byte-level BPE: 256 bytes, then strings built by merging a shorter string and a letter. */
  private static void putBytePairs(GgufWriter writer, Shape s) {
    List<String> tokens = new ArrayList<>();
    List<String> merges = new ArrayList<>();
    for (int b = 0; b < 256; b++) {
      tokens.add(byteLetter(b));
    }
    int words = s.vocabulary() - CONTROL_TOKENS;
    List<String> letters = new ArrayList<>(List.of(byteLetter(' ')));
    for (char c = 'a'; c <= 'z'; c++) {
      letters.add(String.valueOf(c));
    }
    // Strings of length n+1 are all pairs of one of length n and a letter, so none comes twice.
    List<String> shorter = letters;
    while (tokens.size() < words) {
      List<String> longer = new ArrayList<>();
      for (String left : shorter) {
        for (String right : letters) {
          if (tokens.size() < words) {
            tokens.add(left + right);
            merges.add(left + " " + right);
            longer.add(left + right);
          }
        }
      }
      shorter = longer;
    }
    boolean qwen = s.architecture().equals("qwen3");
    List<String> control =
        qwen
            ? List.of("<|endoftext|>", "<|im_start|>", "<|im_end|>")
            : List.of(
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eot_id|>");
    for (int i = 0; i < CONTROL_TOKENS; i++) {
      tokens.add(i < control.size() ? control.get(i) : "<|reserved_" + i + "|>");
    }
    List<Integer> types = new ArrayList<>();
    for (int i = 0; i < tokens.size(); i++) {
      types.add(i < words ? 1 : 3);
    }
    boolean diffusion = s.architecture().equals("llada");
    if (diffusion) {
      writer
          .put("tokenizer.ggml.mask_token_id", words + control.size())
          .put("llada.attention.causal", false)
          .put("diffusion.shift_logits", false);
    }
    writer
        .put("tokenizer.ggml.model", "gpt2")
        .put("tokenizer.ggml.pre", qwen ? "qwen2" : diffusion ? "llada" : "llama-bpe")
        .putArray("tokenizer.ggml.tokens", GgufType.STRING, tokens)
        .putArray("tokenizer.ggml.token_type", GgufType.INT32, types)
        .putArray("tokenizer.ggml.merges", GgufType.STRING, merges)
        .put("tokenizer.ggml.bos_token_id", words)
        .put("tokenizer.ggml.eos_token_id", qwen ? words + 2 : words + 4)
        .put("tokenizer.ggml.add_bos_token", !qwen)
        .put(
            "tokenizer.chat_template",
            qwen
                ? "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
                    + "{{ m['content'] }}<|im_end|>\n"
                    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
                    + "{% endif %}"
                : "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
                    + "<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
                    + "{% if add_generation_prompt %}<|start_header_id|>assistant"
                    + "<|end_header_id|>\n\n{% endif %}");
  }

  /** How byte-level BPE writes a byte: printable ones as themselves, others from U+0100 on. */
  private static String byteLetter(int b) {
    if (b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE) {
      return String.valueOf((char) b);
    }
    int rank = b <= ' ' ? b : b <= 0xA0 ? b - 0x7F + 33 : 67;
    return String.valueOf((char) (0x100 + rank));
  }

  /** A SentencePiece BPE: three controls, 256 bytes, then pieces in order of their score. */
  private static void putSentencePieces(GgufWriter writer, Shape s) {
    List<String> tokens = new ArrayList<>(List.of("<unk>", "<s>", "</s>"));
    List<Integer> types = new ArrayList<>(List.of(2, 3, 3));
    for (int b = 0; b < 256; b++) {
      tokens.add(String.format("<0x%02X>", b));
      types.add(6);
    }
    List<String> letters = new ArrayList<>(List.of("▁"));
    for (char c = 'a'; c <= 'z'; c++) {
      letters.add(String.valueOf(c));
    }
    List<String> shorter = List.of("");
    while (tokens.size() < s.vocabulary()) {
      List<String> longer = new ArrayList<>();
      for (String left : shorter) {
        for (String right : letters) {
          if (tokens.size() < s.vocabulary()) {
            tokens.add(left + right);
            types.add(1);
            longer.add(left + right);
          }
        }
      }
      shorter = longer;
    }
    List<Float> scores = new ArrayList<>();
    for (int i = 0; i < tokens.size(); i++) {
      scores.add(i < 259 ? 0f : 259f - i);
    }
    writer
        .put("tokenizer.ggml.model", "llama")
        .put("tokenizer.ggml.pre", "default")
        .putArray("tokenizer.ggml.tokens", GgufType.STRING, tokens)
        .putArray("tokenizer.ggml.scores", GgufType.FLOAT32, scores)
        .putArray("tokenizer.ggml.token_type", GgufType.INT32, types)
        .put("tokenizer.ggml.bos_token_id", 1)
        .put("tokenizer.ggml.eos_token_id", 2)
        .put("tokenizer.ggml.unknown_token_id", 0)
        .put("tokenizer.ggml.add_bos_token", true)
        .put("tokenizer.ggml.add_eos_token", false);
  }

  private static void addTensors(Tensors out, Shape s, Mix mix) {
    int q = s.heads() * s.headDim();
    int kv = s.kvHeads() * s.headDim();
    TensorType base = mix.base;
    out.matrix(
        "token_embd.weight", s.tied() ? mix.output : base, s.vocabulary(), s.embedding(), 0.02f);
    if (s.llama3Rope()) {
      out.floats("rope_freqs.weight", llama3Factors(s));
    }
    for (int i = 0; i < s.layers(); i++) {
      String p = "blk." + i + ".";
      TensorType more = mix.isMedium() && usesMoreBits(i, s.layers()) ? TensorType.Q6_K : base;
      out.norm(p + "attn_norm.weight", s.embedding());
      out.matrix(p + "attn_q.weight", base, q, s.embedding());
      out.matrix(p + "attn_k.weight", base, kv, s.embedding());
      out.matrix(p + "attn_v.weight", more, kv, s.embedding());
      out.matrix(p + "attn_output.weight", base, s.embedding(), q);
      if (s.architecture().equals("qwen3")) {
        out.norm(p + "attn_q_norm.weight", s.headDim());
        out.norm(p + "attn_k_norm.weight", s.headDim());
      }
      out.norm(p + "ffn_norm.weight", s.embedding());
      out.matrix(p + "ffn_gate.weight", base, s.feedForward(), s.embedding());
      out.matrix(p + "ffn_up.weight", base, s.feedForward(), s.embedding());
      out.matrix(p + "ffn_down.weight", more, s.embedding(), s.feedForward());
    }
    out.norm("output_norm.weight", s.embedding());
    if (!s.tied()) {
      out.matrix("output.weight", mix.output, s.vocabulary(), s.embedding());
    }
  }

  /** The layers that the medium mixes of common files favour: both ends and every third between. */
  private static boolean usesMoreBits(int layer, int layers) {
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
  }

  /** Frequency factors of specs weights 1.7: factor 8 (32 for the 1B), low 1, high 4, 8192. */
  private static float[] llama3Factors(Shape s) {
    double factor = s.tied() ? 32 : 8;
    float[] result = new float[s.headDim() / 2];
    for (int i = 0; i < result.length; i++) {
      double wavelength = 2 * Math.PI * Math.pow(s.ropeBase(), 2.0 * i / s.headDim());
      if (wavelength < 8192 / 4.0) {
        result[i] = 1;
      } else if (wavelength > 8192) {
        result[i] = (float) factor;
      } else {
        double smooth = (8192 / wavelength - 1) / (4 - 1);
        result[i] = (float) (1 / ((1 - smooth) / factor + smooth));
      }
    }
    return result;
  }

  /** Adds tensors whose bytes are drawn while the file is written. */
  private static final class Tensors {
    private final GgufWriter writer;
    private final Arena arena;
    private MemorySegment chunk = MemorySegment.NULL;
    private long seed;

    Tensors(GgufWriter writer, Arena arena, long seed) {
      this.writer = writer;
      this.arena = arena;
      this.seed = seed;
    }

    void matrix(String name, TensorType wanted, int rows, int cols) {
      matrix(name, wanted, rows, cols, (float) (1 / Math.sqrt(cols)));
    }

    void matrix(String name, TensorType wanted, int rows, int cols, float spread) {
      TensorType type = cols % wanted.blockSize() == 0 ? wanted : fallback(wanted);
      long tensorSeed = mix64(++seed * 0x9E3779B97F4A7C15L);
      BlockSampler sampler = BlockSampler.of(type, spread);
      writer.add(
          name,
          type,
          new long[] {rows, cols},
          sink -> fill(sink, sampler, type.bytes((long) rows * cols), tensorSeed));
    }

    void norm(String name, int size) {
      SplittableRandom random = new SplittableRandom(mix64(++seed * 0x9E3779B97F4A7C15L));
      float[] values = new float[size];
      for (int i = 0; i < size; i++) {
        values[i] = 0.95f + 0.1f * (float) random.nextDouble();
      }
      floats(name, values);
    }

    void floats(String name, float[] values) {
      writer.add(
          name,
          TensorType.F32,
          new long[] {values.length},
          sink -> sink.write(MemorySegment.ofArray(values)));
    }

    private void fill(TensorSource.Sink sink, BlockSampler sampler, long bytes, long tensorSeed)
        throws IOException {
      int blockBytes = sampler.blockBytes();
      // A task's share is a whole number of blocks and of words, so that a byte of the tensor
      // depends on its position alone, whatever the number of processors.
      int share = blockBytes * 8 * Math.max(1, (1 << 20) / (blockBytes * 8));
      int shares = CHUNK_BYTES / share;
      long wanted = Math.min(bytes, (long) shares * share);
      if (chunk.byteSize() < wanted) {
        chunk = arena.allocate(wanted, 64);
      }
      for (long at = 0; at < bytes; at += (long) shares * share) {
        int size = (int) Math.min(bytes - at, (long) shares * share);
        long start = at;
        IntStream.range(0, (size + share - 1) / share)
            .parallel()
            .forEach(i -> {
              int from = i * share;
              int length = Math.min(share, size - from);
              sampler.fill(chunk.asSlice(from, length), tensorSeed + start + from);
            });
        sink.write(chunk.asSlice(0, size));
      }
    }

    private static TensorType fallback(TensorType type) {
      return switch (type) {
        case Q2_K, Q3_K, IQ4_XS -> TensorType.IQ4_NL;
        case Q4_K -> TensorType.Q5_0;
        case Q5_K -> TensorType.Q5_1;
        case Q6_K -> TensorType.Q8_0;
        default -> type;
      };
    }
  }

  private static long mix64(long z) {
    z = (z ^ z >>> 30) * 0xBF58476D1CE4E5B9L;
    z = (z ^ z >>> 27) * 0x94D049BB133111EBL;
    return z ^ z >>> 31;
  }

  /** Draws blocks of one type with a given standard deviation. Immutable. */
  private sealed interface BlockSampler {
    int blockBytes();

    /** Fills whole blocks; the content depends on the seed alone. */
    void fill(MemorySegment to, long seed);

    static BlockSampler of(TensorType type, float spread) {
      return switch (type) {
        case F32, F16, BF16 -> Plain.of(type, spread);
        default -> Blocks.of(type, spread);
      };
    }

    /** Elements picked from a table of normally distributed values. */
    record Plain(int blockBytes, int[] table) implements BlockSampler {
      private static final int TABLE_BITS = 12;

      static Plain of(TensorType type, float spread) {
        SplittableRandom random = new SplittableRandom(type.ggufId());
        int[] table = new int[1 << TABLE_BITS];
        for (int i = 0; i < table.length; i++) {
          float value = (float) (random.nextGaussian() * spread);
          table[i] =
              switch (type) {
                case F16 -> Float.floatToFloat16(value);
                case BF16 -> Float.floatToRawIntBits(value) >>> 16;
                default -> Float.floatToRawIntBits(value);
              };
        }
        return new Plain(type.blockBytes(), table);
      }

      @Override
      public void fill(MemorySegment to, long seed) {
        long word = 0;
        int left = 0;
        for (long at = 0; at < to.byteSize(); at += blockBytes) {
          if (left < TABLE_BITS) {
            word = mix64(seed + (at + 1) * 0x9E3779B97F4A7C15L);
            left = Long.SIZE;
          }
          int value = table[(int) (word & table.length - 1)];
          word >>>= TABLE_BITS;
          left -= TABLE_BITS;
          if (blockBytes == 2) {
            to.set(ByteCursor.SHORT, at, (short) value);
          } else {
            to.set(ByteCursor.INT, at, value);
          }
        }
      }
    }

    /**
     * Blocks of random bits whose scale is set afterwards.
     *
     * @param scaleAt where the scale lies in a block
     * @param minAt where the minimum lies, or -1
     * @param scales the scales to pick from, as stored; likewise the minima that centre the values
     */
    record Blocks(int blockBytes, int scaleAt, int minAt, short[] scales, short[] mins)
        implements BlockSampler {
      private static final int CHOICES = 16;

      static Blocks of(TensorType type, float spread) {
        int scaleAt =
            switch (type) {
              case Q2_K -> 80;
              case Q3_K -> 108;
              case Q6_K -> 208;
              default -> 0;
            };
        int minAt =
            switch (type) {
              case Q4_1, Q5_1, Q4_K, Q5_K -> 2;
              case Q2_K -> 82;
              default -> -1;
            };
        float min =
            switch (type) {
              case Q4_1, Q4_K -> 7.5f;
              case Q5_1, Q5_K -> 15.5f;
              case Q2_K -> 1.5f;
              default -> 0;
            };
        if (type == TensorType.Q4_1 || type == TensorType.Q5_1) {
          min = -min; // Added there, subtracted in the K types.
        }
        if (type == TensorType.MXFP4) {
          // The doubled codes have a mean square of 34.25; byte e stands for 2^(e-128).
          int e = (int) Math.round(Math.log(spread / Math.sqrt(34.25)) / Math.log(2)) + 128;
          short[] exponents = new short[CHOICES];
          for (int i = 0; i < CHOICES; i++) {
            exponents[i] = (short) (i % 4 == 0 ? e - 1 : e);
          }
          return new Blocks(type.blockBytes(), scaleAt, minAt, exponents, new short[CHOICES]);
        }
        float unit = spread / unitSpread(type, scaleAt, minAt, min);
        // Either sign, as in real files: the codes alone, such as -8 to 7, would have a mean.
        boolean signed =
            switch (type) {
              case Q4_0, Q5_0, IQ4_NL -> true;
              default -> false;
            };
        short[] scales = new short[CHOICES];
        short[] mins = new short[CHOICES];
        for (int i = 0; i < CHOICES; i++) {
          float scale = unit * (0.75f + 0.5f * i / (CHOICES - 1));
          scales[i] = Float.floatToFloat16(signed && i % 2 == 0 ? -scale : scale);
          mins[i] = Float.floatToFloat16(scale * min);
        }
        return new Blocks(type.blockBytes(), scaleAt, minAt, scales, mins);
      }

      /** The standard deviation of random blocks whose scale is 1. */
      private static float unitSpread(TensorType type, int scaleAt, int minAt, float min) {
        short[] one = new short[CHOICES];
        short[] minimum = new short[CHOICES];
        Arrays.fill(one, Float.floatToFloat16(1));
        Arrays.fill(minimum, Float.floatToFloat16(min));
        byte[] sample = new byte[64 * type.blockBytes()];
        MemorySegment segment = MemorySegment.ofArray(sample);
        new Blocks(type.blockBytes(), scaleAt, minAt, one, minimum).fill(segment, 1);
        float[] values = new float[64 * type.blockSize()];
        Dequantizer.dequantize(type, segment, 0, values, 0, values.length);
        double sum = 0;
        for (float v : values) {
          sum += (double) v * v;
        }
        return (float) Math.sqrt(sum / values.length);
      }

      @Override
      public void fill(MemorySegment to, long seed) {
        long size = to.byteSize();
        for (long at = 0; at < size; at += Long.BYTES) {
          long word = mix64(seed + (at + 1) * 0x9E3779B97F4A7C15L);
          if (size - at >= Long.BYTES) {
            to.set(ByteCursor.LONG, at, word);
          } else {
            for (long k = at; k < size; k++, word >>>= 8) {
              to.set(ValueLayout.JAVA_BYTE, k, (byte) word);
            }
          }
        }
        for (long at = 0; at < size; at += blockBytes) {
          int choice = to.get(ValueLayout.JAVA_BYTE, at + scaleAt) & CHOICES - 1;
          if (blockBytes == TensorType.MXFP4.blockBytes()) {
            to.set(ValueLayout.JAVA_BYTE, at, (byte) scales[choice]);
            continue;
          }
          to.set(ByteCursor.SHORT, at + scaleAt, scales[choice]);
          if (minAt >= 0) {
            to.set(ByteCursor.SHORT, at + minAt, mins[choice]);
          }
        }
      }
    }
  }
}
