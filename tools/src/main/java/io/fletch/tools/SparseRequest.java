package io.fletch.tools;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.QuantMix;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;

/**
 * How the matrices of layers are to be stored: {@code --sparse} and {@code --sparse-type}.
 *
 * @param kind encoding, or the smallest that a matrix allows
 * @param rows rows of a block; 0 but for blocks
 * @param columns columns of a block
 * @param values type of kept values; empty for that of the matrix, F16 where it is quantized
 */
record SparseRequest(Kind kind, int rows, int columns, Optional<TensorType> values) {
  /** Encodings. */
  enum Kind {
    AUTO,
    BITMAP,
    TWO_OF_FOUR,
    BLOCK,
    COLUMNS
  }

  private static final Pattern BLOCK = Pattern.compile("block:(\\d{1,5})x(\\d{1,5})");

  /** Matrices of layers that the graph takes in any form. */
  private static final Pattern MATRIX =
      Pattern.compile(
          "blk\\.\\d+\\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_shexp)?)\\.weight");

  /** Options of commands that write sparse matrices. */
  static List<org.apache.commons.cli.Option> options() {
    return List.of(
        Command.value(
            "sparse",
            "KIND",
            "store the layers' matrices without their zeros: bitmap, 2:4, block:ROWSxCOLUMNS,"
                + " columns, or auto for the smallest, dense included; needs -o NAME.arrow"),
        Command.value(
            "sparse-type",
            "T",
            "type of the values that are kept, such as f16, q8_0 or q4_0 (default: that of the"
                + " matrix, f16 for quantized ones)"));
  }

  /** What the options ask for, if anything. */
  static Optional<SparseRequest> of(Arguments arguments, Path output) {
    Optional<String> text = arguments.string("sparse");
    Optional<TensorType> values = arguments.string("sparse-type").map(SparseRequest::type);
    if (text.isEmpty()) {
      if (values.isPresent()) {
        throw new UsageException("--sparse-type: only with --sparse");
      }
      return Optional.empty();
    }
    if (ModelOutput.format(output) != WeightFile.Format.ARROW) {
      throw new UsageException("--sparse: needs --output NAME.arrow actual=" + output);
    }
    Matcher block = BLOCK.matcher(text.get());
    if (block.matches()) {
      int rows = Integer.parseInt(block.group(1));
      int columns = Integer.parseInt(block.group(2));
      return Optional.of(new SparseRequest(Kind.BLOCK, rows, columns, values));
    }
    Kind kind =
        switch (text.get()) {
          case "auto" -> Kind.AUTO;
          case "bitmap" -> Kind.BITMAP;
          case "2:4" -> Kind.TWO_OF_FOUR;
          case "columns" -> Kind.COLUMNS;
          default ->
              throw new UsageException(
                  "--sparse: expected=auto|bitmap|2:4|block:ROWSxCOLUMNS|columns actual="
                      + text.get());
        };
    return Optional.of(new SparseRequest(kind, 0, 0, values));
  }

  private static TensorType type(String text) {
    for (TensorType type : TensorType.values()) {
      boolean number =
          switch (type) {
            case I8, I16, I32, I64, F64 -> false;
            default -> true;
          };
      if (number && type.name().equals(text.toUpperCase(Locale.ROOT))) {
        return type;
      }
    }
    throw new UsageException("--sparse-type: expected=a type such as f16 or q4_0 actual=" + text);
  }

  /** Whether a tensor is one of those that {@code --sparse} is about, by its name in GGUF. */
  static boolean takesPart(TensorCopy copy) {
    return copy.shape().length == 2 && MATRIX.matcher(copy.name()).matches();
  }

  /**
   * A matrix in the form asked for; of AUTO the smallest that holds it, dense on a tie.
   *
   * @param dense type if it stays dense
   * @param store owns what is made
   * @throws CommandException if the form cannot hold the matrix
   */
  LinearOp encode(TensorCopy copy, TensorType dense, TensorStore store) {
    Tensor source = copy.source();
    Tensor matrix = store.allocate(copy.name(), source.type(), copy.shape());
    long[] at = {0};
    try {
      copy.as(source.type(), null)
          .writeTo(bytes -> {
            MemorySegment.copy(bytes, 0, matrix.segment(), at[0], bytes.byteSize());
            at[0] += bytes.byteSize();
          });
      return encode(matrix, dense, store);
    } catch (java.io.IOException e) {
      throw new java.io.UncheckedIOException(e);
    } catch (IllegalArgumentException e) {
      throw new CommandException("--sparse: " + e.getMessage());
    }
  }

  LinearOp encode(Tensor matrix, TensorType dense, TensorStore store) {
    TensorType type = values.orElse(dense.isQuantized() ? TensorType.F16 : dense);
    return switch (kind) {
      case BITMAP -> new LinearOp.Sparse(SparseEncoder.anyBitmap(matrix, type, store));
      case TWO_OF_FOUR -> new LinearOp.Sparse(SparseEncoder.twoOfFour(matrix, type, store));
      case BLOCK -> new LinearOp.Sparse(SparseEncoder.block(matrix, rows, columns, type, store));
      case COLUMNS -> SparseEncoder.columns(matrix, type, store);
      case AUTO -> smallest(matrix, QuantMix.fitting(dense, matrix.cols()), type, store);
    };
  }

  private static LinearOp smallest(
      Tensor matrix, TensorType dense, TensorType type, TensorStore store) {
    SparseEncoder.Zeros zeros = SparseEncoder.zeros(matrix);
    int block = type.blockSize();
    long cols = matrix.cols();
    List<LinearOp> forms = new ArrayList<>();
    forms.add(LinearOp.dense(as(matrix, dense, store)));
    if (zeros.twoOfFour() && cols / 2 % block == 0) {
      forms.add(new LinearOp.Sparse(SparseEncoder.twoOfFour(matrix, type, store)));
    }
    long kept = cols - zeros.zeroColumns();
    if (zeros.zeroColumns() > 0 && kept > 0 && kept % block == 0) {
      forms.add(SparseEncoder.columns(matrix, type, store));
    }
    forms.add(new LinearOp.Sparse(SparseEncoder.anyBitmap(matrix, type, store)));
    return forms.stream().min(Comparator.comparingLong(LinearOp::bytes)).orElseThrow();
  }

  /** The matrix in another type. */
  static Tensor as(Tensor matrix, TensorType type, TensorStore store) {
    if (type == matrix.type()) {
      return matrix;
    }
    Tensor to = store.allocate(matrix.name(), type, matrix.shape());
    long[] at = {0};
    try {
      TensorCopy.of(matrix)
          .as(type, null)
          .writeTo(bytes -> {
            MemorySegment.copy(bytes, 0, to.segment(), at[0], bytes.byteSize());
            at[0] += bytes.byteSize();
          });
    } catch (java.io.IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
    return to;
  }

  /** What a form is called in reports. */
  static String kind(LinearOp op) {
    return switch (op) {
      case LinearOp.Dense d -> "dense " + type(d.weight());
      case LinearOp.Sparse s -> kind(s.matrix()) + " " + s.matrix().valueType();
      case LinearOp.Columns c -> "columns " + type(c.tensors().getFirst());
      case LinearOp.LowRank f -> "low rank " + type(f.tensors().getFirst());
      case LinearOp.Sum s ->
          s.terms().stream()
              .map(t -> kind(t.op()))
              .collect(java.util.stream.Collectors.joining(" + "));
      default -> throw new IllegalArgumentException("no name: " + op);
    };
  }

  private static String kind(SparseMatrix m) {
    return m.kind().equals("nm") ? "2:4" : m.kind();
  }

  private static String type(Tensor t) {
    return t.type().name();
  }

  /** The elements of a matrix in any of these forms, row after row. */
  static float[] floats(LinearOp op) {
    return switch (op) {
      case LinearOp.Dense d -> Dequantizer.toFloats(d.weight());
      case LinearOp.Sparse s -> SparseMatrix.toFloats(s.matrix());
      case LinearOp.Columns c -> {
        int in = Math.toIntExact(c.in());
        float[] kept = floats(c.weight());
        int[] columns = c.indices();
        float[] all = new float[Math.toIntExact(c.out() * in)];
        for (int r = 0; r < c.out(); r++) {
          for (int i = 0; i < columns.length; i++) {
            all[r * in + columns[i]] = kept[r * columns.length + i];
          }
        }
        yield all;
      }
      case LinearOp.LowRank f when f.inner() == LinearOp.Inner.IDENTITY ->
          product(floats(f.u()), floats(f.v()), Math.toIntExact(f.rank()), Math.toIntExact(f.in()));
      case LinearOp.Sum s -> {
        float[] all = new float[Math.toIntExact(s.out() * s.in())];
        for (LinearOp.Term term : s.terms()) {
          float[] part = floats(term.op());
          for (int i = 0; i < all.length; i++) {
            all[i] += term.coefficient() * part[i];
          }
        }
        yield all;
      }
      case LinearOp.BlockDiagonal b -> {
        int rows = Math.toIntExact(b.blocks().dim(1));
        int columns = Math.toIntExact(b.blocks().dim(2));
        int in = Math.toIntExact(b.in());
        float[] stored = Dequantizer.toFloats(b.blocks());
        float[] all = new float[Math.toIntExact(b.out() * in)];
        for (int r = 0; r < b.out(); r++) {
          System.arraycopy(stored, r * columns, all, r * in + r / rows * columns, columns);
        }
        yield all;
      }
      case LinearOp.Chain c -> {
        int in = Math.toIntExact(c.in());
        float[] all = floats(c.ops().getFirst());
        for (LinearOp next : c.ops().subList(1, c.ops().size())) {
          all = product(floats(next), all, Math.toIntExact(next.in()), in);
        }
        yield all;
      }
      default -> throw new IllegalArgumentException("not one matrix: " + op);
    };
  }

  /** {@code u v}, of {@code inner} columns and rows. */
  private static float[] product(float[] u, float[] v, int inner, int in) {
    float[] all = new float[Math.multiplyExact(u.length / inner, in)];
    IntStream.range(0, u.length / inner)
        .parallel()
        .forEach(r -> {
          double[] sum = new double[in];
          for (int k = 0; k < inner; k++) {
            for (int c = 0; c < in; c++) {
              sum[c] += (double) u[r * inner + k] * v[k * in + c];
            }
          }
          for (int c = 0; c < in; c++) {
            all[r * in + c] = (float) sum[c];
          }
        });
    return all;
  }
}
