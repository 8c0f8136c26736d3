package io.fletch.runtime.convert;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.Pooling;
import io.fletch.graph.Activation;
import io.fletch.graph.RopeSpec;
import io.fletch.quant.GgufType;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.Metadata;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.Architecture;
import io.fletch.runtime.arch.BlockSpec;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.RopeParameters;
import io.fletch.runtime.arch.RopeScaling;
import io.fletch.runtime.arch.TensorNames;
import io.fletch.runtime.arch.WeightTensors;
import io.fletch.runtime.engine.SentenceSettings;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.LongUnaryOperator;

/**
 * An open weight file seen as one of the other container: what its tensors are called there, in
 * which order their rows lie, and what its metadata say there. A GGUF file seen as GGUF is itself.
 *
 * <p>Between containers: dense models of the architectures llama, qwen2 and qwen3, with a
 * byte-level BPE tokenizer; embedding models of these, and bert and nomic-bert with a WordPiece
 * tokenizer, from safetensors to GGUF alone. Anything else is refused, with the reason. Used by one
 * thread.
 */
public final class ModelConversion {
  private static final List<String> BLOCK =
      List.of(
          "attn_norm",
          "attn_q",
          "attn_k",
          "attn_v",
          "attn_qkv",
          "attn_output",
          "attn_output_norm",
          "attn_q_norm",
          "attn_k_norm",
          "ffn_norm",
          "ffn_gate",
          "ffn_up",
          "ffn_down",
          "layer_output_norm");

  private final WeightFile file;
  private final HyperParameters hp;

  private ModelConversion(WeightFile file, HyperParameters hp) {
    this.file = file;
    this.hp = hp;
  }

  /**
   * A model whose container may be changed.
   *
   * @param derived takes tensors that must be computed
   * @throws FletchException if it is none of the convertible ones
   */
  private static ModelConversion of(WeightFile file, TensorStore derived) {
    HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
    Architecture arch = declared.architecture();
    boolean isConvertible =
        switch (arch) {
          case LLAMA, QWEN2, QWEN3 -> true;
          case BERT, NOMIC_BERT -> file.format() == WeightFile.Format.SAFETENSORS;
          default -> false;
        };
    if (!isConvertible) {
      throw new FletchException(
          "conversion between GGUF and safetensors: architecture: expected=llama|qwen2|qwen3"
              + (file.format() == WeightFile.Format.SAFETENSORS ? "|bert|nomic-bert" : "")
              + " actual="
              + arch.id()
              + " (quantizing within GGUF works for all)");
    }
    WeightTensors weights = WeightTensors.of(file.format(), file.tensors(), arch, derived);
    return new ModelConversion(file, weights.fit(declared));
  }

  /** A model as GGUF: what goes into the writer, and the tensors to add in this order. */
  public record Gguf(GgufWriter metadata, List<TensorCopy> tensors, List<String> notes) {}

  /**
   * A model as GGUF.
   *
   * @param derived takes tensors that must be computed; open until the file is written
   * @throws FletchException if that is not possible
   */
  public static Gguf toGguf(WeightFile file, TensorStore derived) {
    if (!file.unsupported().isEmpty()) {
      throw new FletchException(
          "tensor " + file.unsupported().values().iterator().next() + ": type is not supported");
    }
    if (file.format() == WeightFile.Format.GGUF) {
      return new Gguf(
          new GgufWriter().putAll(file.metadata()),
          file.tensors().values().stream().map(TensorCopy::of).toList(),
          List.of());
    }
    if (file.format() == WeightFile.Format.ARROW) {
      return new Gguf(
          typed(file.metadata()),
          file.tensors().values().stream().map(TensorCopy::of).toList(),
          List.of());
    }
    return of(file, derived).gguf(derived);
  }

  /**
   * The metadata of a Fletch Arrow file with the types that GGUF has for them, which such a file
   * does not keep: u32 for integers that fit, but i32 for kinds of tokens and what is negative.
   */
  private static GgufWriter typed(Metadata metadata) {
    GgufWriter writer = new GgufWriter();
    metadata
        .entries()
        .forEach((key, value) -> {
          if (value instanceof List<?> list) {
            GgufType type =
                list.stream()
                    .map(v -> type(key, v))
                    .reduce((a, b) -> a == b ? a : wider(key, a, b))
                    .orElse(GgufType.INT32);
            writer.putArray(key, type, list);
          } else {
            writer.put(key, type(key, value), value);
          }
        });
    return writer;
  }

  private static GgufType type(String key, Object value) {
    return switch (value) {
      case String _ -> GgufType.STRING;
      case Boolean _ -> GgufType.BOOL;
      case Long n when key.endsWith("token_type") || n < 0 && n >= Integer.MIN_VALUE ->
          GgufType.INT32;
      case Long n when n >>> 32 == 0 -> GgufType.UINT32;
      case Long _ -> GgufType.INT64;
      case Double _ -> GgufType.FLOAT32;
      default -> throw new FletchException("metadata " + key + ": no type in GGUF: " + value);
    };
  }

  private static GgufType wider(String key, GgufType a, GgufType b) {
    if (a.isInteger() && b.isInteger()) {
      return GgufType.INT64;
    }
    throw new FletchException(
        "metadata " + key + ": values of one type expected=" + a + " actual=" + b);
  }

  /** Whether a tensor is part of a sparse or factorised matrix, which keeps its form and type. */
  public static boolean isEncoded(String name) {
    return name.contains(".sp.")
        || name.endsWith(".diag_blocks")
        || name.endsWith(".coefficients")
        || name.endsWith(".U.weight")
        || name.endsWith(".V.weight");
  }

  /** A model as safetensors: tensors, and the files beside them. */
  public record Safetensors(
      List<TensorCopy> tensors, Map<String, String> files, List<String> notes) {}

  /**
   * A model as safetensors.
   *
   * @throws FletchException if that is not possible
   */
  public static Safetensors toSafetensors(WeightFile file) {
    try (TensorStore derived = TensorStore.create()) {
      return of(file, derived).safetensors();
    }
  }

  private List<String> names() {
    List<String> names =
        new ArrayList<>(
            List.of(
                "token_embd",
                "token_types",
                "position_embd",
                "token_embd_norm",
                "output_norm",
                "output"));
    for (int i = 0; i < hp.blocks().size(); i++) {
      for (String part : BLOCK) {
        names.add("blk." + i + "." + part);
      }
    }
    return names;
  }

  /** File name to GGUF name, of all that a model of the family can have. */
  private Map<String, String> ggufNames() {
    TensorNames hf = hp.architecture().hfNames().in(file.tensors().keySet());
    Map<String, String> result = new LinkedHashMap<>();
    for (String stem : names()) {
      for (String suffix : List.of(".weight", ".bias")) {
        String name = stem + suffix;
        hf.fileName(name).ifPresent(n -> result.put(n, name));
      }
    }
    return result;
  }

  private BlockSpec.Attention attention(String ggufName) {
    int layer = Integer.parseInt(ggufName.substring(4, ggufName.indexOf('.', 4)));
    return hp.blocks().get(layer).attention().orElseThrow();
  }

  /**
   * Rows of queries and keys lie in pairs in GGUF files of llama, in halves elsewhere (specs
   * weights 1.7).
   *
   * @param toPairs whether the new tensor is the one in pairs
   */
  private LongUnaryOperator rows(String ggufName, boolean toPairs) {
    boolean turns =
        hp.architecture().ggufRope() == RopeSpec.Style.NORM
            && ggufName.matches("blk\\.\\d+\\.attn_[qk]\\.(weight|bias)");
    if (!turns) {
      return LongUnaryOperator.identity();
    }
    int dim = attention(ggufName).keyDim();
    int half = dim / 2;
    return row -> {
      long head = row / dim;
      int i = (int) (row % dim);
      int from = toPairs ? i % 2 * half + i / 2 : i % half * 2 + i / half;
      return head * dim + from;
    };
  }

  private TensorCopy renamed(String to, Tensor source, String ggufName, boolean toPairs) {
    LongUnaryOperator order = rows(ggufName, toPairs);
    // The rows of a vector are its elements.
    Tensor rows =
        source.rank() == 1 && ggufName.endsWith(".bias")
            ? source.view(source.name(), 0, source.elements(), 1)
            : source;
    return new TensorCopy(to, rows, source.shape(), order);
  }

  private Gguf gguf(TensorStore derived) {
    Map<String, String> names = ggufNames();
    List<TensorCopy> tensors = new ArrayList<>();
    Map<String, TensorCopy> byName = new LinkedHashMap<>();
    List<String> notes = new ArrayList<>();
    for (Tensor tensor : file.tensors().values()) {
      String name = names.get(tensor.name());
      if (name == null) {
        if (tensor.name().endsWith("rotary_emb.inv_freq")) {
          notes.add(tensor.name() + " is left out: it is computed from the configuration");
          continue;
        }
        if (hp.encoder().isPresent() && WeightTensors.isIgnorable(tensor.name())) {
          notes.add(tensor.name() + " is left out: vectors do not need it");
          continue;
        }
        throw new FletchException("tensor " + tensor.name() + ": no name for it in GGUF");
      }
      if (name.equals("output.weight") && hp.tiedOutput()) {
        notes.add(tensor.name() + " is left out: the configuration ties it to the embedding");
        continue;
      }
      byName.put(name, renamed(name, tensor, name, true));
    }
    // In the order of layers, whatever the order in the file.
    for (String stem : names()) {
      for (String suffix : List.of(".weight", ".bias")) {
        TensorCopy copy = byName.get(stem + suffix);
        if (copy != null) {
          tensors.add(copy);
        }
      }
    }
    GgufWriter writer = new GgufWriter();
    String id = hp.architecture().id();
    writer.put("general.architecture", id);
    writer.put("general.type", "model");
    java.nio.file.Path folder = file.path().toAbsolutePath().getFileName();
    writer.put("general.name", folder == null ? id : folder.toString());
    String at = id + ".";
    BlockSpec.Attention a = first();
    writer.put(at + "block_count", hp.blocks().size());
    writer.put(at + "context_length", hp.contextLength());
    writer.put(at + "embedding_length", hp.embeddingLength());
    perLayer(
        writer, at + "feed_forward_length", layers(b -> b.feedForward().orElseThrow().width()));
    perLayer(writer, at + "attention.head_count", layers(b -> b.attention().orElseThrow().heads()));
    perLayer(
        writer, at + "attention.head_count_kv", layers(b -> b.attention().orElseThrow().kvHeads()));
    boolean isRms = hp.norm() == HyperParameters.Norm.RMS;
    writer.put(
        at + (isRms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon"),
        hp.normEps());
    writer.put(at + "attention.key_length", a.keyDim());
    writer.put(at + "attention.value_length", a.valueDim());
    writer.put(at + "vocab_size", hp.vocabulary());
    if (!hp.causal()) {
      writer.put(at + "attention.causal", false);
    }
    java.nio.file.Path beside =
        java.nio.file.Files.isDirectory(file.path())
            ? file.path()
            : file.path().toAbsolutePath().getParent();
    pooling(SentenceSettings.read(beside)).ifPresent(type -> writer.put(at + "pooling_type", type));
    if (!hp.encoder().map(HyperParameters.Encoder::learnedPositions).orElse(false)) {
      rotation(at, writer, tensors, derived);
    }
    TokenizerConversion.toGguf(file.path(), hp.vocabulary(), writer, notes);
    return new Gguf(writer, tensors, notes);
  }

  /** What {@code pooling_type} says of a model that gives vectors. */
  private Optional<Integer> pooling(SentenceSettings settings) {
    Optional<Pooling> pooling =
        settings.pooling().or(() -> hp.encoder().map(encoder -> Pooling.MEAN));
    return pooling.map(p ->
        switch (p) {
          case NONE -> 0;
          case MEAN -> 1;
          case CLS -> 2;
          case LAST -> 3;
        });
  }

  private void rotation(
      String at, GgufWriter writer, List<TensorCopy> tensors, TensorStore derived) {
    RopeParameters rope = rope();
    writer.put(at + "rope.freq_base", (float) rope.base());
    writer.put(at + "rope.dimension_count", rope.rotated());
    switch (rope.scaling()) {
      case RopeScaling.None _ -> {}
      case RopeScaling.Linear linear -> {
        writer.put(at + "rope.scaling.type", "linear");
        writer.put(at + "rope.scaling.factor", (float) linear.factor());
      }
      case RopeScaling.Llama3 llama3 ->
          tensors.add(
              TensorCopy.of(
                  derived.floats("rope_freqs.weight", factors(rope, llama3), rope.rotated() / 2)));
      default -> throw refused("rope scaling " + rope.scaling());
    }
  }

  /** Frequencies are divided by these (specs weights 1.7). */
  private static float[] factors(RopeParameters rope, RopeScaling.Llama3 s) {
    float[] factors = new float[rope.rotated() / 2];
    for (int i = 0; i < factors.length; i++) {
      double wave = 2 * Math.PI * Math.pow(rope.base(), 2.0 * i / rope.rotated());
      double lowWave = s.original() / s.low();
      double highWave = s.original() / s.high();
      double smooth = (s.original() / wave - s.low()) / (s.high() - s.low());
      factors[i] =
          (float)
              (wave < highWave
                  ? 1
                  : wave > lowWave ? s.factor() : 1 / ((1 - smooth) / s.factor() + smooth));
    }
    return factors;
  }

  private interface LayerSize {
    int of(BlockSpec block);
  }

  private int[] layers(LayerSize size) {
    return hp.blocks().stream().mapToInt(size::of).toArray();
  }

  private static void perLayer(GgufWriter writer, String key, int[] values) {
    if (java.util.Arrays.stream(values).distinct().count() == 1) {
      writer.put(key, values[0]);
    } else {
      writer.putArray(key, GgufType.UINT32, java.util.Arrays.stream(values).boxed().toList());
    }
  }

  private BlockSpec.Attention first() {
    for (BlockSpec block : hp.blocks()) {
      BlockSpec.Attention a =
          block.attention().orElseThrow(() -> refused("a layer without attention"));
      BlockSpec.FeedForward f =
          block.feedForward().orElseThrow(() -> refused("a layer without feed-forward unit"));
      boolean isBert = hp.architecture() == Architecture.BERT;
      if (isBert && f.activation() != Activation.GELU_ERF) {
        throw refused("a feed-forward unit without GELU");
      }
      if (!isBert && (f.activation() != Activation.SILU || !f.gated() || f.experts().isPresent())) {
        throw refused("a feed-forward unit that is not a dense SwiGLU");
      }
      if (f.keep().isPresent()) {
        throw refused("feed-forward units of whose activations only the largest count");
      }
      if (a.window() != 0) {
        throw refused("sliding windows");
      }
      boolean isUsual =
          hp.encoder().isPresent()
              ? block.equals(
                  BlockSpec.of(BlockSpec.Norms.POST, block.attention(), block.feedForward()))
              : block.isPlain();
      if (!isUsual) {
        throw refused("norms after the units, or scaled norms, branches or residuals");
      }
    }
    return hp.blocks().getFirst().attention().orElseThrow();
  }

  private RopeParameters rope() {
    List<RopeParameters> all =
        hp.blocks().stream()
            .map(b -> b.attention().orElseThrow().rope().orElseThrow(() -> refused("no rotation")))
            .distinct()
            .toList();
    if (all.size() != 1) {
      throw refused("different rotations per layer");
    }
    return all.getFirst();
  }

  private static FletchException refused(String what) {
    return new FletchException("conversion between GGUF and safetensors: not supported: " + what);
  }

  private Safetensors safetensors() {
    if (hp.isEmbedding() || !hp.causal()) {
      throw refused("an embedding model to safetensors");
    }
    TensorNames hf = hp.architecture().hfNames();
    List<TensorCopy> tensors = new ArrayList<>();
    List<String> notes = new ArrayList<>();
    for (Tensor tensor : file.tensors().values()) {
      if (tensor.name().equals("rope_freqs.weight")) {
        throw refused("rope_freqs.weight, whose settings a GGUF file does not keep");
      }
      String name =
          hf.fileName(tensor.name())
              .orElseThrow(
                  () -> new FletchException("tensor " + tensor.name() + ": no name for it there"));
      tensors.add(renamed(name, tensor, tensor.name(), false));
    }
    boolean tied = hp.tiedOutput() || file.tensor("output.weight").isEmpty();
    Map<String, Object> config = new LinkedHashMap<>();
    String family =
        switch (hp.architecture()) {
          case LLAMA -> "Llama";
          case QWEN2 -> "Qwen2";
          default -> "Qwen3";
        };
    config.put("architectures", List.of(family + "ForCausalLM"));
    config.put("model_type", hp.architecture().id());
    BlockSpec.Attention a = first();
    config.put("vocab_size", hp.vocabulary());
    config.put("hidden_size", hp.embeddingLength());
    config.put("intermediate_size", most(layers(b -> b.feedForward().orElseThrow().width())));
    config.put("num_hidden_layers", hp.blocks().size());
    config.put("num_attention_heads", most(layers(b -> b.attention().orElseThrow().heads())));
    config.put("num_key_value_heads", most(layers(b -> b.attention().orElseThrow().kvHeads())));
    config.put("head_dim", a.keyDim());
    config.put("hidden_act", "silu");
    config.put("max_position_embeddings", hp.contextLength());
    config.put("rms_norm_eps", Double.parseDouble(Float.toString(hp.normEps())));
    RopeParameters rope = rope();
    config.put("rope_theta", rope.base());
    switch (rope.scaling()) {
      case RopeScaling.None _ -> {}
      case RopeScaling.Linear linear ->
          config.put("rope_scaling", Map.of("rope_type", "linear", "factor", linear.factor()));
      default -> throw refused("rope scaling " + rope.scaling());
    }
    config.put("attention_bias", file.tensor("blk.0.attn_q.bias").isPresent());
    config.put("tie_word_embeddings", tied);
    config.put("use_sliding_window", false);
    Metadata metadata = file.metadata();
    for (String token : List.of("bos", "eos", "padding")) {
      metadata
          .integer("tokenizer.ggml." + token + "_token_id")
          .ifPresent(id -> config.put((token.equals("padding") ? "pad" : token) + "_token_id", id));
    }
    Map<String, String> files = new LinkedHashMap<>();
    TokenizerConversion.toHuggingFace(metadata, files, notes);
    files.put("config.json", json(config));
    return new Safetensors(tensors, files, notes);
  }

  private static int most(int[] values) {
    return java.util.Arrays.stream(values).max().orElseThrow();
  }

  static String json(Object value) {
    try {
      return JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT).asString(value) + "\n";
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /**
   * The type that a tensor keeps if nothing else is asked for: vectors and what is added to
   * embeddings become F32 in GGUF, which other readers insist on; quantized blocks become F16 in
   * safetensors, which has none.
   */
  public static TensorType defaultType(TensorCopy tensor, WeightFile.Format to) {
    TensorType type = tensor.source().type();
    if (isEncoded(tensor.name())) {
      return type;
    }
    boolean isAdded =
        tensor.name().equals("position_embd.weight") || tensor.name().equals("token_types.weight");
    if (to != WeightFile.Format.SAFETENSORS && (tensor.shape().length == 1 || isAdded)) {
      return TensorType.F32;
    }
    return to == WeightFile.Format.SAFETENSORS && type.isQuantized() ? TensorType.F16 : type;
  }
}
