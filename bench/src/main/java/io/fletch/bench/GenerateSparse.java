package io.fletch.bench;

import io.fletch.quant.ArrowWriter;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.LinearOpTensors;
import io.fletch.quant.Quantizer;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.nio.file.Path;
import java.util.Map;
import java.util.SplittableRandom;

/**
 * Writes a Fletch Arrow file of a real shape with random sparse matrices, to measure decoding with:
 * {@code GenerateSparse LAYER.gguf OUT.arrow KIND TYPE DENSITY LAYERS}. {@code LAYER.gguf} is a
 * file of {@link GenerateModel} with one layer, which is repeated; KIND is dense, 2:4 or bitmap;
 * DENSITY is for bitmaps alone.
 */
public final class GenerateSparse {
  private GenerateSparse() {}

  /** Runs the generator. */
  public static void main(String[] args) {
    if (args.length < 6) {
      System.err.println("usage: GenerateSparse LAYER.gguf OUT.arrow KIND TYPE DENSITY LAYERS");
      System.exit(2);
    }
    TensorType type = TensorType.valueOf(args[3]);
    double density = Double.parseDouble(args[4]);
    int layers = Integer.parseInt(args[5]);
    SplittableRandom random = new SplittableRandom(1);
    try (WeightFile file = WeightFile.open(Path.of(args[0]));
        TensorStore store = TensorStore.create()) {
      ArrowWriter writer = new ArrowWriter();
      file.metadata()
          .entries()
          .forEach((k, v) -> writer.put(k, k.endsWith(".block_count") ? (Object) layers : v));
      for (Tensor t : file.tensors().values()) {
        if (!t.name().startsWith("blk.0.")) {
          writer.tensor(t);
          continue;
        }
        String part = t.name().substring("blk.0.".length());
        LinearOp op = t.rank() == 2 ? encode(t, args[2], type, density, random, store) : null;
        for (int layer = 0; layer < layers; layer++) {
          String name = "blk." + layer + "." + part;
          Map<String, Tensor> tensors =
              op == null
                  ? Map.of(name, t)
                  : LinearOpTensors.of(op, name.substring(0, name.lastIndexOf('.')));
          tensors.forEach(
              (n, x) -> writer.tensor(n, x.type(), x.shape(), sink -> sink.write(x.segment())));
        }
      }
      writer.write(Path.of(args[1]));
    }
  }

  private static LinearOp encode(
      Tensor t, String kind, TensorType type, double density, SplittableRandom r, TensorStore s) {
    float[] x = Dequantizer.toFloats(t);
    for (int i = 0; i < x.length; i += 4) {
      int first = r.nextInt(4);
      int second = (first + 1 + r.nextInt(3)) % 4;
      for (int k = 0; k < 4; k++) {
        boolean keep =
            switch (kind) {
              case "dense" -> true;
              case "2:4" -> k == first || k == second;
              case "bitmap" -> r.nextDouble() < density;
              default -> throw new IllegalArgumentException("kind: " + kind);
            };
        x[i + k] = keep ? x[i + k] : 0;
      }
    }
    Tensor masked = s.floats(t.name(), x, t.shape());
    SparseMatrix m =
        switch (kind) {
          case "dense" -> null;
          case "2:4" -> SparseEncoder.twoOfFour(masked, type, s);
          default -> SparseEncoder.anyBitmap(masked, type, s);
        };
    return m == null ? LinearOp.dense(Quantizer.quantize(masked, type, s)) : new LinearOp.Sparse(m);
  }
}
