package io.fletch.runtime.calibrate;

import io.fletch.FletchException;
import io.fletch.graph.Graph;
import io.fletch.graph.LayerRunner;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.quant.prune.InputStatistics;
import io.fletch.runtime.arch.BlockSpec;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A model that runs over calibration tokens layer by layer: statistics of the inputs of a layer's
 * matrices are collected, the matrices may be replaced, and the next layer sees what the replaced
 * ones give. Memory: the residual stream of all tokens, and one layer. Used by one thread.
 */
public final class Calibration {
  private final Graph graph;
  private final LayerRunner runner;
  private final HyperParameters hp;
  private final int[][] sequences;
  private int layer;

  private Calibration(Graph graph, LayerRunner runner, HyperParameters hp, int[][] sequences) {
    this.graph = graph;
    this.runner = runner;
    this.hp = hp;
    this.sequences = sequences;
  }

  /**
   * Cuts tokens into sequences, evenly spread.
   *
   * @param count most sequences
   * @param length tokens of each
   * @throws FletchException if there are too few tokens for one
   */
  public static int[][] sequences(int[] tokens, int count, int length) {
    int whole = tokens.length / length;
    if (whole == 0) {
      throw new FletchException(
          "calibration text: expected=at least " + length + " tokens actual=" + tokens.length);
    }
    int n = Math.min(count, whole);
    int[][] sequences = new int[n][];
    for (int i = 0; i < n; i++) {
      int at = (int) ((long) i * whole / n) * length;
      sequences[i] = java.util.Arrays.copyOfRange(tokens, at, at + length);
    }
    return sequences;
  }

  /**
   * Starts at the first layer.
   *
   * @param file stays open meanwhile
   * @param derived takes tensors that must be computed; stays open meanwhile
   * @throws FletchException if the model cannot be run
   */
  public static Calibration start(WeightFile file, int[][] sequences, TensorStore derived) {
    HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
    WeightTensors weights =
        WeightTensors.of(file.format(), file.tensors(), declared.architecture(), derived);
    HyperParameters hp = weights.fit(declared);
    int length = 1;
    for (int[] sequence : sequences) {
      length = Math.max(length, sequence.length);
      for (int token : sequence) {
        if (token < 0 || token >= hp.vocabulary()) {
          throw new FletchException(
              "token: expected=0.." + (hp.vocabulary() - 1) + " actual=" + token);
        }
      }
    }
    if (hp.diffusionBlock() > 0) {
      throw new FletchException("calibration of block-causal diffusion models is not supported");
    }
    Graph graph =
        ModelGraph.build(hp, weights, Math.max(length, hp.contextLength()), "calibration");
    LayerRunner runner = new LayerRunner(graph, !hp.diffusion());
    Calibration calibration = new Calibration(graph, runner, hp, sequences);
    calibration.restart();
    return calibration;
  }

  /** Back to the first layer, nothing replaced. */
  public void restart() {
    runner.start(sequences);
    layer = 0;
  }

  /** Number of layers. */
  public int layers() {
    return runner.layers();
  }

  /** Tokens that run. */
  public long tokens() {
    long n = 0;
    for (int[] s : sequences) {
      n += s.length;
    }
    return n;
  }

  /** Shape of a layer's attention and feed-forward unit. */
  public BlockSpec block(int index) {
    return hp.blocks().get(index);
  }

  /** Matrices of the current layer that every row meets, in order. Experts are not among them. */
  public List<Tensor> matrices() {
    return runner.linears(layer).stream()
        .filter(op -> op.weight() instanceof LinearOp.Dense)
        .filter(op -> !op.output().orElseThrow().name().contains("ffn_gate_inp"))
        .map(op -> ((LinearOp.Dense) op.weight()).weight())
        .toList();
  }

  /**
   * Statistics of the inputs of the current layer's matrices, by name of the matrix in the file.
   * Matrices with the same input share them.
   *
   * @param gram most channels of an input for which second moments are wanted too
   */
  public Map<String, InputStatistics> collect(int gram) {
    Map<Value, InputStatistics> byInput = new LinkedHashMap<>();
    Map<Value, Op.Linear> first = new LinkedHashMap<>();
    for (Op.Linear op : runner.linears(layer)) {
      byInput.computeIfAbsent(op.in(), in -> new InputStatistics(in.width(), in.width() <= gram));
      first.putIfAbsent(op.in(), op);
    }
    runner.observe((op, x, rows) -> {
      if (first.get(op.in()).equals(op)) {
        byInput.get(op.in()).add(x, rows);
      }
    });
    Map<String, InputStatistics> result = new LinkedHashMap<>();
    for (Op.Linear op : runner.linears(layer)) {
      if (op.weight() instanceof LinearOp.Dense dense) {
        result.put(dense.weight().name(), byInput.get(op.in()));
      }
    }
    return result;
  }

  /** The graph that runs. */
  Graph graph() {
    return graph;
  }

  /** Runs the current layer and shows its values. */
  void watch(LayerRunner.ValueObserver observer) {
    runner.watch(observer);
  }

  /** Uses other values for a matrix of the current layer from now on. */
  public void replace(Tensor matrix, float[] values) {
    runner.replace(matrix, values);
  }

  /** Runs the current layer and goes to the next. */
  public void advance() {
    runner.advance();
    layer++;
  }
}
