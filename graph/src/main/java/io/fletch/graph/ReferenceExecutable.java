package io.fletch.graph;

import io.fletch.graph.support.AbstractBatch;
import io.fletch.graph.support.PreparedAdapter;
import io.fletch.graph.support.Router;
import io.fletch.graph.support.Visibility;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Interprets a graph op by op. Forwards of several threads run one after the other. Nothing is
 * prepared or kept between forwards, so what an op does is what its method says.
 */
final class ReferenceExecutable implements Executable {
  private final Graph graph;
  private final int maxRows;
  private final Plan plan;
  private boolean closed;

  ReferenceExecutable(Graph graph, int maxRows) {
    if (maxRows < 1) {
      throw new IllegalArgumentException("maxRows: expected>=1 actual=" + maxRows);
    }
    this.graph = graph;
    this.maxRows = maxRows;
    plan = describe(graph, maxRows);
  }

  private static Plan describe(Graph graph, int maxRows) {
    List<Plan.Step> steps = new ArrayList<>();
    long weights = 0;
    for (Op op : graph.ops()) {
      long bytes = 0;
      long flops = 0;
      if (op instanceof Op.Linear l) {
        bytes = l.weight().bytes();
        flops = 2 * l.weight().in() * l.weight().out();
      } else if (op instanceof Op.Embedding e) {
        bytes = e.table().rowBytes();
      } else if (op instanceof Op.ExpertLinear e) {
        bytes = e.used() * e.experts().getFirst().bytes();
        flops = 2L * e.used() * e.experts().getFirst().elements();
      }
      weights += bytes;
      String name = op.output().map(Value::name).orElse("kv_store");
      steps.add(
          new Plan.Step(
              name, op.getClass().getSimpleName(), 1, List.of(), List.of(), bytes, flops));
    }
    return new Plan(graph.name(), "reference", maxRows, 0, weights, steps);
  }

  @Override
  public Graph graph() {
    return graph;
  }

  @Override
  public List<Plan> plans() {
    return List.of(plan);
  }

  @Override
  public String description() {
    return "reference: float32, 1 thread (asked for; the oracle of the tests, not meant for use)";
  }

  @Override
  public KvCache newKvCache(int capacity, KvCache.Type type) {
    if (capacity < 1) {
      throw new IllegalArgumentException("capacity: expected>=1 actual=" + capacity);
    }
    if (type == KvCache.Type.Q8_0) {
      for (AttentionSpec spec : graph.kvLayers()) {
        if (spec.keyDim() % 32 != 0 || spec.valueDim() % 32 != 0) {
          throw new IllegalArgumentException(
              "a Q8_0 cache needs head dimensions that are multiples of 32: " + spec);
        }
      }
    }
    return new ReferenceKvCache(this, capacity, type);
  }

  @Override
  public Batch newBatch(int rows, int maxLogitRows) {
    if (rows > maxRows) {
      throw new IllegalArgumentException("rows: expected<=" + maxRows + " actual=" + rows);
    }
    return new ReferenceBatch(this, rows, maxLogitRows);
  }

  @Override
  public LowRankAdapter newAdapter(String name, Map<Value, LowRankDelta> deltas) {
    return new ReferenceAdapter(this, name, deltas);
  }

  /** Keeps copies of the deltas as they are. */
  private static final class ReferenceAdapter extends PreparedAdapter {
    private final TensorStore store = TensorStore.create();
    private final Map<Value, LowRankDelta> deltas = new HashMap<>();

    private final Executable executable;

    ReferenceAdapter(Executable owner, String name, Map<Value, LowRankDelta> given) {
      super(owner, name, given);
      executable = owner;
      given.forEach((v, d) ->
          deltas.put(
              v, new LowRankDelta(copy(d.a()), copy(d.b()), d.factor(), d.gain().map(this::copy))));
    }

    private Tensor copy(Tensor t) {
      Tensor own = store.allocate(t.name(), t.type(), t.shape());
      MemorySegment.copy(t.segment(), 0, own.segment(), 0, t.bytes());
      return own;
    }

    @Override
    public long bytes() {
      return deltas.values().stream().mapToLong(d -> d.a().bytes() + d.b().bytes()).sum();
    }

    @Override
    public void close() {
      synchronized (executable) {
        if (end()) {
          store.close();
        }
      }
    }
  }

  @Override
  public synchronized void forward(Batch batch) {
    if (closed) {
      throw new IllegalStateException("the executable is closed");
    }
    if (!(batch instanceof ReferenceBatch b) || !b.isOf(this)) {
      throw new IllegalArgumentException("the batch was made by another executable: " + batch);
    }
    b.checkRunnable();
    Map<Value, float[]> values = new HashMap<>();
    for (Op op : graph.ops()) {
      float[] out =
          switch (op) {
            case Op.Embedding o -> embedding(o, b);
            case Op.Input o -> input(o, b);
            case Op.RmsNorm o -> rmsNorm(o, values.get(o.in()));
            case Op.Linear o -> linear(o, values.get(o.in()), b);
            case Op.Adapt o -> throw new IllegalStateException("terms are part of products: " + o);
            case Op.Rope o -> rope(o, values.get(o.in()), b);
            case Op.KvStore o -> kvStore(o, values.get(o.key()), values.get(o.value()), b);
            case Op.Attention o -> attention(o, values.get(o.query()), b);
            case Op.Activate o -> activate(o, values, b);
            case Op.Add o -> add(o, values.get(o.residual()), values.get(o.branch()), b);
            case Op.Replace o -> replace(o, values.get(o.residual()), values.get(o.branch()), b);
            case Op.KeepLargest o -> keepLargest(o, values.get(o.in()));
            case Op.Scale o -> scale(o, values.get(o.in()));
            case Op.Affine o -> affine(o, values.get(o.in()), b);
            case Op.SoftCap o -> softCap(o, values.get(o.in()));
            case Op.Slice o -> slice(o, values.get(o.in()));
            case Op.Gather o -> gather(o, values);
            case Op.SelectRows o -> selectRows(o, values.get(o.in()), b);
            case Op.LayerNorm o -> layerNorm(o, values.get(o.in()));
            case Op.Route o -> route(o, values.get(o.scores()));
            case Op.ExpertLinear o -> experts(o, values.get(o.in()), values.get(o.routing()));
            case Op.Mix o -> mix(o, values.get(o.in()), values.get(o.routing()));
            case Op.SkipSimilar o ->
                skipSimilar(o, values.get(o.before()), values.get(o.after()), b);
            case Op.RouteUnit o -> routeUnit(o, values.get(o.scores()), b);
          };
      op.output().ifPresent(v -> values.put(v, out));
    }
    b.results(values.get(graph.logits()), graph.hidden().map(values::get).orElse(new float[0]));
  }

  private static boolean skipped(Optional<Gate> gate, Value.Rows rows, int row, AbstractBatch b) {
    if (gate.isEmpty()) {
      return false;
    }
    int g = AbstractBatch.gateIndex(gate.get().layer(), gate.get().unit());
    int batchRow = rows == Value.Rows.LOGITS ? b.logitSource(row) : row;
    return b.gate(g, batchRow) != gate.get().branch().runsAt();
  }

  private float[] skipSimilar(Op.SkipSimilar o, float[] x, float[] y, AbstractBatch b) {
    int[] targets =
        o.targets().stream().mapToInt(t -> AbstractBatch.gateIndex(t.layer(), t.unit())).toArray();
    int n = o.before().width();
    for (int r = 0; r < b.rows(); r++) {
      if (b.skips(r) && !skipped(Optional.of(o.unit()), Value.Rows.BATCH, r, b)) {
        double dot = 0;
        double xx = 0;
        double yy = 0;
        for (int i = r * n; i < (r + 1) * n; i++) {
          dot += (double) x[i] * y[i];
          xx += (double) x[i] * x[i];
          yy += (double) y[i] * y[i];
        }
        b.decideSkip(graph.decisions().indexOf(o), targets, r, (float) (dot / Math.sqrt(xx * yy)));
      }
    }
    return x;
  }

  private float[] routeUnit(Op.RouteUnit o, float[] z, AbstractBatch b) {
    int target = AbstractBatch.gateIndex(o.target().layer(), o.target().unit());
    for (int r = 0; r < b.rows(); r++) {
      if (b.routes(r) && !skipped(Optional.of(o.target()), Value.Rows.BATCH, r, b)) {
        b.decideRoute(graph.decisions().indexOf(o), target, r, z[2 * r] - z[2 * r + 1]);
      }
    }
    return z;
  }

  private static float[] embedding(Op.Embedding o, AbstractBatch b) {
    int n = o.out().width();
    float[] y = new float[b.rows() * n];
    for (int r = 0; r < b.rows(); r++) {
      int index =
          switch (o.index()) {
            case TOKEN -> b.token(r);
            case POSITION -> b.position(r);
            case FIRST -> 0;
          };
      Dequantizer.row(o.table(), index, y, r * n);
      for (int i = 0; i < n; i++) {
        y[r * n + i] *= o.scale();
      }
    }
    return y;
  }

  private static float[] input(Op.Input o, AbstractBatch b) {
    int n = o.out().width();
    int width = b.graph().inputWidth();
    float[] y = new float[b.rows() * n];
    for (int r = 0; r < b.rows(); r++) {
      System.arraycopy(b.inputs(), r * width + o.from(), y, r * n, n);
    }
    return y;
  }

  static float[] rmsNorm(Op.RmsNorm o, float[] x) {
    float[] weight = Dequantizer.toFloats(o.weight());
    int n = weight.length;
    float[] y = new float[x.length];
    for (int from = 0; from < x.length; from += n) {
      double squares = 0;
      for (int i = 0; i < n; i++) {
        squares += (double) x[from + i] * x[from + i];
      }
      double factor = o.outScale() / Math.sqrt(squares / n + o.eps());
      for (int i = 0; i < n; i++) {
        y[from + i] = (float) (x[from + i] * factor * weight[i]);
      }
    }
    return y;
  }

  private static float[] linear(Op.Linear o, float[] x, AbstractBatch b) {
    int in = o.in().width();
    int out = o.out().width();
    int rows = x.length / in;
    float[] y = new float[rows * out];
    product(o.weight(), x, rows, y);
    float[] bias = o.bias().map(Dequantizer::toFloats).orElse(new float[out]);
    for (int r = 0; b.adapted() && r < rows; r++) {
      int row = o.in().rows() == Value.Rows.LOGITS ? b.logitSource(r) : r;
      adapt(o, b.terms(row), Arrays.copyOfRange(x, r * in, (r + 1) * in), y, r * out);
    }
    for (int r = 0; r < rows; r++) {
      boolean skip = skipped(o.gate(), o.in().rows(), r, b);
      for (int i = 0; i < out; i++) {
        y[r * out + i] = skip ? 0 : y[r * out + i] + bias[i];
      }
    }
    return y;
  }

  /** Adds the low-rank terms of a row that are for this product. */
  private static void adapt(
      Op.Linear o, List<LowRankAdapter.Term> terms, float[] x, float[] y, int at) {
    float[] base = Arrays.copyOfRange(y, at, at + o.out().width());
    for (LowRankAdapter.Term t : terms) {
      LowRankDelta d = ((ReferenceAdapter) t.adapter()).deltas.get(o.out());
      if (d == null || t.scale() == 0) {
        continue;
      }
      float[] h = new float[d.rank()];
      product(LinearOp.dense(d.a()), x, 1, h);
      float[] z = new float[o.out().width()];
      product(LinearOp.dense(d.b()), h, 1, z);
      float[] gain = d.gain().map(Dequantizer::toFloats).orElse(new float[z.length]);
      for (int i = 0; i < z.length; i++) {
        double added = (double) d.factor() * z[i] + (double) gain[i] * base[i];
        y[at + i] = (float) (y[at + i] + t.scale() * added);
      }
    }
  }

  /** {@code y = W x} for each of {@code rows} rows, straight from the definition of each kind. */
  static void product(LinearOp op, float[] x, int rows, float[] y) {
    int in = Math.toIntExact(op.in());
    int out = Math.toIntExact(op.out());
    switch (op) {
      case LinearOp.Dense d -> dense(d.weight(), x, rows, y);
      case LinearOp.Sparse s -> {
        float[] row = new float[in];
        float[] scratch = new float[s.matrix().rowScratch()];
        for (int i = 0; i < out; i++) {
          s.matrix().row(i, row, scratch);
          dots(row, x, rows, y, out, i);
        }
      }
      case LinearOp.LowRank l -> {
        float[] h = new float[rows * Math.toIntExact(l.rank())];
        product(l.v(), x, rows, h);
        if (l.inner() == LinearOp.Inner.SILU) {
          for (int i = 0; i < h.length; i++) {
            h[i] = (float) activation(Activation.SILU, h[i]);
          }
        }
        product(l.u(), h, rows, y);
      }
      case LinearOp.Sum sum -> {
        double[] total = new double[y.length];
        for (LinearOp.Term t : sum.terms()) {
          product(t.op(), x, rows, y);
          for (int i = 0; i < y.length; i++) {
            total[i] += (double) t.coefficient() * y[i];
          }
        }
        for (int i = 0; i < y.length; i++) {
          y[i] = (float) total[i];
        }
      }
      case LinearOp.Chain c -> {
        float[] current = x;
        for (LinearOp part : c.ops()) {
          float[] next = new float[rows * Math.toIntExact(part.out())];
          product(part, current, rows, next);
          current = next;
        }
        System.arraycopy(current, 0, y, 0, y.length);
      }
      case LinearOp.BlockDiagonal b -> {
        int bo = Math.toIntExact(b.blocks().dim(1));
        int bi = Math.toIntExact(b.blocks().dim(2));
        float[] row = new float[in];
        for (int i = 0; i < out; i++) {
          Arrays.fill(row, 0);
          Dequantizer.row(b.blocks(), i, row, i / bo * bi);
          dots(row, x, rows, y, out, i);
        }
      }
      case LinearOp.Columns c -> {
        int[] index = c.indices();
        float[] chosen = new float[rows * index.length];
        for (int r = 0; r < rows; r++) {
          for (int i = 0; i < index.length; i++) {
            chosen[r * index.length + i] = x[r * in + index[i]];
          }
        }
        product(c.weight(), chosen, rows, y);
      }
    }
  }

  private static void dense(Tensor w, float[] x, int rows, float[] y) {
    float[] row = new float[Math.toIntExact(w.cols())];
    int out = Math.toIntExact(w.rows());
    for (int i = 0; i < out; i++) {
      Dequantizer.row(w, i, row, 0);
      dots(row, x, rows, y, out, i);
    }
  }

  private static void dots(float[] w, float[] x, int rows, float[] y, int out, int i) {
    for (int r = 0; r < rows; r++) {
      double sum = 0;
      for (int j = 0; j < w.length; j++) {
        sum += (double) w[j] * x[r * w.length + j];
      }
      y[r * out + i] = (float) sum;
    }
  }

  static float[] gather(Op.Gather o, Map<Value, float[]> values) {
    float[] x = values.get(o.in());
    float[] more = o.more().map(values::get).orElse(new float[0]);
    int in = o.in().width();
    int width = o.more().map(Value::width).orElse(0);
    int n = o.out().width();
    float[] index = Dequantizer.toFloats(o.columns());
    float[] y = new float[x.length / in * n];
    for (int i = 0; i < y.length; i++) {
      int at = (int) index[i % n];
      y[i] = at < in ? x[i / n * in + at] : more[i / n * width + at - in];
    }
    return y;
  }

  static float[] layerNorm(Op.LayerNorm o, float[] x) {
    float[] weight = Dequantizer.toFloats(o.weight());
    float[] bias = o.bias().map(Dequantizer::toFloats).orElse(new float[weight.length]);
    int n = weight.length;
    float[] y = new float[x.length];
    for (int from = 0; from < x.length; from += n) {
      double sum = 0;
      for (int i = 0; i < n; i++) {
        sum += x[from + i];
      }
      double mean = sum / n;
      double squares = 0;
      for (int i = 0; i < n; i++) {
        squares += (x[from + i] - mean) * (x[from + i] - mean);
      }
      double factor = 1 / Math.sqrt(squares / n + o.eps());
      for (int i = 0; i < n; i++) {
        y[from + i] = (float) ((x[from + i] - mean) * factor * weight[i] + bias[i]);
      }
    }
    return y;
  }

  static float[] route(Op.Route o, float[] scores) {
    int n = o.spec().experts();
    int width = o.out().width();
    MemorySegment from = MemorySegment.ofArray(scores);
    MemorySegment bias =
        o.bias().map(Dequantizer::toFloats).map(MemorySegment::ofArray).orElse(MemorySegment.NULL);
    float[] y = new float[scores.length / n * width];
    MemorySegment to = MemorySegment.ofArray(y);
    for (int r = 0; r < scores.length / n; r++) {
      Router.route(
          o.spec(), from, (long) r * n * Float.BYTES, bias, to, (long) r * width * Float.BYTES);
    }
    return y;
  }

  static float[] experts(Op.ExpertLinear o, float[] x, float[] routing) {
    int in = o.in().width();
    int n = Math.toIntExact(o.experts().getFirst().cols());
    int m = Math.toIntExact(o.experts().getFirst().rows());
    int rows = x.length / in;
    float[] y = new float[rows * o.out().width()];
    float[] part = new float[n];
    float[] result = new float[m];
    for (int r = 0; r < rows; r++) {
      for (int k = 0; k < o.used(); k++) {
        int expert = (int) routing[r * o.routing().width() + o.used() + k];
        System.arraycopy(x, r * in + (o.parts() ? k * n : 0), part, 0, n);
        product(LinearOp.dense(o.experts().get(expert)), part, 1, result);
        System.arraycopy(result, 0, y, r * o.out().width() + k * m, m);
      }
    }
    return y;
  }

  static float[] mix(Op.Mix o, float[] x, float[] routing) {
    int m = o.out().width();
    int rows = x.length / o.in().width();
    float[] y = new float[rows * m];
    for (int r = 0; r < rows; r++) {
      for (int i = 0; i < m; i++) {
        double sum = 0;
        for (int k = 0; k < o.used(); k++) {
          sum += (double) routing[r * o.routing().width() + k] * x[r * o.in().width() + k * m + i];
        }
        y[r * m + i] = (float) sum;
      }
    }
    return y;
  }

  private static float[] rope(Op.Rope o, float[] x, AbstractBatch b) {
    float[] y = x.clone();
    float[] frequency = o.spec().inverseFrequency();
    int width = o.in().width();
    int pairs = frequency.length;
    for (int r = 0; r < x.length / width; r++) {
      int row = o.in().rows() == Value.Rows.LOGITS ? b.logitSource(r) : r;
      for (int i = 0; i < pairs; i++) {
        double angle = (double) b.position(row) * frequency[i];
        double cos = Math.cos(angle) * o.spec().magnitude();
        double sin = Math.sin(angle) * o.spec().magnitude();
        for (int h = 0; h < o.heads(); h++) {
          int head = r * width + h * o.headDim();
          int p = head + (o.spec().style() == RopeSpec.Style.NORM ? 2 * i : i);
          int q = head + (o.spec().style() == RopeSpec.Style.NORM ? 2 * i + 1 : i + pairs);
          y[p] = (float) (x[p] * cos - x[q] * sin);
          y[q] = (float) (x[p] * sin + x[q] * cos);
        }
      }
    }
    return y;
  }

  private static float[] kvStore(Op.KvStore o, float[] key, float[] value, AbstractBatch b) {
    for (int r = 0; r < b.rows(); r++) {
      ((ReferenceKvCache) b.cache(r))
          .store(o.spec(), b.slot(r), key, r * o.key().width(), value, r * o.value().width());
    }
    return new float[0];
  }

  private static float[] attention(Op.Attention o, float[] q, AbstractBatch b) {
    AttentionSpec spec = o.spec();
    int out = o.out().width();
    float[] y = new float[q.length / o.query().width() * out];
    int[] ranges = new int[Visibility.INTS];
    for (int r = 0; r < y.length / out; r++) {
      int row = o.query().rows() == Value.Rows.LOGITS ? b.logitSource(r) : r;
      if (skipped(o.gate(), o.query().rows(), r, b)) {
        continue;
      }
      int count = b.visible(row, spec.window(), ranges, 0);
      List<Integer> slots = new ArrayList<>();
      for (int k = 0; k < count; k++) {
        for (int s = ranges[2 * k]; s < ranges[2 * k + 1]; s++) {
          slots.add(s);
        }
      }
      for (int h = 0; h < spec.heads(); h++) {
        int from = r * o.query().width() + h * spec.keyDim();
        int to = r * out + h * spec.valueDim();
        attend(spec, (ReferenceKvCache) b.cache(row), h, slots, q, from, y, to);
      }
    }
    return y;
  }

  /** Softmax attention of one query head over the slots. */
  private static void attend(
      AttentionSpec spec,
      ReferenceKvCache kv,
      int head,
      List<Integer> slots,
      float[] q,
      int from,
      float[] y,
      int to) {
    int kvHead = head / (spec.heads() / spec.kvHeads());
    double[] p = new double[slots.size()];
    double max = Double.NEGATIVE_INFINITY;
    for (int k = 0; k < p.length; k++) {
      double dot = 0;
      for (int i = 0; i < spec.keyDim(); i++) {
        dot += (double) q[from + i] * kv.key(spec, slots.get(k), kvHead, i);
      }
      p[k] = dot * spec.scale();
      if (spec.softCap() > 0) {
        p[k] = spec.softCap() * Math.tanh(p[k] / spec.softCap());
      }
      max = Math.max(max, p[k]);
    }
    double sum = 0;
    for (int k = 0; k < p.length; k++) {
      p[k] = Math.exp(p[k] - max);
      sum += p[k];
    }
    for (int i = 0; i < spec.valueDim(); i++) {
      double value = 0;
      for (int k = 0; k < p.length; k++) {
        value += p[k] * kv.value(spec, slots.get(k), kvHead, i);
      }
      y[to + i] = p.length == 0 ? 0 : (float) (value / sum);
    }
  }

  private static float[] activate(Op.Activate o, Map<Value, float[]> values, AbstractBatch b) {
    float[] up = values.get(o.up());
    Optional<float[]> gate = o.gateHalf().map(values::get);
    int width = o.up().width();
    float[] y = new float[up.length];
    for (int r = 0; r < up.length / width; r++) {
      if (skipped(o.gate(), o.up().rows(), r, b)) {
        continue;
      }
      for (int i = r * width; i < (r + 1) * width; i++) {
        y[i] =
            gate.isPresent()
                ? (float) (activation(o.activation(), gate.get()[i]) * up[i])
                : (float) activation(o.activation(), up[i]);
      }
    }
    return y;
  }

  static double activation(Activation kind, double x) {
    return switch (kind) {
      case SILU -> x / (1 + Math.exp(-x));
      case GELU_TANH ->
          0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
      case GELU_ERF -> x * normal(x);
      case RELU -> Math.max(x, 0);
      case RELU_SQUARED -> Math.max(x, 0) * Math.max(x, 0);
    };
  }

  /** The share of a standard normal distribution below x. */
  static double normal(double x) {
    if (Double.isNaN(x)) {
      return x;
    }
    double z = Math.abs(x);
    double tail;
    if (z < 3) {
      // phi(x) (x + x^3 / 3 + x^5 / 15 + ...): all terms have one sign.
      double term = z;
      double sum = z;
      for (int k = 3; term > 1e-18 * sum; k += 2) {
        term *= z * z / k;
        sum += term;
      }
      tail = 0.5 - sum * Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
    } else {
      // phi(x) / (x + 1 / (x + 2 / (x + 3 / ...))).
      double fraction = z;
      for (int k = 100; k > 0; k--) {
        fraction = z + k / fraction;
      }
      tail = Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI) / fraction;
    }
    return x < 0 ? tail : 1 - tail;
  }

  private static float[] add(Op.Add o, float[] residual, float[] branch, AbstractBatch b) {
    float[] y = residual.clone();
    int width = o.residual().width();
    for (int r = 0; r < y.length / width; r++) {
      if (skipped(o.gate(), o.residual().rows(), r, b)) {
        continue;
      }
      for (int i = r * width; i < (r + 1) * width; i++) {
        y[i] = (float) (residual[i] + (double) o.scale() * branch[i]);
      }
    }
    return y;
  }

  static float[] keepLargest(Op.KeepLargest o, float[] x) {
    float[] y = new float[x.length];
    for (int i = 0; i < x.length; i++) {
      int first = i - i % o.m();
      int larger = 0;
      for (int j = first; j < first + o.m(); j++) {
        float a = Math.abs(x[j]);
        float b = Math.abs(x[i]);
        larger += a > b || a == b && j < i ? 1 : 0;
      }
      y[i] = larger < o.n() ? x[i] : 0;
    }
    return y;
  }

  private static float[] replace(Op.Replace o, float[] residual, float[] branch, AbstractBatch b) {
    float[] y = branch.clone();
    int width = o.residual().width();
    for (int r = 0; r < y.length / width; r++) {
      if (skipped(Optional.of(o.gate()), o.residual().rows(), r, b)) {
        System.arraycopy(residual, r * width, y, r * width, width);
      }
    }
    return y;
  }

  static float[] scale(Op.Scale o, float[] x) {
    float[] y = new float[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] = x[i] * o.factor();
    }
    return y;
  }

  private static float[] affine(Op.Affine o, float[] x, AbstractBatch b) {
    float[] y = affine(o, x);
    int width = o.in().width();
    for (int r = 0; r < y.length / width; r++) {
      if (skipped(o.gate(), o.in().rows(), r, b)) {
        Arrays.fill(y, r * width, (r + 1) * width, 0);
      }
    }
    return y;
  }

  /** Without a gate. */
  static float[] affine(Op.Affine o, float[] x) {
    float[] factors = Dequantizer.toFloats(o.factors());
    float[] bias = o.bias().map(Dequantizer::toFloats).orElse(null);
    float[] y = new float[x.length];
    for (int i = 0; i < y.length; i++) {
      int column = i % factors.length;
      float product = factors[column] * x[i];
      y[i] = bias == null ? product : product + bias[column];
    }
    return y;
  }

  static float[] softCap(Op.SoftCap o, float[] x) {
    float[] y = new float[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] = (float) (o.cap() * Math.tanh((double) x[i] / o.cap()));
    }
    return y;
  }

  static float[] slice(Op.Slice o, float[] x) {
    int in = o.in().width();
    int n = o.out().width();
    float[] y = new float[x.length / in * n];
    for (int r = 0; r < x.length / in; r++) {
      System.arraycopy(x, r * in + o.from(), y, r * n, n);
    }
    return y;
  }

  private static float[] selectRows(Op.SelectRows o, float[] x, AbstractBatch b) {
    int n = o.in().width();
    float[] y = new float[b.logitRows() * n];
    for (int k = 0; k < b.logitRows(); k++) {
      System.arraycopy(x, b.logitSource(k) * n, y, k * n, n);
    }
    return y;
  }

  @Override
  public synchronized void close() {
    closed = true;
  }
}
