package io.fletch.runtime.arch;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Metadata;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;

/**
 * A low-rank adapter (LoRA, rsLoRA, NLoRA) that is added to a model's matrices when they are used,
 * never to the stored weights: {@code y = W x + scale * s * B (N) A x} (specs weights 4.7). From a
 * PEFT folder ({@code adapter_config.json}, {@code adapter_model.safetensors}) for a safetensors
 * model, or a GGUF file with {@code adapter.type = "lora"} for a GGUF one: the rows of query and
 * key matrices are in another order in the two, so they do not mix.
 *
 * <p>Used by the thread that opens the model; its tensors belong to the model's store.
 */
public final class Adapter {
  private static final String PEFT_PREFIX = "base_model.model.";

  /** Names of matrices as the model's file has them, without {@code .weight}. */
  private final Map<String, LinearOp.Term> deltas = new LinkedHashMap<>();

  private final Path path;
  private final WeightFile.Format base;
  private final float factor;
  private final Set<String> used = new TreeSet<>();

  private Adapter(Path path, WeightFile.Format base, float factor) {
    this.path = path;
    this.base = base;
    this.factor = factor;
  }

  /**
   * Reads an adapter.
   *
   * @param path a PEFT folder or a GGUF file
   * @param scale multiplies the adapter's own scale
   * @param store takes its tensors
   * @throws FletchException if it is of a kind that is not supported; the message names the key
   */
  public static Adapter open(Path path, float scale, TensorStore store) {
    return Files.isDirectory(path) ? peft(path, scale, store) : gguf(path, scale, store);
  }

  private static FletchException fail(Path path, String what, Object expected, Object actual) {
    return new FletchException(path + ": " + what + ": expected=" + expected + " actual=" + actual);
  }

  private static Adapter peft(Path folder, float scale, TensorStore store) {
    Map<String, Object> config;
    try {
      config = JSON.std.mapFrom(Files.readAllBytes(folder.resolve("adapter_config.json")));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    if (!"LORA".equals(config.get("peft_type"))) {
      throw fail(folder, "peft_type", "LORA", config.get("peft_type"));
    }
    for (String key : new String[] {"use_dora", "fan_in_fan_out"}) {
      if (Boolean.TRUE.equals(config.get(key))) {
        throw fail(folder, key, false, true);
      }
    }
    for (String key : new String[] {"rank_pattern", "alpha_pattern"}) {
      if (config.get(key) instanceof Map<?, ?> m && !m.isEmpty()) {
        throw fail(folder, key, "empty", m);
      }
    }
    if (!(config.get("lora_alpha") instanceof Number alpha)) {
      throw fail(folder, "lora_alpha", "a number", config.get("lora_alpha"));
    }
    boolean root = Boolean.TRUE.equals(config.get("use_rslora"));
    Adapter adapter = new Adapter(folder, WeightFile.Format.SAFETENSORS, scale);
    try (WeightFile file = WeightFile.open(folder.resolve("adapter_model.safetensors"))) {
      Map<String, Tensor[]> parts = new TreeMap<>();
      for (Tensor t : file.tensors().values()) {
        String name = t.name();
        int at = name.indexOf(".lora_");
        int kind = at < 0 ? -1 : "ABN".indexOf(name.charAt(at + 6));
        if (!name.startsWith(PEFT_PREFIX) || kind < 0 || !name.endsWith(".weight")) {
          throw fail(folder, "tensor", PEFT_PREFIX + "*.lora_A|B|N.weight", name);
        }
        String stem = name.substring(PEFT_PREFIX.length(), at);
        parts.computeIfAbsent(stem, s -> new Tensor[3])[kind] = copy(t, store);
      }
      parts.forEach((stem, p) -> {
        double rank = p[0] == null ? 1 : p[0].rows();
        double own = alpha.doubleValue() / (root ? Math.sqrt(rank) : rank);
        adapter.put(stem, p, own);
      });
    }
    return adapter;
  }

  private static Adapter gguf(Path path, float scale, TensorStore store) {
    Adapter adapter = new Adapter(path, WeightFile.Format.GGUF, scale);
    try (WeightFile file = WeightFile.open(path)) {
      Metadata m = file.metadata();
      String type = m.string("adapter.type").orElse("");
      if (file.format() != WeightFile.Format.GGUF || !type.equals("lora")) {
        throw fail(path, "adapter.type", "lora", type);
      }
      double alpha =
          m.number("adapter.lora.alpha")
              .orElseThrow(() -> fail(path, "adapter.lora.alpha", "present", "absent"));
      Map<String, Tensor[]> parts = new TreeMap<>();
      for (Tensor t : file.tensors().values()) {
        boolean isA = t.name().endsWith(".weight.lora_a");
        if (!isA && !t.name().endsWith(".weight.lora_b")) {
          throw fail(path, "tensor", "*.weight.lora_a|b", t.name());
        }
        String stem = t.name().substring(0, t.name().length() - ".weight.lora_a".length());
        parts.computeIfAbsent(stem, s -> new Tensor[3])[isA ? 0 : 1] = copy(t, store);
      }
      parts.forEach((stem, p) -> adapter.put(stem, p, p[0] == null ? 0 : alpha / p[0].rows()));
    }
    return adapter;
  }

  private static Tensor copy(Tensor t, TensorStore store) {
    Tensor own = store.allocate(t.name(), t.type(), t.shape());
    MemorySegment.copy(t.segment(), 0, own.segment(), 0, t.bytes());
    return own;
  }

  private void put(String stem, Tensor[] parts, double own) {
    if (parts[0] == null || parts[1] == null) {
      throw fail(path, stem, "lora_A and lora_B", "one of them");
    }
    try {
      LinearOp a = LinearOp.dense(parts[0]);
      LinearOp v = parts[2] == null ? a : new LinearOp.Chain(List.of(a, LinearOp.dense(parts[2])));
      LinearOp delta = new LinearOp.LowRank(LinearOp.dense(parts[1]), v, LinearOp.Inner.IDENTITY);
      deltas.put(stem, new LinearOp.Term((float) (own * factor), delta));
    } catch (IllegalArgumentException e) {
      throw new FletchException(path + ": " + stem + ": " + e.getMessage(), e);
    }
  }

  /** Whether its matrices are named as those of a file of that format. */
  void checkBase(WeightFile.Format format) {
    boolean gguf = format != WeightFile.Format.SAFETENSORS;
    if (gguf != (base == WeightFile.Format.GGUF)) {
      throw fail(
          path,
          "adapter of a model in " + format,
          gguf ? "a GGUF file" : "a PEFT folder",
          base == WeightFile.Format.GGUF ? "a GGUF file" : "a PEFT folder");
    }
  }

  /** What is added to a matrix, by the name of its layer in the model's file. */
  Optional<LinearOp.Term> delta(String layer) {
    LinearOp.Term term = deltas.get(layer);
    if (term != null) {
      used.add(layer);
    }
    return Optional.ofNullable(term);
  }

  /** Refuses matrices that the model does not have. */
  void checkAllUsed() {
    for (String layer : deltas.keySet()) {
      if (!used.contains(layer)) {
        throw fail(path, "matrix " + layer, "one that the model adapts", "none");
      }
    }
  }
}
