package io.fletch.graph;

import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.SplittableRandom;

/** Small random graphs with the structure of real models. Deterministic by seed. */
public final class TestGraphs implements AutoCloseable {
  private static final ValueLayout.OfShort SHORT = ValueLayout.JAVA_SHORT_UNALIGNED;

  private final TensorStore store = TensorStore.create();
  private final SplittableRandom random;
  private boolean composed;

  public TestGraphs(long seed) {
    random = new SplittableRandom(seed);
  }

  /** What a llama-like graph looks like; start from {@link #small()}. */
  public record Shape(
      int hidden,
      int layers,
      int heads,
      int kvHeads,
      int keyDim,
      int valueDim,
      int ffn,
      int vocabulary,
      TensorType type,
      Activation activation,
      RopeSpec.Style style,
      int pairs,
      boolean biases,
      boolean qkNorm,
      boolean postNorm,
      boolean fused,
      boolean gateHalf,
      int window,
      float attentionCap,
      float logitCap) {
    public static Shape small() {
      return new Shape(
          64,
          2,
          4,
          2,
          32,
          32,
          96,
          97,
          TensorType.F32,
          Activation.SILU,
          RopeSpec.Style.NEOX,
          16,
          false,
          false,
          false,
          false,
          true,
          0,
          0,
          0);
    }

    public Shape type(TensorType value) {
      return new Shape(
          hidden,
          layers,
          heads,
          kvHeads,
          keyDim,
          valueDim,
          ffn,
          vocabulary,
          value,
          activation,
          style,
          pairs,
          biases,
          qkNorm,
          postNorm,
          fused,
          gateHalf,
          window,
          attentionCap,
          logitCap);
    }

    /** With another number of layers. */
    public Shape layers(int value) {
      return new Shape(
          hidden,
          value,
          heads,
          kvHeads,
          keyDim,
          valueDim,
          ffn,
          vocabulary,
          type,
          activation,
          style,
          pairs,
          biases,
          qkNorm,
          postNorm,
          fused,
          gateHalf,
          window,
          attentionCap,
          logitCap);
    }

    /** With another width of the residual stream and the feed-forward unit. */
    public Shape sizes(int width, int layerCount) {
      int headCount = width / keyDim;
      return new Shape(
          width,
          layerCount,
          headCount,
          headCount / 2,
          keyDim,
          valueDim,
          width,
          vocabulary,
          type,
          activation,
          style,
          pairs,
          biases,
          qkNorm,
          postNorm,
          fused,
          gateHalf,
          window,
          attentionCap,
          logitCap);
    }

    /** With other numbers of query heads and feed-forward elements. */
    public Shape wide(int headCount, int ffnWidth) {
      return new Shape(
          hidden,
          layers,
          headCount,
          2,
          keyDim,
          valueDim,
          ffnWidth,
          vocabulary,
          type,
          activation,
          style,
          pairs,
          biases,
          qkNorm,
          postNorm,
          fused,
          gateHalf,
          window,
          attentionCap,
          logitCap);
    }

    public Shape window(int value) {
      return new Shape(
          hidden,
          layers,
          heads,
          kvHeads,
          keyDim,
          valueDim,
          ffn,
          vocabulary,
          type,
          activation,
          style,
          pairs,
          biases,
          qkNorm,
          postNorm,
          fused,
          gateHalf,
          value,
          attentionCap,
          logitCap);
    }

    /** Random small sizes and features that fit a block size of 32. */
    public static Shape random(SplittableRandom r, TensorType type) {
      int unit = Math.max(32, type.blockSize());
      int kvHeads = 1 + r.nextInt(3);
      int keyDim = 32 * (1 + r.nextInt(2));
      int valueDim = r.nextInt(3) == 0 ? 32 * (1 + r.nextInt(2)) : keyDim;
      int group = 1 + r.nextInt(4);
      if (unit > 32) {
        kvHeads = 2;
        valueDim = 32;
        group = 4;
      }
      return new Shape(
          unit * (1 + r.nextInt(2)),
          1 + r.nextInt(3),
          kvHeads * group,
          kvHeads,
          keyDim,
          valueDim,
          unit * (1 + r.nextInt(3)),
          31 + r.nextInt(180),
          type,
          Activation.values()[r.nextInt(Activation.values().length)],
          RopeSpec.Style.values()[r.nextInt(2)],
          keyDim / (r.nextBoolean() ? 2 : 4),
          r.nextBoolean(),
          r.nextBoolean(),
          r.nextBoolean(),
          r.nextBoolean(),
          r.nextInt(3) != 0,
          r.nextInt(3) == 0 ? 1 + r.nextInt(7) : 0,
          r.nextInt(3) == 0 ? 5 : 0,
          r.nextInt(3) == 0 ? 8 : 0);
    }
  }

  /** Uniform in [-1, 1) times {@code scale}. */
  public float[] floats(int n, double scale) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) ((2 * random.nextDouble() - 1) * scale);
    }
    return x;
  }

  /** A random matrix whose products keep the scale of their input. */
  public Tensor matrix(String name, TensorType type, int out, int in) {
    return encode(name, type, floats(out * in, Math.sqrt(3.0 / in)), out, in);
  }

  /** Values near 1, as norm weights have. */
  public Tensor norm(String name, int n) {
    float[] x = floats(n, 0.3);
    for (int i = 0; i < n; i++) {
      x[i] += 1;
    }
    return store.floats(name, x, n);
  }

  public Tensor vector(String name, int n) {
    return store.floats(name, floats(n, 0.2), n);
  }

  /** A tensor with these values, rounded to its type. */
  public Tensor encode(String name, TensorType type, float[] x, long... shape) {
    Tensor t = store.allocate(name, type, shape);
    MemorySegment s = t.segment();
    switch (type) {
      case F32 -> MemorySegment.copy(x, 0, s, ValueLayout.JAVA_FLOAT, 0, x.length);
      case F16 -> {
        for (int i = 0; i < x.length; i++) {
          s.set(SHORT, 2L * i, Float.floatToFloat16(x[i]));
        }
      }
      case BF16 -> {
        for (int i = 0; i < x.length; i++) {
          s.set(SHORT, 2L * i, (short) (Float.floatToRawIntBits(x[i]) >> 16));
        }
      }
      case Q8_0, Q4_0 -> {
        for (int b = 0; b < x.length / 32; b++) {
          block(type, x, b * 32, s, (long) b * type.blockBytes());
        }
      }
      default -> randomBlocks(type, s);
    }
    return t;
  }

  private static void block(TensorType type, float[] x, int from, MemorySegment s, long at) {
    float amax = 0;
    for (int i = 0; i < 32; i++) {
      amax = Math.max(amax, Math.abs(x[from + i]));
    }
    boolean wide = type == TensorType.Q8_0;
    float d = amax / (wide ? 127 : 7);
    s.set(SHORT, at, Float.floatToFloat16(d));
    for (int i = 0; i < 32; i++) {
      int q = d == 0 ? 0 : Math.round(x[from + i] / d);
      if (wide) {
        s.set(ValueLayout.JAVA_BYTE, at + 2 + i, (byte) q);
      } else {
        long p = at + 2 + i % 16;
        int old = i < 16 ? 0 : s.get(ValueLayout.JAVA_BYTE, p);
        s.set(ValueLayout.JAVA_BYTE, p, (byte) (old | (q + 8) << (i < 16 ? 0 : 4)));
      }
    }
  }

  /** Random codes with scales that keep values around 0.1: any bits are a valid block. */
  private void randomBlocks(TensorType type, MemorySegment s) {
    for (long i = 0; i < s.byteSize(); i++) {
      s.set(ValueLayout.JAVA_BYTE, i, (byte) random.nextInt());
    }
    for (long at = 0; at < s.byteSize(); at += type.blockBytes()) {
      short small = Float.floatToFloat16((float) (0.002 + 0.002 * random.nextDouble()));
      short tiny = Float.floatToFloat16((float) (0.00005 + 0.00005 * random.nextDouble()));
      switch (type) {
        case Q4_1, Q5_1 -> {
          s.set(SHORT, at, small);
          s.set(SHORT, at + 2, Float.floatToFloat16(-0.03f));
        }
        case Q5_0, IQ4_NL -> s.set(SHORT, at, small);
        case Q2_K -> {
          s.set(SHORT, at + 80, small);
          s.set(SHORT, at + 82, small);
        }
        case Q3_K -> s.set(SHORT, at + 108, small);
        case Q4_K, Q5_K -> {
          s.set(SHORT, at, tiny);
          s.set(SHORT, at + 2, small);
        }
        case Q6_K -> s.set(SHORT, at + 208, tiny);
        case IQ4_XS -> s.set(SHORT, at, tiny);
        case MXFP4 -> s.set(ValueLayout.JAVA_BYTE, at, (byte) (120 + random.nextInt(4)));
        default -> throw new IllegalArgumentException("no test blocks of " + type);
      }
    }
  }

  public static RopeSpec rope(RopeSpec.Style style, int pairs) {
    float[] f = new float[pairs];
    for (int i = 0; i < pairs; i++) {
      f[i] = (float) Math.pow(10000, -(double) i / pairs);
    }
    return new RopeSpec(style, f, 1);
  }

  /** A decoder in the manner of llama and its relatives; every unit is gated. */
  public Graph llama(Shape p) {
    return decoder(p, Optional.empty());
  }

  /**
   * The same with a mixture of experts in each layer, a shared expert behind a gate of its own, and
   * LayerNorm where a dense layer has RMSNorm.
   */
  public Graph mixture(Shape p, RouteSpec routing) {
    return decoder(p, Optional.of(routing));
  }

  /** Routing of a few random experts. */
  public RouteSpec routing() {
    int groups = 1 << random.nextInt(3);
    int experts = groups * (2 + random.nextInt(4));
    int groupsUsed = 1 + random.nextInt(groups);
    return new RouteSpec(
        experts,
        1 + random.nextInt(Math.min(4, experts / groups * groupsUsed)),
        random.nextBoolean() ? RouteSpec.Scoring.SOFTMAX : RouteSpec.Scoring.SIGMOID,
        random.nextBoolean(),
        random.nextBoolean() ? 1 : 2.5f,
        groups,
        groupsUsed);
  }

  private Graph decoder(Shape p, Optional<RouteSpec> routing) {
    Graph.Builder g = Graph.builder("test");
    Value x = g.embedding("embd", matrix("embd", p.type(), p.vocabulary(), p.hidden()), 3);
    RopeSpec rope = rope(p.style(), p.pairs());
    for (int l = 0; l < p.layers(); l++) {
      x = attention(g, p, rope, l, x);
      int layer = l;
      Value in = x;
      x =
          routing
              .map(r -> experts(g, p, r, layer, in))
              .orElseGet(() -> feedForward(g, p, layer, in));
    }
    Value last = g.selectRows("last", x);
    Value normed = g.rmsNorm("out_norm", last, norm("out_norm", p.hidden()), 1e-5f, 1, 1);
    Value logits = linear(g, p.type(), "output", normed, p.vocabulary(), false, Optional.empty());
    if (p.logitCap() > 0) {
      logits = g.softCap("capped", logits, p.logitCap());
    }
    return g.build(logits);
  }

  /** Where the tensors lie. */
  public TensorStore store() {
    return store;
  }

  /** Makes products with random {@link #linearOp}s instead of dense matrices. */
  public TestGraphs composed() {
    composed = true;
    return this;
  }

  /**
   * A random linear map of any kind, nested {@code depth} times, whose products keep the scale of
   * their input.
   *
   * @param out a multiple of what blocks of the type need where it has blocks
   */
  public LinearOp linearOp(String name, TensorType type, int out, int in, int depth) {
    int unit = type.blockSize();
    boolean leaf = depth == 0;
    return switch (random.nextInt(leaf ? 5 : 9)) {
      case 0 -> LinearOp.dense(matrix(name, type, out, in));
      case 1 ->
          new LinearOp.Sparse(
              SparseEncoder.bitmap(masked(name, out, in, random.nextDouble()), type, store));
      case 2 -> {
        if (in % 4 != 0 || in / 2 % unit != 0) {
          yield LinearOp.dense(matrix(name, type, out, in));
        }
        yield new LinearOp.Sparse(SparseEncoder.twoOfFour(twoOfFour(name, out, in), type, store));
      }
      case 3 -> {
        int height = divisor(out, 1);
        int width = divisor(in, unit);
        yield new LinearOp.Sparse(
            SparseEncoder.block(blocks(name, out, in, height, width), height, width, type, store));
      }
      case 4 -> {
        int n = divisor(gcd(out, in / unit), 1);
        Tensor blocks =
            encode(name, type, floats(out / n * in, Math.sqrt(3.0 * n / in)), n, out / n, in / n);
        yield new LinearOp.BlockDiagonal(blocks);
      }
      case 5 -> {
        int rank = unit * (1 + random.nextInt(3));
        yield new LinearOp.LowRank(
            linearOp(name + ".u", type, out, rank, depth - 1),
            linearOp(name + ".v", type, rank, in, depth - 1),
            random.nextBoolean() ? LinearOp.Inner.SILU : LinearOp.Inner.IDENTITY);
      }
      case 6 -> {
        List<LinearOp.Term> terms = new ArrayList<>();
        int n = 1 + random.nextInt(3);
        for (int i = 0; i < n; i++) {
          float c = random.nextInt(3) == 0 ? 1 : (float) (random.nextDouble() - 0.5);
          terms.add(new LinearOp.Term(c, linearOp(name + i, type, out, in, depth - 1)));
        }
        yield new LinearOp.Sum(terms);
      }
      case 7 -> {
        int inner = unit * (1 + random.nextInt(3));
        yield new LinearOp.Chain(
            List.of(
                linearOp(name + ".0", type, inner, in, depth - 1),
                linearOp(name + ".1", type, out, inner, depth - 1)));
      }
      default -> {
        int[] index = new int[in];
        int n = 0;
        for (int c = 0; c < in; c++) {
          index[n] = c;
          n += random.nextBoolean() || in - c <= unit - n ? 1 : 0;
        }
        n = Math.max(unit, n / unit * unit);
        Tensor columns = store.allocate(name + ".cols", TensorType.I32, n);
        MemorySegment.copy(index, 0, columns.segment(), ValueLayout.JAVA_INT, 0, n);
        yield new LinearOp.Columns(
            linearOp(name + ".chosen", type, out, n, depth - 1), columns, in);
      }
    };
  }

  private int divisor(int n, int unit) {
    int d;
    do {
      d = unit * (1 + random.nextInt(n / unit));
    } while (n % d != 0);
    return d;
  }

  private static int gcd(int a, int b) {
    return b == 0 ? a : gcd(b, a % b);
  }

  /** A random matrix with zeros. */
  public Tensor masked(String name, int out, int in, double density) {
    float[] x = floats(out * in, Math.sqrt(3.0 / in));
    for (int i = 0; i < x.length; i++) {
      x[i] = random.nextDouble() < density ? x[i] : random.nextBoolean() ? 0f : -0f;
    }
    return store.floats(name, x, out, in);
  }

  /** A random matrix with at most two elements in every four. */
  public Tensor twoOfFour(String name, int out, int in) {
    float[] x = floats(out * in, Math.sqrt(3.0 / in));
    for (int g = 0; g < x.length; g += 4) {
      int keep = random.nextInt(16);
      while (Integer.bitCount(keep) > 2) {
        keep &= keep - 1;
      }
      for (int i = 0; i < 4; i++) {
        x[g + i] = (keep >> i & 1) != 0 ? x[g + i] : 0f;
      }
    }
    return store.floats(name, x, out, in);
  }

  private Tensor blocks(String name, int out, int in, int height, int width) {
    float[] x = floats(out * in, Math.sqrt(3.0 / in));
    boolean[] keep = new boolean[out / height * (in / width)];
    for (int i = 0; i < keep.length; i++) {
      keep[i] = random.nextBoolean();
    }
    for (int i = 0; i < x.length; i++) {
      int block = i / in / height * (in / width) + i % in / width;
      x[i] = keep[block] ? x[i] : 0f;
    }
    return store.floats(name, x, out, in);
  }

  private Value linear(
      Graph.Builder g,
      TensorType type,
      String name,
      Value x,
      int out,
      boolean bias,
      Optional<Gate> gate) {
    return g.linear(
        name,
        x,
        composed
            ? linearOp(name, type, out, x.width(), 2)
            : LinearOp.dense(matrix(name, type, out, x.width())),
        bias ? Optional.of(vector(name + ".bias", out)) : Optional.empty(),
        gate);
  }

  private Value attention(Graph.Builder g, Shape p, RopeSpec rope, int l, Value x) {
    String at = "blk." + l + ".";
    Optional<Gate> gate = Optional.of(new Gate(l, Gate.Unit.ATTENTION));
    Optional<Gate> none = Optional.empty();
    int nq = p.heads() * p.keyDim();
    int nk = p.kvHeads() * p.keyDim();
    int nv = p.kvHeads() * p.valueDim();
    Value h = g.rmsNorm(at + "attn_norm", x, norm(at + "attn_norm", p.hidden()), 1e-5f, 1, 1);
    Value q;
    Value k;
    Value v;
    if (p.fused()) {
      Value qkv = linear(g, p.type(), at + "attn_qkv", h, nq + nk + nv, p.biases(), none);
      q = g.slice(at + "q_slice", qkv, 0, nq);
      k = g.slice(at + "k_slice", qkv, nq, nk);
      v = g.slice(at + "v_slice", qkv, nq + nk, nv);
    } else {
      q = linear(g, p.type(), at + "attn_q", h, nq, p.biases(), gate);
      k = linear(g, p.type(), at + "attn_k", h, nk, p.biases(), none);
      v = linear(g, p.type(), at + "attn_v", h, nv, p.biases(), none);
    }
    if (p.qkNorm()) {
      q = g.rmsNorm(at + "q_norm", q, norm(at + "q_norm", p.keyDim()), 1e-6f, p.heads(), 1);
      k = g.rmsNorm(at + "k_norm", k, norm(at + "k_norm", p.keyDim()), 1e-6f, p.kvHeads(), 1);
    }
    q = g.rope(at + "q_rope", q, rope, p.heads(), p.keyDim());
    k = g.rope(at + "k_rope", k, rope, p.kvHeads(), p.keyDim());
    AttentionSpec spec =
        new AttentionSpec(
            l,
            p.heads(),
            p.kvHeads(),
            p.keyDim(),
            p.valueDim(),
            (float) (1 / Math.sqrt(p.keyDim())),
            p.attentionCap(),
            l % 2 == 0 ? p.window() : 0);
    Value a = g.attention(at + "attn", spec, q, k, v, gate);
    Value o = linear(g, p.type(), at + "attn_output", a, p.hidden(), false, gate);
    if (p.postNorm()) {
      o = g.rmsNorm(at + "attn_post", o, norm(at + "attn_post", p.hidden()), 1e-5f, 1, 1);
    }
    return g.add(at + "attn_add", x, o, p.postNorm() ? 0.5f : 1, gate);
  }

  private Value feedForward(Graph.Builder g, Shape p, int l, Value x) {
    String at = "blk." + l + ".";
    Optional<Gate> gate = Optional.of(new Gate(l, Gate.Unit.FFN));
    Value h = g.rmsNorm(at + "ffn_norm", x, norm(at + "ffn_norm", p.hidden()), 1e-5f, 1, 1);
    Optional<Value> half = Optional.empty();
    Value up;
    if (p.fused() && p.gateHalf()) {
      Value both = linear(g, p.type(), at + "ffn_up", h, 2 * p.ffn(), false, gate);
      half = Optional.of(g.slice(at + "gate_slice", both, 0, p.ffn()));
      up = g.slice(at + "up_slice", both, p.ffn(), p.ffn());
    } else {
      if (p.gateHalf()) {
        half = Optional.of(linear(g, p.type(), at + "ffn_gate", h, p.ffn(), false, gate));
      }
      up = linear(g, p.type(), at + "ffn_up", h, p.ffn(), p.biases(), gate);
    }
    Value a = g.activate(at + "ffn_act", p.activation(), half, up, gate);
    Value d = linear(g, p.type(), at + "ffn_down", a, p.hidden(), p.biases(), gate);
    if (p.postNorm()) {
      d = g.rmsNorm(at + "ffn_post", d, norm(at + "ffn_post", p.hidden()), 1e-5f, 1, 1);
    }
    return g.add(at + "ffn_add", x, d, 1, gate);
  }

  private Value experts(Graph.Builder g, Shape p, RouteSpec spec, int l, Value x) {
    String at = "blk." + l + ".";
    Optional<Gate> gate = Optional.of(new Gate(l, Gate.Unit.FFN));
    Optional<Gate> none = Optional.empty();
    Value h =
        g.layerNorm(
            at + "ffn_norm",
            x,
            norm(at + "ffn_norm", p.hidden()),
            l == 0 ? Optional.of(vector(at + "ffn_norm.bias", p.hidden())) : Optional.empty(),
            1e-5f);
    Value scores = linear(g, TensorType.F32, at + "router", h, spec.experts(), false, none);
    Value routing =
        g.route(
            at + "routing",
            scores,
            spec,
            l == 0 ? Optional.of(vector(at + "router.bias", spec.experts())) : Optional.empty());
    int shared = p.ffn();
    Value half =
        g.expertLinear(
            at + "gate_exps",
            h,
            routing,
            spec,
            matrices(p.type(), spec, p.ffn(), p.hidden()),
            false);
    Value up =
        g.expertLinear(
            at + "up_exps", h, routing, spec, matrices(p.type(), spec, p.ffn(), p.hidden()), false);
    Value a = g.activate(at + "act_exps", p.activation(), Optional.of(half), up, gate);
    Value down =
        g.expertLinear(
            at + "down_exps",
            a,
            routing,
            spec,
            matrices(p.type(), spec, p.hidden(), p.ffn()),
            true);
    Value mixed = g.mix(at + "mix", down, routing, spec);
    Value sharedUp = linear(g, p.type(), at + "shared_up", h, shared, false, gate);
    Value sharedAct =
        g.activate(at + "shared_act", p.activation(), Optional.empty(), sharedUp, gate);
    Value sharedDown = linear(g, p.type(), at + "shared_down", sharedAct, p.hidden(), false, gate);
    RouteSpec one = new RouteSpec(1, 1, RouteSpec.Scoring.SIGMOID, false, 1, 1, 1);
    Value sharedScore = linear(g, TensorType.F32, at + "shared_router", h, 1, false, none);
    Value sharedRouting = g.route(at + "shared_routing", sharedScore, one, Optional.empty());
    Value sharedMixed = g.mix(at + "shared_mix", sharedDown, sharedRouting, one);
    Value sum = g.add(at + "ffn_sum", mixed, sharedMixed, 1, none);
    return g.add(at + "ffn_add", x, sum, 1, gate);
  }

  private List<Tensor> matrices(TensorType type, RouteSpec spec, int out, int in) {
    List<Tensor> all = new ArrayList<>();
    for (int e = 0; e < spec.experts(); e++) {
      all.add(matrix("expert." + e, type, out, in));
    }
    return all;
  }

  /** Random token ids. */
  public int[] tokens(int n, int vocabulary) {
    int[] ids = new int[n];
    for (int i = 0; i < n; i++) {
      ids[i] = random.nextInt(vocabulary);
    }
    return ids;
  }

  public SplittableRandom random() {
    return random;
  }

  @Override
  public void close() {
    store.close();
  }
}
