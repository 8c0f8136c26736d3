package io.fletch.tools;

import io.fletch.quant.ArrowWriter;
import io.fletch.quant.LinearOp;
import io.fletch.quant.LinearOpTensors;
import io.fletch.quant.Quantizer;
import io.fletch.quant.TemporaryFile;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.BlockSpec;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.WeightTensors;
import io.fletch.runtime.convert.ModelConversion;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A model whose matrices are all dense, for what cannot take others: a Fletch Arrow file with
 * sparse and factorised matrices, written out beside the output for as long as the command runs,
 * one matrix in memory at a time. Models that need none of this are given as they are. Closing
 * removes the file; what a killed process left is removed by the next one with the same output.
 */
final class DenseCopy implements AutoCloseable {
  /** Names after the stem of a matrix, up to what {@link LinearOpTensors} reads. */
  private static final Pattern PART =
      Pattern.compile("(.+?)\\.(?:sp\\..*|[UV]\\..*|[AB]\\.diag_blocks|coefficients)");

  private final WeightFile file;
  private final Optional<TemporaryFile> temporary;
  private final Set<String> decoded;

  private DenseCopy(WeightFile file, Optional<TemporaryFile> temporary, Set<String> decoded) {
    this.file = file;
    this.temporary = temporary;
    this.decoded = decoded;
  }

  /**
   * A model as it is if nothing in it is encoded or it need not be dense.
   *
   * @param output the file is written beside it
   * @param isNeeded whether matrices must be dense
   * @param isExact whether values that are computed, codes or products, are kept as F32; else they
   *     are rounded to F16
   * @throws CommandException if a matrix has a form that cannot be written out
   */
  static DenseCopy of(WeightFile file, Path output, boolean isNeeded, boolean isExact)
      throws IOException {
    boolean isEncoded = file.tensors().keySet().stream().anyMatch(ModelConversion::isEncoded);
    Path path = output.toAbsolutePath().resolveSibling("." + output.getFileName() + ".dense.tmp");
    // Of a process that was killed.
    TemporaryFile.removeLeftovers(path);
    TemporaryFile.removeLeftover(path);
    if (!isNeeded || !isEncoded || file.format() != WeightFile.Format.ARROW) {
      return new DenseCopy(file, Optional.empty(), Set.of());
    }
    if (Files.exists(path)) {
      held(path, output).close();
    }
    Set<String> decoded = new TreeSet<>();
    try (TensorStore derived = TensorStore.create()) {
      HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
      HyperParameters hp =
          WeightTensors.of(file.format(), file.tensors(), declared.architecture(), derived)
              .fit(declared);
      ArrowWriter writer = new ArrowWriter().putAll(file.metadata());
      Map<String, LinearOp> matrices = matrices(file, hp);
      Set<String> done = new TreeSet<>();
      for (Tensor t : file.tensors().values()) {
        String stem = stem(t.name()).orElse(t.name().replaceAll("\\.weight$", ""));
        LinearOp op = matrices.get(stem);
        if (op == null) {
          writer.tensor(t);
        } else if (done.add(stem)) {
          String name = stem + ".weight";
          TensorType type = type(op).orElse(isExact ? TensorType.F32 : TensorType.F16);
          if (type(op).isEmpty()) {
            decoded.add(name);
          }
          long[] shape = {op.out(), op.in()};
          writer.tensor(name, type, shape, sink -> sink.write(bytes(op, type, name)));
        }
      }
      writer.write(path);
    }
    TemporaryFile held = held(path, output);
    try {
      return new DenseCopy(WeightFile.open(path), Optional.of(held), decoded);
    } catch (RuntimeException e) {
      held.close();
      throw e;
    }
  }

  private static TemporaryFile held(Path path, Path output) throws IOException {
    return TemporaryFile.hold(path)
        .orElseThrow(() -> new CommandException(path + ": another process makes " + output));
  }

  private static Optional<String> stem(String name) {
    Matcher m = PART.matcher(name);
    return m.matches() ? Optional.of(m.group(1)) : Optional.empty();
  }

  private static Map<String, LinearOp> matrices(WeightFile file, HyperParameters hp) {
    Map<String, LinearOp> all = new LinkedHashMap<>();
    for (String name : file.tensors().keySet()) {
      stem(name)
          .ifPresent(stem ->
              all.computeIfAbsent(
                  stem,
                  s ->
                      LinearOpTensors.find(file::tensor, s, width(file, hp, s))
                          .orElseThrow(() ->
                              new CommandException("tensor " + name + ": part of no matrix"))));
    }
    return all;
  }

  /** Columns of a matrix, which not every encoding tells. */
  private static long width(WeightFile file, HyperParameters hp, String stem) {
    if (stem.endsWith(".attn_output")) {
      int layer = Integer.parseInt(stem.substring(4, stem.indexOf('.', 4)));
      BlockSpec.Attention a = hp.blocks().get(layer).attention().orElseThrow();
      return (long) a.heads() * a.valueDim();
    }
    if (stem.endsWith(".ffn_down")) {
      String up = stem.replace(".ffn_down", ".ffn_up");
      return LinearOpTensors.find(file::tensor, up, hp.embeddingLength())
          .orElseThrow(() -> new CommandException("tensor " + up + ".weight: no such tensor"))
          .out();
    }
    return hp.embeddingLength();
  }

  /** The type that holds all elements exactly, where there is one. */
  private static Optional<TensorType> type(LinearOp op) {
    TensorType type =
        switch (op) {
          case LinearOp.Sparse s -> s.matrix().values().type();
          case LinearOp.Columns c when c.weight() instanceof LinearOp.Dense d -> d.weight().type();
          default -> TensorType.I8;
        };
    return switch (type) {
      case F32, F16, BF16 -> Optional.of(type);
      default -> Optional.empty();
    };
  }

  private static MemorySegment bytes(LinearOp op, TensorType type, String name) {
    try {
      float[] x = SparseRequest.floats(op);
      MemorySegment to = Arena.ofAuto().allocate(Math.max(1, type.bytes(x.length)), 64);
      if (x.length > 0) {
        Quantizer.quantize(type, x, 0, x.length, to, 0);
      }
      return to.asSlice(0, type.bytes(x.length));
    } catch (IllegalArgumentException e) {
      throw new CommandException("tensor " + name + ": " + e.getMessage());
    }
  }

  /** The model. */
  WeightFile file() {
    return file;
  }

  /** Whether that matrix was computed and has no type of its own. */
  boolean isDecoded(String name) {
    return decoded.contains(name);
  }

  @Override
  public void close() {
    if (temporary.isEmpty()) {
      return;
    }
    file.close();
    try {
      temporary.get().close();
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }
}
