package io.fletch.runtime.arch;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.graph.Graph;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Value;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Metadata;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.IntStream;

/**
 * The low-rank terms of an adapter (LoRA, rsLoRA, DoRA, NLoRA, exported Uni-LoRA) for the matrices
 * of one model, which are added when those are used, never to the stored weights: {@code y = W x +
 * scale * s * B (N) A x} (specs weights 4.7). From a PEFT folder ({@code adapter_config.json},
 * {@code adapter_model.safetensors}) or a GGUF file with {@code adapter.type = "lora"}, whatever
 * format the model is in: names are translated, and rows of queries and keys are put into the
 * model's order.
 *
 * <p>Used by one thread; its tensors belong to the store.
 */
public final class AdapterFile {
  private static final String PEFT_PREFIX = "base_model.model.";

  /** Layers that an adapter may be for, by the names of the graph. */
  private static final List<String> LAYERS =
      List.of(
          "attn_q",
          "attn_k",
          "attn_v",
          "attn_qkv",
          "attn_q_a",
          "attn_q_b",
          "attn_kv_a_mqa",
          "attn_kv_b",
          "attn_output",
          "ffn_gate",
          "ffn_up",
          "ffn_down",
          "ffn_gate_inp",
          "ffn_gate_shexp",
          "ffn_up_shexp",
          "ffn_down_shexp");

  /** Ends the name of a product whose rows an adapter given at open makes grow. */
  static final String WHOLE = ".whole";

  /** The graph's name of the embedding, whose factors PEFT names otherwise. */
  static final String EMBEDDING = "token_embd";

  /** Matrices of experts, each of which may have an adapter of its own. */
  private static final List<String> EXPERTS =
      List.of("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps");

  /** How training changed the base's own weights, so that the adapter is not for the original. */
  private static final Set<String> CHANGED_BASES = Set.of("pissa", "olora", "corda", "loftq");

  private static final int BUFFER = 1 << 16;

  /** Tensors of one matrix. */
  private static final class Parts {
    private Tensor a;
    private Tensor b;
    private Tensor middle;
    private Tensor magnitude;
    private Tensor theta;
    private Tensor indicesA;
    private Tensor indicesB;
    private Tensor scalesA;
    private Tensor scalesB;
    private boolean ofEmbedding;
  }

  /**
   * What is added to one matrix.
   *
   * @param stem its name in the adapter, for messages
   * @param own the adapter's own scale times the one given
   * @param magnitude lengths of the rows of the changed matrix (DoRA)
   */
  private record Delta(
      String stem,
      Tensor a,
      Optional<Tensor> middle,
      Tensor b,
      float own,
      Optional<Tensor> magnitude) {}

  private final Path path;
  private final TensorStore store;
  private final WeightFile.Format base;
  private final HyperParameters hp;
  private final float factor;

  /** By the graph's name of the layer. */
  private final Map<String, Delta> deltas = new TreeMap<>();

  private final Set<String> used = new TreeSet<>();

  private AdapterFile(
      Path path, float factor, TensorStore store, WeightFile.Format base, HyperParameters hp) {
    this.path = path;
    this.factor = factor;
    this.store = store;
    this.base = base;
    this.hp = hp;
  }

  /**
   * Reads an adapter for a model.
   *
   * @param path a PEFT folder or a GGUF file
   * @param scale multiplies the adapter's own scale
   * @param store takes its tensors
   * @param base the model's format
   * @param hp the model's hyper-parameters
   * @throws FletchException if it is of a kind that is not supported; the message names the key
   */
  public static AdapterFile open(
      Path path, float scale, TensorStore store, WeightFile.Format base, HyperParameters hp) {
    AdapterFile adapter = new AdapterFile(path, scale, store, base, hp);
    if (Files.isDirectory(path)) {
      adapter.peft();
    } else {
      adapter.gguf();
    }
    if (adapter.deltas.isEmpty()) {
      throw adapter.fail("matrices", ">=1", 0);
    }
    return adapter;
  }

  /** SHA-256 of an adapter's files. */
  public static byte[] digest(Path path) {
    try {
      MessageDigest digest = MessageDigest.getInstance("SHA-256");
      digest(path, digest);
      return digest.digest();
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Feeds an adapter's files to a digest. */
  public static void digest(Path path, MessageDigest into) {
    List<Path> files =
        Files.isDirectory(path)
            ? List.of(
                path.resolve("adapter_config.json"), path.resolve("adapter_model.safetensors"))
            : List.of(path);
    byte[] buffer = new byte[BUFFER];
    for (Path file : files) {
      try (InputStream in = Files.newInputStream(file)) {
        for (int n; (n = in.read(buffer)) > 0; ) {
          into.update(buffer, 0, n);
        }
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }
  }

  private FletchException fail(String what, Object expected, Object actual) {
    return new FletchException(path + ": " + what + ": expected=" + expected + " actual=" + actual);
  }

  // ---- PEFT

  private void peft() {
    Map<String, Object> config;
    try {
      config = JSON.std.mapFrom(Files.readAllBytes(path.resolve("adapter_config.json")));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    check(config);
    boolean uni = !"LORA".equals(config.get("peft_type"));
    Map<String, Parts> parts = new TreeMap<>();
    Tensor theta = null;
    try (WeightFile file = WeightFile.open(path.resolve("adapter_model.safetensors"))) {
      for (Tensor t : file.tensors().values()) {
        String name = t.name();
        if (!name.startsWith(PEFT_PREFIX)) {
          throw fail("tensor", PEFT_PREFIX + "*", name);
        }
        String stem =
            name.substring(PEFT_PREFIX.length()).replaceFirst("(\\.default)?(\\.weight)?$", "");
        int dot = stem.lastIndexOf('.');
        String kind = stem.substring(dot + 1);
        String layer = dot < 0 ? "" : stem.substring(0, dot);
        if (uni && kind.equals("unilora_theta_d")) {
          Tensor own = copy(t);
          theta = own;
          parts.computeIfAbsent(layer, s -> new Parts()).theta = own;
          continue;
        }
        Parts p = parts.computeIfAbsent(layer, s -> new Parts());
        switch (uni ? "uni " + kind : kind) {
          case "lora_embedding_A" -> {
            p.a = copy(t);
            p.ofEmbedding = true;
          }
          case "lora_embedding_B" -> p.b = copy(t);
          case "lora_A" -> p.a = copy(t);
          case "lora_B" -> p.b = copy(t);
          case "lora_N" -> p.middle = copy(t);
          case "lora_magnitude_vector" -> p.magnitude = copy(t);
          case "uni unilora_indices_A" -> p.indicesA = copy(t);
          case "uni unilora_indices_B" -> p.indicesB = copy(t);
          case "uni unilora_scales_A" -> p.scalesA = copy(t);
          case "uni unilora_scales_B" -> p.scalesB = copy(t);
          default ->
              throw fail(
                  "tensor",
                  uni ? "*.unilora_theta_d|indices_A|B|scales_A|B" : "*.lora_A|B|N.weight",
                  name);
        }
      }
    }
    Map<String, String> names = hfNames();
    for (Map.Entry<String, Parts> e : parts.entrySet()) {
      String stem = e.getKey();
      Parts p = e.getValue();
      if (uni) {
        if (p.indicesA == null && p.indicesB == null) {
          continue;
        }
        expand(stem, p, p.theta == null ? theta : p.theta);
      }
      if (Boolean.TRUE.equals(config.get("use_dora")) && p.magnitude == null) {
        throw fail(stem + ".lora_magnitude_vector (use_dora)", "present", "absent");
      }
      double own = uni ? 1 : scale(config, stem, p);
      String layer = names.getOrDefault(stem, stem);
      if (p.ofEmbedding != layer.equals(EMBEDDING)) {
        throw fail(
            "tensor", "lora_embedding_A and _B of the embedding, lora_A and _B of others", stem);
      }
      put(layer, stem, p, own, false);
    }
    if (uni && deltas.isEmpty()) {
      throw fail("unilora_indices_A and _B (save_indices)", "present", "absent");
    }
  }

  private void check(Map<String, Object> config) {
    Object type = config.get("peft_type");
    if (!"LORA".equals(type) && !"UNILORA".equals(type)) {
      throw fail("peft_type", "LORA or UNILORA", type);
    }
    for (String key :
        new String[] {
          "fan_in_fan_out",
          "lora_bias",
          "use_qalora",
          "is_prompt_learning",
          // Both uses of a tied matrix would change.
          "ensure_weight_tying"
        }) {
      if (Boolean.TRUE.equals(config.get(key))) {
        throw fail(key, false, true);
      }
    }
    for (String key :
        new String[] {"modules_to_save", "layer_replication", "trainable_token_indices"}) {
      Object value = config.get(key);
      boolean empty =
          value == null
              || value instanceof List<?> l && l.isEmpty()
              || value instanceof Map<?, ?> m && m.isEmpty();
      if (!empty) {
        throw fail(key, "none (what an adapter stores whole belongs into a merged model)", value);
      }
    }
    Object bias = config.get("bias");
    if (bias != null && !"none".equals(bias)) {
      throw fail("bias", "none", bias);
    }
    if (config.get("init_lora_weights") instanceof String init) {
      String kind = init.toLowerCase(Locale.ROOT);
      if (CHANGED_BASES.stream().anyMatch(kind::startsWith)) {
        throw fail("init_lora_weights", "one that leaves the base as it is", init);
      }
    }
  }

  /** {@code alpha / r}, or by the root of r; alpha of the first pattern that a module ends with. */
  private double scale(Map<String, Object> config, String stem, Parts p) {
    Object alpha = config.get("lora_alpha");
    if (config.get("alpha_pattern") instanceof Map<?, ?> patterns) {
      for (Map.Entry<?, ?> e : patterns.entrySet()) {
        String key = String.valueOf(e.getKey());
        if (!key.matches("[\\w.]+")) {
          throw fail("alpha_pattern", "names of modules", key);
        }
        if (stem.equals(key) || stem.endsWith("." + key)) {
          alpha = e.getValue();
          break;
        }
      }
    }
    if (!(alpha instanceof Number number)) {
      throw fail("lora_alpha", "a number", alpha);
    }
    double rank = p.a == null ? 1 : p.a.rows();
    boolean root = Boolean.TRUE.equals(config.get("use_rslora"));
    return number.doubleValue() / (root ? Math.sqrt(rank) : rank);
  }

  /** Uni-LoRA: both factors from one vector, {@code theta[index] * scale}. */
  private void expand(String stem, Parts p, Tensor theta) {
    if (theta == null || p.indicesA == null || p.indicesB == null) {
      throw fail(stem, "unilora_theta_d, unilora_indices_A and _B", "some of them");
    }
    p.a = expand(stem + ".A", theta, p.indicesA, Optional.ofNullable(p.scalesA));
    p.b = expand(stem + ".B", theta, p.indicesB, Optional.ofNullable(p.scalesB));
  }

  private Tensor expand(String name, Tensor theta, Tensor indices, Optional<Tensor> scales) {
    if (indices.rank() != 2
        || theta.rank() != 1
        || indices.type() != TensorType.I64 && indices.type() != TensorType.I32) {
      throw fail(name, "a vector theta and a matrix of I32 or I64", theta + " and " + indices);
    }
    if (scales.isPresent() && scales.get().elements() != indices.elements()) {
      throw fail(name, "scales=" + indices.elements(), scales.get().elements());
    }
    float[] values = Dequantizer.toFloats(theta);
    float[] factors = scales.map(Dequantizer::toFloats).orElse(null);
    long[] index = new long[Math.toIntExact(indices.elements())];
    int[] times = new int[values.length];
    for (int i = 0; i < index.length; i++) {
      index[i] =
          indices.type() == TensorType.I64
              ? indices.segment().get(ValueLayout.JAVA_LONG_UNALIGNED, 8L * i)
              : indices.segment().get(ValueLayout.JAVA_INT_UNALIGNED, 4L * i);
      if (index[i] < 0 || index[i] >= values.length) {
        throw fail(name + "[" + i + "]", "[0, " + values.length + ")", index[i]);
      }
      times[(int) index[i]]++;
    }
    float[] out = new float[index.length];
    for (int i = 0; i < out.length; i++) {
      int at = (int) index[i];
      // Without saved scales an entry counts by how often it is used.
      out[i] = values[at] * (factors == null ? (float) (1 / Math.sqrt(times[at])) : factors[i]);
    }
    return store.floats(name, out, indices.shape());
  }

  /** Names of layers in Hugging Face checkpoints of the model's family, to those of the graph. */
  private Map<String, String> hfNames() {
    Map<String, String> names = new HashMap<>();
    List<String> all = new ArrayList<>(List.of("output", EMBEDDING));
    for (int i = 0; i < hp.blocks().size(); i++) {
      for (String layer : LAYERS) {
        all.add("blk." + i + "." + layer);
      }
      Optional<BlockSpec.Experts> spec =
          hp.blocks().get(i).feedForward().flatMap(BlockSpec.FeedForward::experts);
      int experts = spec.map(e -> e.route().experts()).orElse(0);
      for (int e = 0; e < experts; e++) {
        for (String layer : EXPERTS) {
          all.add("blk." + i + "." + layer + "." + e);
        }
      }
      int routers =
          spec.filter(e -> e.chain().routers()).map(e -> e.chain().iterations()).orElse(0);
      for (int t = 0; t < routers; t++) {
        all.add("blk." + i + ".ffn_gate_inp." + t);
      }
    }
    TensorNames hf = hp.architecture().hfNames();
    for (String name : all) {
      hf.fileName(name + ".weight")
          .ifPresent(n -> names.put(n.substring(0, n.length() - ".weight".length()), name));
    }
    return names;
  }

  // ---- GGUF

  private void gguf() {
    try (WeightFile file = WeightFile.open(path)) {
      Metadata m = file.metadata();
      String type = m.string("adapter.type").orElse("");
      if (file.format() != WeightFile.Format.GGUF || !type.equals("lora")) {
        throw fail("adapter.type", "lora", type);
      }
      m.string("general.architecture")
          .filter(a -> !a.equals(hp.architecture().id()))
          .ifPresent(a -> {
            throw fail("general.architecture", hp.architecture().id(), a);
          });
      double alpha =
          m.number("adapter.lora.alpha")
              .orElseThrow(() -> fail("adapter.lora.alpha", "present", "absent"));
      Map<String, Parts> parts = new TreeMap<>();
      for (Tensor t : file.tensors().values()) {
        boolean isA = t.name().endsWith(".weight.lora_a");
        if (!isA && !t.name().endsWith(".weight.lora_b")) {
          throw fail("tensor", "*.weight.lora_a|b", t.name());
        }
        String stem = t.name().substring(0, t.name().length() - ".weight.lora_a".length());
        Parts p = parts.computeIfAbsent(stem, s -> new Parts());
        if (isA) {
          p.a = copy(t);
        } else {
          p.b = copy(t);
        }
      }
      parts.forEach((stem, p) -> {
        // Without an alpha of its own, as other tools read it, the scale is 1.
        double own = p.a == null || alpha == 0 ? 1 : alpha / p.a.rows();
        put(stem, stem, p, own, true);
      });
    }
  }

  // ---- both

  private Tensor copy(Tensor t) {
    Tensor own = store.allocate(t.name(), t.type(), t.shape());
    MemorySegment.copy(t.segment(), 0, own.segment(), 0, t.bytes());
    return own;
  }

  /** A factor of a type that products read; any other becomes float32. */
  private Tensor factor(String stem, Tensor t) {
    if (t.rank() != 2) {
      throw fail(stem + ": " + t.name(), "a matrix", t);
    }
    return switch (t.type()) {
      case F32, F16, BF16 -> t;
      case I8, I16, I32, I64, F64 -> throw fail(stem + ": type", "a type of weights", t.type());
      default -> store.floats(t.name(), Dequantizer.toFloats(t), t.shape());
    };
  }

  private void put(String layer, String stem, Parts p, double own, boolean pairs) {
    if (p.a == null || p.b == null) {
      throw fail(stem, "lora_A and lora_B", "one of them");
    }
    Optional<Tensor> magnitude = Optional.ofNullable(p.magnitude).map(m -> column(stem, m, p.b));
    Tensor a = factor(stem, p.a);
    Tensor b = factor(stem, p.b);
    Optional<Tensor> middle = Optional.ofNullable(p.middle).map(t -> factor(stem, t));
    if (b.cols() != a.rows()
        || middle.isPresent()
            && (middle.get().rows() != a.rows() || middle.get().cols() != a.rows())) {
      throw fail(
          stem + ": rank",
          a.rows(),
          b.cols() + middle.map(t -> " and " + t.rows() + " x " + t.cols()).orElse(""));
    }
    float scale = (float) (own * factor);
    if (!Float.isFinite(scale)) {
      throw fail(stem + ": scale", "finite", scale);
    }
    deltas.put(
        layer,
        new Delta(
            stem,
            a,
            middle,
            ordered(layer, b, pairs),
            scale,
            magnitude.map(m -> ordered(layer, m, pairs))));
  }

  /** Magnitudes as a matrix of one column of float32. */
  private Tensor column(String stem, Tensor m, Tensor b) {
    if (m.elements() != b.rows()) {
      throw fail(stem + ".lora_magnitude_vector", b.rows() + " elements", m.elements());
    }
    return store.floats(m.name(), Dequantizer.toFloats(m), m.elements(), 1);
  }

  /**
   * Rows of queries and keys lie in pairs in GGUF files of some families, in halves in Hugging Face
   * checkpoints (specs weights 1.7); those of latent attention lie in pairs in both.
   *
   * @param pairs whether the adapter's are as in GGUF files
   */
  private Tensor ordered(String layer, Tensor b, boolean pairs) {
    boolean wanted = base != WeightFile.Format.SAFETENSORS;
    if (pairs == wanted
        || hp.architecture().ggufRope() != RopeSpec.Style.NORM
        || !layer.matches("blk\\.\\d+\\.attn_[qk]")) {
      return b;
    }
    int block = Integer.parseInt(layer.substring(4, layer.indexOf('.', 4)));
    Optional<BlockSpec.Attention> attention =
        block < hp.blocks().size() ? hp.blocks().get(block).attention() : Optional.empty();
    if (attention.flatMap(BlockSpec.Attention::latent).isPresent()) {
      return b;
    }
    int dim = attention.map(BlockSpec.Attention::keyDim).orElse(1);
    if (b.rows() % dim != 0) {
      throw fail(layer + ": rows", "a multiple of " + dim, b.rows());
    }
    int half = dim / 2;
    long rowBytes = b.rowBytes();
    Tensor turned = store.allocate(b.name(), b.type(), b.shape());
    for (long row = 0; row < b.rows(); row++) {
      int i = (int) (row % dim);
      long from = row - i + (wanted ? i % 2 * half + i / 2 : i % half * 2 + i / half);
      MemorySegment.copy(b.segment(), from * rowBytes, turned.segment(), row * rowBytes, rowBytes);
    }
    return turned;
  }

  /** What is added to a matrix, by the graph's name of the layer. */
  Optional<LinearOp.Term> term(String layer) {
    Delta d = deltas.get(layer);
    if (d == null) {
      return Optional.empty();
    }
    used.add(layer);
    if (d.magnitude().isPresent()) {
      throw new IllegalStateException("not only a sum: " + layer);
    }
    LinearOp a = LinearOp.dense(d.a());
    LinearOp v =
        d.middle().<LinearOp>map(n -> new LinearOp.Chain(List.of(a, LinearOp.dense(n)))).orElse(a);
    return Optional.of(
        new LinearOp.Term(
            d.own(), new LinearOp.LowRank(LinearOp.dense(d.b()), v, LinearOp.Inner.IDENTITY)));
  }

  /**
   * What DoRA makes of a matrix {@code W} when it is added at open: {@code y = gain (W x) + factor
   * B (A x)}, the gain and the factor with the scale that was asked for.
   *
   * @param gain by which rows of the matrix grow
   * @param term what is added besides
   */
  record Grown(float[] gain, LinearOp.Term term) {}

  /** Whether the adapter makes rows of a matrix grow, so that it is no sum. */
  boolean grows(String layer) {
    return Optional.ofNullable(deltas.get(layer)).flatMap(Delta::magnitude).isPresent();
  }

  /**
   * DoRA on a matrix.
   *
   * @throws FletchException if the matrix is not stored whole
   */
  Grown grown(String layer, LinearOp weight) {
    Delta d = deltas.get(layer);
    used.add(layer);
    // The lengths are those with the adapter's own scale; what was asked for scales the change.
    float own = factor == 0 ? 0 : d.own() / factor;
    LowRankDelta plain = new LowRankDelta(first(d), d.b(), own);
    LowRankDelta whole = decomposed(d, weight, plain, d.magnitude().orElseThrow());
    float[] gain = Dequantizer.toFloats(whole.gain().orElseThrow());
    for (int i = 0; i < gain.length; i++) {
      gain[i] = 1 + factor * gain[i];
    }
    LinearOp op =
        new LinearOp.LowRank(
            LinearOp.dense(whole.b()), LinearOp.dense(whole.a()), LinearOp.Inner.IDENTITY);
    return new Grown(gain, new LinearOp.Term(factor * own, op));
  }

  /**
   * What is added to rows of the embedding: the factor of tokens as a table {@code [tokens, rank]},
   * and the other one.
   */
  Optional<TokenTerm> embedding() {
    Delta d = deltas.get(EMBEDDING);
    if (d == null) {
      return Optional.empty();
    }
    used.add(EMBEDDING);
    if (d.middle().isPresent() || d.magnitude().isPresent()) {
      throw fail(d.stem(), "two factors", "more");
    }
    float[] a = Dequantizer.toFloats(d.a());
    int rank = (int) d.a().rows();
    int tokens = (int) d.a().cols();
    float[] table = new float[a.length];
    for (int t = 0; t < tokens; t++) {
      for (int r = 0; r < rank; r++) {
        table[t * rank + r] = d.own() * a[r * tokens + t];
      }
    }
    return Optional.of(new TokenTerm(store.floats(d.a().name(), table, tokens, rank), d.b()));
  }

  /**
   * What is added to rows of the embedding.
   *
   * @param table a row for each token, with the scale in it
   * @param b {@code [width, rank]}
   */
  record TokenTerm(Tensor table, Tensor b) {}

  /**
   * What is added to the matrices of some experts of a layer: both factors of each as a matrix of
   * equal shapes, of zeros where an expert has none.
   *
   * @param b with the scale in it
   */
  record ExpertTerms(List<Tensor> a, List<Tensor> b) {}

  /**
   * The terms of the experts of a layer.
   *
   * @param layer such as {@code blk.3.ffn_up_exps}
   */
  Optional<ExpertTerms> experts(String layer, int experts, int out, int in) {
    int rank = 0;
    for (int e = 0; e < experts; e++) {
      Delta d = deltas.get(layer + "." + e);
      if (d == null) {
        continue;
      }
      used.add(layer + "." + e);
      if (d.magnitude().isPresent() || d.a().cols() != in || d.b().rows() != out) {
        throw fail(
            d.stem() + ": factors without magnitudes, shape",
            "[" + out + ", " + in + "]",
            "[" + d.b().rows() + ", " + d.a().cols() + "]");
      }
      rank = Math.max(rank, (int) d.a().rows());
    }
    if (rank == 0) {
      return Optional.empty();
    }
    List<Tensor> all = new ArrayList<>();
    List<Tensor> ups = new ArrayList<>();
    for (int e = 0; e < experts; e++) {
      float[] a = new float[rank * in];
      float[] b = new float[out * rank];
      Delta d = deltas.get(layer + "." + e);
      if (d != null) {
        float[] down = Dequantizer.toFloats(first(d));
        float[] up = Dequantizer.toFloats(d.b());
        System.arraycopy(down, 0, a, 0, down.length);
        int own = (int) d.a().rows();
        for (int i = 0; i < up.length; i++) {
          b[i / own * rank + i % own] = d.own() * up[i];
        }
      }
      all.add(store.floats(layer + ".a." + e, a, rank, in));
      ups.add(store.floats(layer + ".b." + e, b, out, rank));
    }
    return Optional.of(new ExpertTerms(all, ups));
  }

  /** Refuses matrices that the model does not have. */
  void checkAllUsed() {
    deltas.forEach((layer, d) -> {
      if (!used.contains(layer)) {
        throw unknown(d);
      }
    });
  }

  private FletchException unknown(Delta d) {
    return fail("matrix " + d.stem(), "a matrix of the model", "no such matrix");
  }

  /** A product whose rows an adapter given at open makes grow has no place for another one. */
  private FletchException growsAtOpen(Delta d) {
    return fail(
        "matrix " + d.stem(),
        "a matrix that no DoRA given when the model was opened (--lora) changes; give all adapters"
            + " of it when the model is opened, or all to the session",
        "changed by DoRA");
  }

  /** Adapters of sessions add to products alone. */
  private FletchException onlyAtOpen(Delta d) {
    return fail(
        "matrix " + d.stem(),
        "one that rows of a session may change, or an adapter that is given when the model is"
            + " opened",
        "embedding or expert");
  }

  /** The largest rank. */
  public int rank() {
    return deltas.values().stream().mapToInt(d -> (int) d.a().rows()).max().orElse(0);
  }

  /** Names of its matrices as the graph has them, ascending. */
  public List<String> targets() {
    return List.copyOf(deltas.keySet());
  }

  /**
   * What is added to the products of a graph.
   *
   * @throws FletchException if the graph has no such product, its shape differs, or its rows grow
   *     by an adapter that the model was opened with
   */
  public Map<Value, LowRankDelta> deltas(Graph graph) {
    Set<String> wholes = new HashSet<>();
    // A chain of experts uses some of its matrices several times.
    Map<String, List<Op.Linear>> products = new HashMap<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l) {
        String name = l.out().name();
        if (name.endsWith(WHOLE)) {
          String layer = name.substring(0, name.length() - WHOLE.length());
          wholes.add(layer.equals("logits") ? "output" : layer);
        }
        boolean isOutput = name.equals("logits");
        // An output matrix that is the embedding too changes where logits are made alone, as in
        // PEFT until it merges.
        products.computeIfAbsent(isOutput ? "output" : name, n -> new ArrayList<>()).add(l);
      }
    }
    Map<Value, LowRankDelta> out = new LinkedHashMap<>();
    deltas.forEach((layer, d) -> {
      List<Op.Linear> uses = products.getOrDefault(layer, List.of());
      if (uses.isEmpty()) {
        if (wholes.contains(layer)) {
          throw growsAtOpen(d);
        }
        boolean isKnown = layer.equals(EMBEDDING) || layer.matches(".*_exps\\.\\d+");
        throw isKnown ? onlyAtOpen(d) : unknown(d);
      }
      Op.Linear l = uses.getFirst();
      if (d.a().cols() != l.in().width() || d.b().rows() != l.out().width()) {
        throw fail(
            d.stem() + ": shape",
            "[" + l.out().width() + ", " + l.in().width() + "]",
            "[" + d.b().rows() + ", " + d.a().cols() + "]");
      }
      LowRankDelta plain = new LowRankDelta(first(d), d.b(), d.own());
      LowRankDelta delta =
          d.magnitude().map(m -> decomposed(d, l.weight(), plain, m)).orElse(plain);
      uses.forEach(use -> out.put(use.out(), delta));
    });
    return out;
  }

  /**
   * DoRA: {@code W' = m (W + s B A) / |W + s B A|}, row by row, so {@code W' x = W x + (g - 1) W x
   * + g s B A x} with {@code g = m / |W + s B A|}.
   */
  private LowRankDelta decomposed(Delta d, LinearOp weight, LowRankDelta plain, Tensor magnitude) {
    if (!(weight instanceof LinearOp.Dense dense)) {
      throw fail(d.stem() + ".lora_magnitude_vector", "a matrix that is stored whole", weight);
    }
    float[] a = Dequantizer.toFloats(plain.a());
    float[] b = Dequantizer.toFloats(plain.b());
    float[] m = Dequantizer.toFloats(magnitude);
    int in = Math.toIntExact(weight.in());
    int rank = plain.rank();
    if (plain.a().cols() != in || plain.b().rows() != weight.out()) {
      throw fail(
          d.stem() + ": shape",
          "[" + weight.out() + ", " + in + "]",
          "[" + plain.b().rows() + ", " + plain.a().cols() + "]");
    }
    float f0 = plain.factor();
    float[] gain = new float[m.length];
    IntStream.range(0, m.length)
        .parallel()
        .forEach(row -> {
          float[] w = new float[in];
          Dequantizer.row(dense.weight(), row, w, 0);
          for (int k = 0; k < rank; k++) {
            float f = f0 * b[row * rank + k];
            for (int i = 0; i < in; i++) {
              w[i] = Math.fma(f, a[k * in + i], w[i]);
            }
          }
          double squares = 0;
          for (float v : w) {
            squares += (double) v * v;
          }
          float g = (float) (m[row] / Math.sqrt(squares));
          gain[row] = g - 1;
          for (int k = 0; k < rank; k++) {
            b[row * rank + k] *= g;
          }
        });
    for (float g : gain) {
      if (!Float.isFinite(g)) {
        throw fail(d.stem() + ": length of a row", "positive", 0);
      }
    }
    return new LowRankDelta(
        plain.a(),
        store.floats(d.b().name(), b, d.b().shape()),
        f0,
        Optional.of(store.floats(magnitude.name(), gain, gain.length)));
  }

  /** The first factor, with the middle one in it. */
  private Tensor first(Delta d) {
    if (d.middle().isEmpty()) {
      return d.a();
    }
    float[] n = Dequantizer.toFloats(d.middle().get());
    float[] a = Dequantizer.toFloats(d.a());
    int rank = (int) d.a().rows();
    int in = (int) d.a().cols();
    float[] out = new float[a.length];
    double[] row = new double[in];
    for (int r = 0; r < rank; r++) {
      Arrays.fill(row, 0);
      for (int k = 0; k < rank; k++) {
        double f = n[r * rank + k];
        for (int i = 0; i < in; i++) {
          row[i] += f * a[k * in + i];
        }
      }
      for (int i = 0; i < in; i++) {
        out[r * in + i] = (float) row[i];
      }
    }
    return store.floats(d.a().name(), out, rank, in);
  }
}
