package io.fletch.tools;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.GgufType;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.QuantMix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.quant.prune.Flap;
import io.fletch.quant.prune.InputStatistics;
import io.fletch.runtime.arch.BlockSpec;
import io.fletch.runtime.calibrate.Calibration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;

/** FLAP (specs weights 4.6) of one model: GGUF to GGUF, widths of layers in its metadata. */
final class FlapRun {
  /** What is remembered of a layer between the passes. */
  private record Layer(
      BlockSpec.Attention attention,
      int width,
      InputStatistics output,
      InputStatistics down,
      double[] groups,
      double[] neurons) {}

  private final WeightFile file;
  private final ModelOutput.View view;
  private final Calibration calibration;
  private final ModelOutput out;
  private final Optional<TensorType> type;
  private final AtomicReference<String> doing;

  FlapRun(
      WeightFile file,
      ModelOutput.View view,
      Calibration calibration,
      ModelOutput out,
      Optional<TensorType> type,
      AtomicReference<String> doing) {
    this.file = file;
    this.view = view;
    this.calibration = calibration;
    this.out = out;
    this.type = type;
    this.doing = doing;
  }

  Map<String, Object> run(double sparsity) {
    if (file.format() != WeightFile.Format.GGUF || view.gguf() == null) {
      throw new UsageException("--method flap: expected=GGUF to GGUF");
    }
    List<Layer> layers = measure();
    BlockSpec.Attention first = layers.getFirst().attention();
    int perGroup = first.heads() / first.kvHeads();
    // Rows of q, k, v and columns of o against rows of gate, up and columns of down.
    double groupCost = (2.0 * perGroup + 2) * first.keyDim() / 3;
    List<Flap.Kept> kept =
        Flap.choose(
            layers.stream().map(Layer::groups).toList(),
            layers.stream().map(Layer::neurons).toList(),
            groupCost,
            sparsity);
    List<Object> reports = new ArrayList<>();
    double total = 0;
    double left = 0;
    for (int l = 0; l < layers.size(); l++) {
      Layer layer = layers.get(l);
      double all = groupCost * layer.groups().length + layer.width();
      double stays = groupCost * kept.get(l).groups().length + kept.get(l).neurons().length;
      total += all;
      left += stays;
      Map<String, Object> entry = new LinkedHashMap<>();
      entry.put("layer", l);
      entry.put("sparsity", 1 - stays / all);
      entry.put("heads", kept.get(l).groups().length * perGroup);
      entry.put("width", kept.get(l).neurons().length);
      reports.add(entry);
    }
    write(layers, kept);
    metadata(layers, kept, perGroup);
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("sparsity", 1 - left / total);
    report.put("layers", reports);
    return report;
  }

  private List<Layer> measure() {
    List<Layer> layers = new ArrayList<>();
    for (int l = 0; l < calibration.layers(); l++) {
      doing.set("measuring, layer " + (l + 1) + " of " + calibration.layers());
      BlockSpec block = calibration.block(l);
      BlockSpec.Attention a = block.attention().orElseThrow(() -> refused("a layer without it"));
      BlockSpec.FeedForward f =
          block.feedForward().orElseThrow(() -> refused("a layer without feed-forward unit"));
      if (a.fusedQkv()
          || a.qkNorm() == BlockSpec.QkNorm.FULL
          || a.keyDim() != a.valueDim()
          || f.fusedGateUp()
          || f.experts().isPresent()) {
        throw refused("fused projections, norms over all heads, or experts");
      }
      Map<String, InputStatistics> inputs = calibration.collect(0);
      String at = "blk." + l + ".";
      InputStatistics output = inputs.get(at + "attn_output.weight");
      InputStatistics down = inputs.get(at + "ffn_down.weight");
      double[] channels = Flap.channelScores(floats(at + "attn_output.weight"), output);
      double[] neurons = Flap.channelScores(floats(at + "ffn_down.weight"), down);
      int group = a.heads() / a.kvHeads() * a.valueDim();
      layers.add(new Layer(a, f.width(), output, down, Flap.groupScores(channels, group), neurons));
      calibration.advance();
    }
    return layers;
  }

  private static CommandException refused(String what) {
    return new CommandException("flap: this model is not supported: " + what);
  }

  private float[] floats(String name) {
    return Dequantizer.toFloats(file.tensor(name).orElseThrow());
  }

  private void write(List<Layer> layers, List<Flap.Kept> kept) {
    for (TensorCopy copy : view.tensors()) {
      doing.set(ModelOutput.line("writing", out.done(), view.tensors().size()));
      String name = copy.name();
      if (!name.startsWith("blk.")) {
        out.add(name, copy.source().type(), copy.shape(), copy.as(copy.source().type(), null));
        continue;
      }
      int dot = name.indexOf('.', 4);
      int l = Integer.parseInt(name.substring(4, dot));
      Layer layer = layers.get(l);
      BlockSpec.Attention a = layer.attention();
      int dim = a.keyDim();
      int perGroup = a.heads() / a.kvHeads();
      int[] neurons = kept.get(l).neurons();
      int[] queries = expanded(kept.get(l).groups(), perGroup * dim);
      int[] keys = expanded(kept.get(l).groups(), dim);
      switch (name.substring(dot + 1)) {
        case "attn_q.weight", "attn_q.bias" -> rows(copy, queries);
        case "attn_k.weight", "attn_k.bias", "attn_v.weight", "attn_v.bias" -> rows(copy, keys);
        case "ffn_gate.weight", "ffn_gate.bias", "ffn_up.weight", "ffn_up.bias" ->
            rows(copy, neurons);
        case "attn_output.weight" -> columns(copy, queries, layer.output(), "attn_output", l);
        case "ffn_down.weight" -> columns(copy, neurons, layer.down(), "ffn_down", l);
        // Written with the matrix.
        case "attn_output.bias", "ffn_down.bias" -> {}
        default ->
            out.add(name, copy.source().type(), copy.shape(), copy.as(copy.source().type(), null));
      }
    }
  }

  /** Indices of the elements of groups of {@code width}. */
  private static int[] expanded(int[] groups, int width) {
    int[] result = new int[groups.length * width];
    for (int i = 0; i < result.length; i++) {
      result[i] = groups[i / width] * width + i % width;
    }
    return result;
  }

  private void rows(TensorCopy copy, int[] rows) {
    Tensor source = copy.source();
    int cols = source.rank() == 1 ? 1 : Math.toIntExact(source.cols());
    float[] w = Dequantizer.toFloats(source);
    float[] kept = new float[rows.length * cols];
    for (int r = 0; r < rows.length; r++) {
      System.arraycopy(w, rows[r] * cols, kept, r * cols, cols);
    }
    add(copy.name(), source, kept, cols, source.rank() == 1);
  }

  private void columns(TensorCopy copy, int[] columns, InputStatistics input, String part, int l) {
    Tensor source = copy.source();
    int cols = Math.toIntExact(source.cols());
    int rows = Math.toIntExact(source.rows());
    float[] w = Dequantizer.toFloats(source);
    float[] kept = new float[rows * columns.length];
    boolean[] stays = new boolean[cols];
    for (int c : columns) {
      stays[c] = true;
    }
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns.length; c++) {
        kept[r * columns.length + c] = w[r * cols + columns[c]];
      }
    }
    float[] bias = Flap.bias(w, input.means(), stays);
    String name = "blk." + l + "." + part + ".bias";
    file.tensor(name)
        .map(Dequantizer::toFloats)
        .ifPresent(old -> {
          for (int i = 0; i < bias.length; i++) {
            bias[i] += old[i];
          }
        });
    add(copy.name(), source, kept, columns.length, false);
    add(name, source, bias, 1, true);
  }

  private void add(String name, Tensor source, float[] values, int cols, boolean vector) {
    long[] shape = vector ? new long[] {values.length} : new long[] {values.length / cols, cols};
    TensorType wanted =
        vector
            ? TensorType.F32
            : type.map(t -> QuantMix.fitting(t, cols))
                .orElse(source.type().isQuantized() ? TensorType.F16 : source.type());
    try (TensorStore store = TensorStore.create()) {
      Tensor tensor = store.floats(name, values, shape);
      out.add(name, wanted, shape, TensorCopy.of(tensor).as(wanted, null));
    }
  }

  private void metadata(List<Layer> layers, List<Flap.Kept> kept, int perGroup) {
    String at = file.metadata().string("general.architecture").orElseThrow() + ".";
    int[] groups = kept.stream().mapToInt(k -> k.groups().length).toArray();
    put(at + "attention.head_count", Arrays.stream(groups).map(g -> g * perGroup).toArray());
    put(at + "attention.head_count_kv", groups);
    put(at + "feed_forward_length", kept.stream().mapToInt(k -> k.neurons().length).toArray());
    // What followed from the number of heads must be said now.
    BlockSpec.Attention a = layers.getFirst().attention();
    view.gguf().put(at + "attention.key_length", a.keyDim());
    view.gguf().put(at + "attention.value_length", a.valueDim());
  }

  private void put(String key, int[] values) {
    GgufWriter writer = view.gguf();
    if (Arrays.stream(values).distinct().count() == 1) {
      writer.put(key, values[0]);
    } else {
      writer.putArray(key, GgufType.UINT32, Arrays.stream(values).boxed().toList());
    }
  }
}
