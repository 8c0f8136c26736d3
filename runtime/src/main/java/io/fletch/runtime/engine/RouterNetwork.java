package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Routing;
import io.fletch.graph.Activation;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.sampling.SamplingException;
import io.fletch.sampling.TokenRouter;
import io.fletch.sampling.WeightUse;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.Set;
import java.util.concurrent.locks.ReentrantLock;

/**
 * The published router network (specs/autoregressive.md 4, router input and shape), run as a graph
 * on the small model's backend: the hidden state behind the final norm, the embedding of the
 * proposed token and the largest logits, in falling order, through one projection, residual blocks
 * of LayerNorm and two layers with exact GELU, LayerNorm and one output. The score is the sigmoid
 * of that.
 *
 * <p>The file has the names of the PyTorch module, F32, F16 or BF16; widths and the number of
 * blocks and logits are those of its tensors:
 *
 * <ul>
 *   <li>{@code logits_projection.{weight,bias}}: {@code [d, k]}, {@code [d]}
 *   <li>{@code combined_projection}: {@code [w, 3 d]}, over hidden state, embedding, projected
 *       logits
 *   <li>{@code backbone.input_projection}: {@code [w, w]}
 *   <li>{@code backbone.blocks.N.layer_norm}, {@code .mlp.0}, {@code .mlp.3}: {@code [w]}, {@code
 *       [m, w]}, {@code [w, m]}
 *   <li>{@code backbone.output_layer.0}, {@code .1}: {@code [w]}, {@code [1, w]}
 *   <li>{@code token_embeddings.weight} {@code [tokens, d]}, or else the small model's own
 *       embedding
 * </ul>
 *
 * <p>Owned by the small model, whose memory it uses. One batch: threads take turns.
 */
final class RouterNetwork implements TokenRouter, AutoCloseable {
  /**
   * Threshold where the file's {@code __metadata__} has no {@code threshold}: that of the server.
   */
  private static final double THRESHOLD = 0.5;

  private static final float NORM_EPS = 1e-5f;

  private final Executable executable;
  private final TensorStore store;
  private final WeightFile file;
  private final KvCache kv;
  private final Batch batch;
  private final PassCost cost;
  private final int width;
  private final int top;
  private final int tokens;

  // Guarded by the lock.
  private final ReentrantLock turn = new ReentrantLock();
  private final float[] numbers;
  private final float[] heap;
  private final float[] result = new float[1];
  private final int[] token = new int[1];

  /** Reads tensors, checks their shapes, remembers which were used. */
  private static final class Weights {
    private final WeightFile file;
    private final Set<String> used = new HashSet<>();

    Weights(WeightFile file) {
      this.file = file;
    }

    /** A tensor; -1 stands for any size. */
    Tensor get(String name, long... shape) {
      used.add(name);
      Tensor t =
          file.tensor(name)
              .orElseThrow(() ->
                  new FletchException(file.path() + ": not a router: tensor " + name + ": absent"));
      boolean fits = t.rank() == shape.length && !t.type().isQuantized();
      for (int i = 0; fits && i < shape.length; i++) {
        fits = shape[i] == -1 ? t.dim(i) > 0 : t.dim(i) == shape[i];
      }
      if (!fits) {
        throw new FletchException(
            file.path()
                + ": tensor "
                + name
                + ": expected="
                + Arrays.toString(shape).replace("-1", "any")
                + " actual="
                + t);
      }
      return t;
    }

    boolean has(String name) {
      return file.tensor(name).isPresent();
    }

    void checkAllUsed() {
      for (String name : file.tensors().keySet()) {
        if (!used.contains(name)) {
          throw new FletchException(
              file.path() + ": tensor " + name + ": not part of a router that is known");
        }
      }
    }
  }

  private RouterNetwork(WeightFile file, LoadedModel small) {
    this.file = file;
    this.width = small.info().embeddingLength();
    this.store = TensorStore.create();
    try {
      Weights w = new Weights(file);
      this.top = Math.toIntExact(w.get("logits_projection.weight", width, -1).cols());
      Tensor table = table(w, small);
      this.tokens = Math.toIntExact(Math.min(table.rows(), small.definedTokens()));
      if (top > small.definedTokens()) {
        throw new FletchException(
            file.path()
                + ": logits of the router: expected=at most "
                + small.definedTokens()
                + " actual="
                + top);
      }
      Graph graph = graph(w, table);
      w.checkAllUsed();
      executable = small.compile(graph, 1);
    } catch (RuntimeException | Error e) {
      store.close();
      throw e;
    }
    try {
      cost = PassCost.of(executable);
      numbers = new float[width + top];
      heap = new float[top];
      kv = executable.newKvCache(1, KvCache.Type.F32);
      batch = executable.newBatch(1, 1);
    } catch (RuntimeException | Error e) {
      executable.close();
      store.close();
      throw e;
    }
  }

  /** Opens the network of a file, with its threshold; the small model owns both from then on. */
  static Routing open(WeightFile file, LoadedModel small) {
    OptionalDouble threshold =
        file.metadata()
            .string("__metadata__.threshold")
            .map(text -> {
              try {
                return OptionalDouble.of(Double.parseDouble(text));
              } catch (NumberFormatException e) {
                throw new FletchException(
                    file.path() + ": threshold: expected=a number actual=" + text, e);
              }
            })
            .orElse(OptionalDouble.empty());
    RouterNetwork network = new RouterNetwork(file, small);
    try {
      Routing routing = new Routing(small, network, threshold.orElse(THRESHOLD));
      small.own(network);
      return routing;
    } catch (RuntimeException | Error e) {
      network.closeButFile();
      throw e;
    }
  }

  private static Tensor table(Weights w, LoadedModel small) {
    int width = small.info().embeddingLength();
    if (w.has("token_embeddings.weight")) {
      Tensor own = w.get("token_embeddings.weight", -1, width);
      if (own.rows() < small.definedTokens()) {
        throw new FletchException(
            w.file.path()
                + ": tensor token_embeddings.weight: expected=at least "
                + small.definedTokens()
                + " rows actual="
                + own.rows());
      }
      return own;
    }
    for (Op op : small.executable().graph().ops()) {
      if (op instanceof Op.Embedding e && e.index() == Op.Embedding.Index.TOKEN) {
        return e.table();
      }
    }
    throw new IllegalStateException("a model without an embedding: " + small.name());
  }

  private Graph graph(Weights w, Tensor table) {
    Graph.Builder g = Graph.builder("router");
    Value embedding = g.embedding("embedding", table, 1);
    Value hidden = g.input("hidden", 0, width);
    Value logits = g.input("top_logits", width, top);
    Value projected = linear(g, w, "logits_projection", logits, width);
    Tensor combined = w.get("combined_projection.weight", -1, 3L * width);
    int inner = Math.toIntExact(combined.rows());
    // A product with three vectors side by side is the sum of three products.
    Value x =
        g.linear(
            "combined.hidden",
            hidden,
            columns(combined, 0),
            Optional.of(w.get("combined_projection.bias", inner)),
            Optional.empty());
    x = plus(g, x, g.linear("combined.token", embedding, columns(combined, 1), none(), none()));
    x = plus(g, x, g.linear("combined.logits", projected, columns(combined, 2), none(), none()));
    x = linear(g, w, "backbone.input_projection", x, inner);
    for (int i = 0; w.has("backbone.blocks." + i + ".layer_norm.weight"); i++) {
      String at = "backbone.blocks." + i + ".";
      Value n = norm(g, w, at + "layer_norm", x);
      int wide = Math.toIntExact(w.get(at + "mlp.0.weight", -1, inner).rows());
      Value up = linear(g, w, at + "mlp.0", n, wide);
      Value act = g.activate(at + "gelu", Activation.GELU_ERF, none(), up, none());
      x = plus(g, x, linear(g, w, at + "mlp.3", act, inner));
    }
    Value selected = g.selectRows("selected", x);
    Value n = norm(g, w, "backbone.output_layer.0", selected);
    return g.build(linear(g, w, "backbone.output_layer.1", n, 1));
  }

  private static <T> Optional<T> none() {
    return Optional.empty();
  }

  private static Value plus(Graph.Builder g, Value x, Value branch) {
    return g.add(branch.name() + ".sum", x, branch, 1, none());
  }

  private static Value linear(Graph.Builder g, Weights w, String name, Value in, int out) {
    Tensor weight = w.get(name + ".weight", out, in.width());
    return g.linear(
        name, in, LinearOp.dense(weight), Optional.of(w.get(name + ".bias", out)), none());
  }

  private static Value norm(Graph.Builder g, Weights w, String name, Value in) {
    int n = in.width();
    return g.layerNorm(
        name, in, w.get(name + ".weight", n), Optional.of(w.get(name + ".bias", n)), NORM_EPS);
  }

  /** The {@code part}-th third of the columns, as a matrix of its own. */
  private LinearOp columns(Tensor matrix, int part) {
    Tensor out = store.allocate(matrix.name() + "." + part, matrix.type(), matrix.rows(), width);
    long bytes = out.rowBytes();
    for (long r = 0; r < matrix.rows(); r++) {
      MemorySegment.copy(
          matrix.segment(), r * matrix.rowBytes() + part * bytes, out.segment(), r * bytes, bytes);
    }
    return LinearOp.dense(out);
  }

  @Override
  public int hiddenWidth() {
    return width;
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate) {
    throw new UnsupportedOperationException("this router needs hidden states");
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate, float[] hidden) {
    if (candidate < 0 || candidate >= tokens || hidden.length != width || vocabulary < top) {
      throw new IllegalArgumentException(
          "router: expected a candidate below "
              + tokens
              + ", hidden width "
              + width
              + " and at least "
              + top
              + " logits: actual="
              + candidate
              + ", "
              + hidden.length
              + ", "
              + vocabulary);
    }
    turn.lock();
    try {
      System.arraycopy(hidden, 0, numbers, 0, width);
      largest(logits, vocabulary);
      token[0] = candidate;
      batch.clear();
      batch.append(kv, token, 0, 1);
      batch.input(0, numbers);
      batch.wantLogits(0);
      executable.forward(batch);
      batch.logits(0, result);
      if (Float.isNaN(result[0])) {
        throw new SamplingException("the router gives no number for token " + candidate);
      }
      return 1 / (1 + Math.exp(-result[0]));
    } finally {
      turn.unlock();
    }
  }

  /** The largest logits into the second part of the numbers, in falling order. */
  private void largest(float[] logits, int vocabulary) {
    // The smallest of those kept is on top.
    System.arraycopy(logits, 0, heap, 0, top);
    for (int i = top / 2 - 1; i >= 0; i--) {
      sink(i, top);
    }
    for (int i = top; i < vocabulary; i++) {
      if (logits[i] > heap[0]) {
        heap[0] = logits[i];
        sink(0, top);
      }
    }
    for (int n = top - 1; n >= 0; n--) {
      numbers[width + n] = heap[0];
      heap[0] = heap[n];
      sink(0, n);
    }
  }

  private void sink(int from, int n) {
    int at = from;
    while (2 * at + 1 < n) {
      int child = 2 * at + 1;
      if (child + 1 < n && heap[child + 1] < heap[child]) {
        child++;
      }
      if (heap[at] <= heap[child]) {
        return;
      }
      float swapped = heap[at];
      heap[at] = heap[child];
      heap[child] = swapped;
      at = child;
    }
  }

  @Override
  public WeightUse cost() {
    return new WeightUse(0, cost.bytes(true), cost.parameters());
  }

  @Override
  public String name() {
    return "network";
  }

  /** Itself: threads take turns. */
  @Override
  public TokenRouter copy() {
    return this;
  }

  private void closeButFile() {
    batch.close();
    kv.close();
    executable.close();
    store.close();
  }

  @Override
  public void close() {
    closeButFile();
    file.close();
  }
}
