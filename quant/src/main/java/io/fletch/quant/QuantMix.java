package io.fletch.quant;

import java.util.Arrays;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Recipes of types by name, such as {@code Q4_K_M}: which tensor of a GGUF model gets which type.
 * The rules are those of llama.cpp's quantize, so that files of the same name are comparable.
 *
 * <p>Matrices are quantized; vectors, norms and routers stay as they are. The output matrix (or the
 * embedding that serves as one) gets more bits than the rest; some layers' values and down
 * projections do in the K recipes.
 */
public enum QuantMix {
  F32(TensorType.F32, 0),
  F16(TensorType.F16, 1),
  BF16(TensorType.BF16, 32),
  Q4_0(TensorType.Q4_0, 2),
  Q4_1(TensorType.Q4_1, 3),
  Q5_0(TensorType.Q5_0, 8),
  Q5_1(TensorType.Q5_1, 9),
  Q8_0(TensorType.Q8_0, 7),
  Q2_K(TensorType.Q2_K, 10),
  Q3_K_S(TensorType.Q3_K, 11),
  Q3_K_M(TensorType.Q3_K, 12),
  Q3_K_L(TensorType.Q3_K, 13),
  Q4_K_S(TensorType.Q4_K, 14),
  Q4_K_M(TensorType.Q4_K, 15),
  Q5_K_S(TensorType.Q5_K, 16),
  Q5_K_M(TensorType.Q5_K, 17),
  Q6_K(TensorType.Q6_K, 18),
  IQ4_NL(TensorType.IQ4_NL, 25),
  IQ4_XS(TensorType.IQ4_XS, 30),
  /** All matrices as MXFP4, the output matrix as Q8_0. */
  MXFP4(TensorType.MXFP4, 38);

  /** What the rules look at besides a tensor. */
  public record Model(
      int layers, int headsPerKvHead, boolean eightExperts, boolean tied, boolean importance) {}

  private static final Pattern LAYER = Pattern.compile("blk\\.(\\d+)\\..*");

  private final TensorType type;
  private final int fileType;

  QuantMix(TensorType type, int fileType) {
    this.type = type;
    this.fileType = fileType;
  }

  /**
   * The recipe of a name, in any case.
   *
   * @throws IllegalArgumentException naming those that exist
   */
  public static QuantMix named(String name) {
    return Arrays.stream(values())
        .filter(mix -> mix.name().equalsIgnoreCase(name))
        .findFirst()
        .orElseThrow(() ->
            new IllegalArgumentException(
                "type: expected=one of " + Arrays.toString(values()) + " actual=" + name));
  }

  /** The type of most matrices. */
  public TensorType mainType() {
    return type;
  }

  /** {@code general.file_type}. */
  public int fileType() {
    return fileType;
  }

  /** Whether a tensor of that GGUF name and shape is quantized at all. */
  public static boolean takesPart(String name, long[] shape) {
    return shape.length >= 2
        && name.endsWith(".weight")
        && !name.endsWith("_norm.weight")
        && !name.contains("ffn_gate_inp")
        && !name.startsWith("position_embd")
        && !name.startsWith("token_types");
  }

  /** The type of a tensor that takes part. */
  public TensorType typeOf(String name, long[] shape, Model model) {
    return fitting(wanted(name, model), shape[shape.length - 1]);
  }

  /** The type itself, or where rows are no whole number of its blocks the next one that fits. */
  public static TensorType fitting(TensorType type, long cols) {
    TensorType result = type;
    if (cols % type.blockSize() != 0) {
      result =
          switch (type) {
            case Q2_K, Q3_K, IQ4_XS -> TensorType.IQ4_NL;
            case Q4_K -> TensorType.Q5_0;
            case Q5_K -> TensorType.Q5_1;
            case Q6_K -> TensorType.Q8_0;
            default -> TensorType.F16;
          };
    }
    return cols % result.blockSize() == 0 ? result : TensorType.F16;
  }

  private TensorType wanted(String name, Model model) {
    if (!type.isQuantized()) {
      return type;
    }
    if (name.equals("output.weight") || model.tied() && name.equals("token_embd.weight")) {
      return type == TensorType.Q8_0 || type == TensorType.MXFP4
          ? TensorType.Q8_0
          : TensorType.Q6_K;
    }
    Matcher layer = LAYER.matcher(name);
    if (!layer.matches()) {
      return type;
    }
    int i = Integer.parseInt(layer.group(1));
    if (name.contains("attn_v.weight")) {
      return values(i, model);
    }
    if (name.contains("attn_k.weight")) {
      return model.eightExperts() ? TensorType.Q8_0 : type;
    }
    if (name.contains("ffn_down")) {
      return down(i, model);
    }
    if (name.contains("attn_output.weight")) {
      return output(model);
    }
    if (name.contains("attn_qkv.weight")) {
      return switch (this) {
        case Q3_K_M, Q3_K_L -> TensorType.Q4_K;
        case Q4_K_M -> TensorType.Q5_K;
        case Q5_K_M -> TensorType.Q6_K;
        default -> type;
      };
    }
    return type;
  }

  private TensorType values(int i, Model model) {
    if (model.eightExperts()) {
      return TensorType.Q8_0;
    }
    return switch (this) {
      case Q2_K -> model.headsPerKvHead() >= 4 ? TensorType.Q4_K : TensorType.Q3_K;
      case Q3_K_M -> i < 2 ? TensorType.Q5_K : TensorType.Q4_K;
      case Q3_K_L -> TensorType.Q5_K;
      case IQ4_NL, IQ4_XS -> model.headsPerKvHead() >= 4 ? TensorType.Q5_K : type;
      case Q4_K_M, Q5_K_M -> moreBits(i, model.layers()) ? TensorType.Q6_K : type;
      case Q4_K_S -> i < 4 ? TensorType.Q5_K : type;
      default -> type;
    };
  }

  private TensorType down(int i, Model model) {
    int n = model.layers();
    return switch (this) {
      case Q2_K -> TensorType.Q3_K;
      case Q3_K_M -> i < n / 16 ? TensorType.Q5_K : TensorType.Q4_K;
      case Q3_K_L -> TensorType.Q5_K;
      case Q4_K_M, Q5_K_M -> moreBits(i, n) ? TensorType.Q6_K : type;
      case Q4_K_S -> i < n / 8 ? TensorType.Q5_K : type;
      case IQ4_NL, IQ4_XS -> i < n / 8 && !model.importance() ? TensorType.Q5_K : type;
      case Q4_0 -> i < n / 8 && model.importance() ? TensorType.Q4_1 : type;
      case Q5_0 -> i < n / 8 && model.importance() ? TensorType.Q5_1 : type;
      default -> type;
    };
  }

  private TensorType output(Model model) {
    if (model.eightExperts()) {
      return switch (this) {
        case Q2_K, Q3_K_S, Q3_K_M, Q4_K_S, Q4_K_M, IQ4_NL, IQ4_XS -> TensorType.Q5_K;
        default -> type;
      };
    }
    return switch (this) {
      case Q2_K -> TensorType.Q3_K;
      case Q3_K_M -> TensorType.Q4_K;
      case Q3_K_L -> TensorType.Q5_K;
      default -> type;
    };
  }

  /** The first and last eighth of the layers, and every third one between. */
  private static boolean moreBits(int i, int n) {
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
  }
}
