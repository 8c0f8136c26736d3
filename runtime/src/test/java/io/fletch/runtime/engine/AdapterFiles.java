package io.fletch.runtime.engine;

import io.fletch.quant.GgufWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.SplittableRandom;

/** Random adapters of the demo models. */
final class AdapterFiles {
  private static final ValueLayout.OfShort SHORT = ValueLayout.JAVA_SHORT_UNALIGNED;

  private AdapterFiles() {}

  /**
   * A GGUF adapter of about half of a model's layers.
   *
   * @param type of the factors: F32, F16 or BF16
   * @param strength how much it changes, about 1 for a great deal
   */
  static Path gguf(Path model, Path to, int rank, TensorType type, double strength, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TensorStore store = TensorStore.create();
        WeightFile file = WeightFile.open(model)) {
      GgufWriter writer =
          new GgufWriter()
              .put("general.type", "adapter")
              .put("adapter.type", "lora")
              .put("adapter.lora.alpha", (float) rank);
      boolean first = true;
      for (Tensor t : file.tensors().values()) {
        String name = t.name();
        if (!name.matches("blk\\.\\d+\\.(attn_(q|k|v|output)|ffn_(up|gate|down))\\.weight")
            || !first && random.nextBoolean()) {
          continue;
        }
        first = false;
        double scale = strength * Math.sqrt(3.0 / (t.cols() * rank));
        writer.add(matrix(store, name + ".lora_a", type, rank, t.cols(), 1, random));
        writer.add(matrix(store, name + ".lora_b", type, t.rows(), rank, scale, random));
      }
      writer.write(to);
      return to;
    }
  }

  private static Tensor matrix(
      TensorStore store,
      String name,
      TensorType type,
      long rows,
      long cols,
      double scale,
      SplittableRandom random) {
    Tensor t = store.allocate(name, type, rows, cols);
    for (long i = 0; i < rows * cols; i++) {
      float v = (float) ((2 * random.nextDouble() - 1) * scale);
      switch (type) {
        case F32 -> t.segment().set(ValueLayout.JAVA_FLOAT, 4 * i, v);
        case F16 -> t.segment().set(SHORT, 2 * i, Float.floatToFloat16(v));
        default -> t.segment().set(SHORT, 2 * i, (short) (Float.floatToRawIntBits(v) >> 16));
      }
    }
    return t;
  }
}
