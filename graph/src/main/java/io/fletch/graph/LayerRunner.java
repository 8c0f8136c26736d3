package io.fletch.graph;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;

/**
 * Runs the layers of a graph one after the other over many sequences, in float32 on the heap, and
 * shows an observer what goes into each linear layer: what calibration needs (specs weights 4.1).
 * Between layers only their outputs are held; within one, the values of one sequence and the
 * weights of the layer. A layer may be run several times, with its matrices replaced.
 *
 * <p>No gates, no cache: every sequence starts at position 0 and sees itself. Used by one thread,
 * which also calls the observer; the work inside is spread over the common pool, and no result
 * depends on how.
 */
public final class LayerRunner {
  /** Sees inputs of linear layers. */
  @FunctionalInterface
  public interface Observer {
    /**
     * A linear layer is about to run.
     *
     * @param op whose input value tells which layers share an input
     * @param x {@code rows} rows of {@code op.in().width()} elements; valid during the call
     */
    void linear(Op.Linear op, float[] x, int rows);
  }

  /** Sees values of a layer that has run. */
  @FunctionalInterface
  public interface ValueObserver {
    /**
     * The current layer has run over a sequence.
     *
     * @param sequence its index
     * @param values those of the layer, and what it read of earlier ones, by the graph's value;
     *     rows after rows, not to be changed
     */
    void ran(int sequence, Function<Value, float[]> values);
  }

  private static final Pattern LAYER = Pattern.compile("blk\\.(\\d+)\\..*");

  private final Graph graph;
  private final boolean causal;
  private final List<List<Op>> layers = new ArrayList<>();
  private final List<Op> before = new ArrayList<>();
  private final Map<String, float[]> replaced = new HashMap<>();

  /** Matrices of the layer that ran last, transposed. */
  private final Map<Tensor, float[][]> transposed = new HashMap<>();

  private int current = -1;
  private List<Map<Value, float[]>> states = List.of();
  private int[][] sequences = new int[0][];

  /**
   * Splits a graph into its layers by the names of its values.
   *
   * @param causal whether a row sees only the rows before it
   * @throws GraphException if the graph has none
   */
  public LayerRunner(Graph graph, boolean causal) {
    this.graph = graph;
    this.causal = causal;
    List<Op> group = before;
    for (Op op : graph.ops()) {
      if (op.output().isPresent()) {
        Matcher name = LAYER.matcher(op.output().get().name());
        if (name.matches()) {
          int layer = Integer.parseInt(name.group(1));
          while (layers.size() <= layer) {
            layers.add(new ArrayList<>());
          }
          group = layers.get(layer);
        } else if (!layers.isEmpty()) {
          break;
        }
      }
      group.add(op);
    }
    if (layers.isEmpty()) {
      throw new GraphException("the graph has no layers named blk.N: " + graph.name());
    }
  }

  /** Number of layers. */
  public int layers() {
    return layers.size();
  }

  /** The linear layers of a layer, in order. */
  public List<Op.Linear> linears(int layer) {
    return layers.get(layer).stream()
        .filter(Op.Linear.class::isInstance)
        .map(Op.Linear.class::cast)
        .toList();
  }

  /** Starts with sequences of token ids at the first layer. */
  public void start(int[][] tokens) {
    sequences = new int[tokens.length][];
    List<Map<Value, float[]>> fresh = new ArrayList<>();
    current = 0;
    transposed.clear();
    replaced.clear();
    for (int s = 0; s < tokens.length; s++) {
      sequences[s] = tokens[s].clone();
      Map<Value, float[]> values = new HashMap<>();
      execute(before, values, sequences[s], (op, x, rows) -> {});
      fresh.add(values);
    }
    states = fresh;
  }

  /** Uses other values for a matrix of the current layer, row-major {@code [out, in]}. */
  public void replace(Tensor weight, float[] values) {
    if (values.length != weight.elements()) {
      throw new IllegalArgumentException(
          weight + ": values: expected=" + weight.elements() + " actual=" + values.length);
    }
    replaced.put(weight.name(), values.clone());
    transposed.remove(weight);
  }

  /** Runs the current layer for the observer; nothing else comes of it. */
  public void observe(Observer observer) {
    List<Op> ops = layers.get(current);
    for (int s = 0; s < sequences.length; s++) {
      execute(ops, new HashMap<>(states.get(s)), sequences[s], observer);
    }
  }

  /** Runs the current layer and shows its values, sequence after sequence. */
  public void watch(ValueObserver observer) {
    List<Op> ops = layers.get(current);
    for (int s = 0; s < sequences.length; s++) {
      Map<Value, float[]> values = new HashMap<>(states.get(s));
      execute(ops, values, sequences[s], (op, x, rows) -> {});
      observer.ran(s, values::get);
    }
  }

  /** Runs the current layer, with what was replaced, and goes to the next one. */
  public void advance() {
    List<Op> ops = layers.get(current);
    Set<Value> later = new HashSet<>();
    for (int l = current + 1; l < layers.size(); l++) {
      layers.get(l).forEach(op -> later.addAll(op.inputs()));
    }
    for (int s = 0; s < sequences.length; s++) {
      Map<Value, float[]> values = states.get(s);
      execute(ops, values, sequences[s], (op, x, rows) -> {});
      values.keySet().removeIf(v -> current + 1 < layers.size() && !later.contains(v));
    }
    transposed.clear();
    replaced.clear();
    current++;
  }

  /** The outputs of the layer before the current one, rows after rows, of a sequence. */
  float[] state(int sequence, Value value) {
    return states.get(sequence).get(value);
  }

  private void execute(List<Op> ops, Map<Value, float[]> values, int[] tokens, Observer observer) {
    Map<Integer, Op.KvStore> stored = new LinkedHashMap<>();
    for (Op op : ops) {
      if (op instanceof Op.KvStore kv) {
        stored.put(kv.spec().layer(), kv);
        continue;
      }
      float[] out =
          switch (op) {
            case Op.Embedding o -> embedding(o, tokens);
            case Op.RmsNorm o -> ReferenceExecutable.rmsNorm(o, values.get(o.in()));
            case Op.LayerNorm o -> ReferenceExecutable.layerNorm(o, values.get(o.in()));
            case Op.Linear o -> {
              float[] x = values.get(o.in());
              observer.linear(o, x, tokens.length);
              yield linear(o, x, tokens.length);
            }
            case Op.Rope o -> rope(o, values.get(o.in()));
            case Op.Attention o -> {
              Op.KvStore kv = stored.get(o.spec().layer());
              yield attention(
                  o.spec(),
                  values.get(o.query()),
                  values.get(kv.key()),
                  values.get(kv.value()),
                  tokens.length);
            }
            case Op.Activate o -> activate(o, values);
            case Op.Add o -> add(o, values.get(o.residual()), values.get(o.branch()));
            case Op.Replace o -> values.get(o.branch());
            case Op.KeepLargest o -> ReferenceExecutable.keepLargest(o, values.get(o.in()));
            case Op.Scale o -> ReferenceExecutable.scale(o, values.get(o.in()));
            case Op.Affine o -> ReferenceExecutable.affine(o, values.get(o.in()));
            case Op.SoftCap o -> ReferenceExecutable.softCap(o, values.get(o.in()));
            case Op.Slice o -> ReferenceExecutable.slice(o, values.get(o.in()));
            case Op.Gather o -> ReferenceExecutable.gather(o, values);
            case Op.Route o -> ReferenceExecutable.route(o, values.get(o.scores()));
            case Op.ExpertLinear o ->
                ReferenceExecutable.experts(o, values.get(o.in()), values.get(o.routing()));
            case Op.Mix o ->
                ReferenceExecutable.mix(o, values.get(o.in()), values.get(o.routing()));
            // Layers are run as if nothing was ever decided.
            case Op.SkipSimilar o -> values.get(o.after());
            case Op.RouteUnit o -> values.get(o.scores());
            case Op.SelectRows _, Op.KvStore _, Op.Input _, Op.Adapt _ ->
                throw new GraphException("not part of a layer: " + op);
          };
      op.output().ifPresent(v -> values.put(v, out));
    }
  }

  private static float[] embedding(Op.Embedding o, int[] tokens) {
    int n = o.out().width();
    float[] y = new float[tokens.length * n];
    for (int r = 0; r < tokens.length; r++) {
      int index =
          switch (o.index()) {
            case TOKEN -> tokens[r];
            case POSITION -> r;
            case FIRST -> 0;
          };
      Dequantizer.row(o.table(), index, y, r * n);
      for (int i = r * n; i < (r + 1) * n; i++) {
        y[i] *= o.scale();
      }
    }
    return y;
  }

  private float[] linear(Op.Linear o, float[] x, int rows) {
    int in = o.in().width();
    int out = o.out().width();
    float[] y = new float[rows * out];
    if (o.weight() instanceof LinearOp.Dense dense) {
      float[][] w = transposed.computeIfAbsent(dense.weight(), this::transpose);
      IntStream.range(0, rows).parallel().forEach(r -> product(x, r * in, in, w, y, r * out, out));
    } else {
      ReferenceExecutable.product(o.weight(), x, rows, y);
    }
    if (o.bias().isPresent()) {
      float[] bias = Dequantizer.toFloats(o.bias().get());
      for (int i = 0; i < y.length; i++) {
        y[i] += bias[i % out];
      }
    }
    return y;
  }

  /**
   * The outputs lie side by side, and all arrays of the inner loop have the same index, without
   * which the compiler makes no vectors of it.
   */
  private static void product(float[] x, int at, int in, float[][] w, float[] y, int to, int out) {
    float[] sum = new float[out];
    int j = 0;
    for (; j + 4 <= in; j += 4) {
      float a = x[at + j];
      float b = x[at + j + 1];
      float c = x[at + j + 2];
      float d = x[at + j + 3];
      float[] p = w[j];
      float[] q = w[j + 1];
      float[] r = w[j + 2];
      float[] s = w[j + 3];
      for (int i = 0; i < out; i++) {
        sum[i] += a * p[i] + b * q[i] + c * r[i] + d * s[i];
      }
    }
    for (; j < in; j++) {
      for (int i = 0; i < out; i++) {
        sum[i] += x[at + j] * w[j][i];
      }
    }
    System.arraycopy(sum, 0, y, to, out);
  }

  /** Column j of the matrix as array j. */
  private float[][] transpose(Tensor weight) {
    int in = Math.toIntExact(weight.cols());
    int out = Math.toIntExact(weight.rows());
    float[] values = replaced.get(weight.name());
    float[] from = values == null ? Dequantizer.toFloats(weight) : values;
    float[][] w = new float[in][out];
    for (int o = 0; o < out; o++) {
      for (int j = 0; j < in; j++) {
        w[j][o] = from[o * in + j];
      }
    }
    return w;
  }

  private static float[] rope(Op.Rope o, float[] x) {
    float[] y = x.clone();
    float[] frequency = o.spec().inverseFrequency();
    int width = o.in().width();
    int pairs = frequency.length;
    boolean adjacent = o.spec().style() == RopeSpec.Style.NORM;
    for (int r = 0; r < x.length / width; r++) {
      for (int i = 0; i < pairs; i++) {
        double angle = (double) r * frequency[i];
        double cos = Math.cos(angle) * o.spec().magnitude();
        double sin = Math.sin(angle) * o.spec().magnitude();
        for (int h = 0; h < o.heads(); h++) {
          int head = r * width + h * o.headDim();
          int p = head + (adjacent ? 2 * i : i);
          int q = head + (adjacent ? 2 * i + 1 : i + pairs);
          y[p] = (float) (x[p] * cos - x[q] * sin);
          y[q] = (float) (x[p] * sin + x[q] * cos);
        }
      }
    }
    return y;
  }

  private float[] attention(AttentionSpec spec, float[] q, float[] k, float[] v, int rows) {
    int out = spec.heads() * spec.valueDim();
    float[] y = new float[rows * out];
    IntStream.range(0, rows)
        .parallel()
        .forEach(r -> {
          int to = causal ? r + 1 : rows;
          int from = spec.window() > 0 ? Math.max(0, r + 1 - spec.window()) : 0;
          float[] p = new float[to - from];
          for (int h = 0; h < spec.heads(); h++) {
            attend(spec, h, q, k, v, r, from, to, p, y, r * out + h * spec.valueDim());
          }
        });
    return y;
  }

  private static void attend(
      AttentionSpec spec,
      int head,
      float[] q,
      float[] k,
      float[] v,
      int row,
      int from,
      int to,
      float[] p,
      float[] y,
      int at) {
    int kvHead = head / (spec.heads() / spec.kvHeads());
    int dim = spec.keyDim();
    int query = (row * spec.heads() + head) * dim;
    float max = Float.NEGATIVE_INFINITY;
    for (int s = from; s < to; s++) {
      int key = (s * spec.kvHeads() + kvHead) * dim;
      float dot = 0;
      for (int i = 0; i < dim; i++) {
        dot += q[query + i] * k[key + i];
      }
      dot *= spec.scale();
      if (spec.softCap() > 0) {
        dot = (float) (spec.softCap() * Math.tanh(dot / spec.softCap()));
      }
      p[s - from] = dot;
      max = Math.max(max, dot);
    }
    float sum = 0;
    for (int s = 0; s < to - from; s++) {
      p[s] = (float) Math.exp(p[s] - max);
      sum += p[s];
    }
    for (int s = from; s < to; s++) {
      float weight = p[s - from] / sum;
      int value = (s * spec.kvHeads() + kvHead) * spec.valueDim();
      for (int i = 0; i < spec.valueDim(); i++) {
        y[at + i] += weight * v[value + i];
      }
    }
  }

  private static float[] activate(Op.Activate o, Map<Value, float[]> values) {
    float[] up = values.get(o.up());
    float[] gate = o.gateHalf().map(values::get).orElse(null);
    float[] y = new float[up.length];
    IntStream.range(0, up.length / o.up().width())
        .parallel()
        .forEach(r -> {
          for (int i = r * o.up().width(); i < (r + 1) * o.up().width(); i++) {
            y[i] =
                gate == null
                    ? (float) ReferenceExecutable.activation(o.activation(), up[i])
                    : (float) (ReferenceExecutable.activation(o.activation(), gate[i]) * up[i]);
          }
        });
    return y;
  }

  private static float[] add(Op.Add o, float[] residual, float[] branch) {
    float[] y = new float[residual.length];
    for (int i = 0; i < y.length; i++) {
      y[i] = residual[i] + o.scale() * branch[i];
    }
    return y;
  }

  @Override
  public String toString() {
    return "LayerRunner of " + graph.name() + ", layer " + current + " of " + layers.size();
  }
}
