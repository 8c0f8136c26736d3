package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.FloatRows;
import io.fletch.quant.Tensor;
import io.fletch.quant.WeightFile;
import io.fletch.quant.Workspace;
import io.fletch.quant.merge.Merges;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;

/**
 * A LoRA adapter that is to be merged: a PEFT folder ({@code adapter_config.json}, {@code
 * adapter_model.safetensors}) for a model of safetensors, or a GGUF adapter for a GGUF model (specs
 * weights 4.7). DoRA magnitudes and a middle factor are understood. Closed by its opener.
 */
final class Adapter implements AutoCloseable {
  /** Parts of one matrix. */
  private static final class Parts {
    private Tensor a;
    private Tensor b;
    private Tensor middle;
    private Tensor magnitude;
  }

  private final WeightFile file;
  private final Map<String, Object> config;
  private final Map<String, Parts> parts = new HashMap<>();

  private Adapter(WeightFile file, Map<String, Object> config) {
    this.file = file;
    this.config = config;
  }

  static Adapter open(Path path) throws IOException {
    Map<String, Object> config = new HashMap<>();
    Path weights = path;
    if (Files.isDirectory(path)) {
      config.putAll(JSON.std.mapFrom(path.resolve("adapter_config.json").toFile()));
      weights = path.resolve("adapter_model.safetensors");
    }
    Adapter adapter = new Adapter(WeightFile.open(weights), config);
    try {
      adapter.read();
      return adapter;
    } catch (RuntimeException e) {
      adapter.close();
      throw e;
    }
  }

  private void read() {
    if (Boolean.TRUE.equals(config.get("fan_in_fan_out"))) {
      throw new CommandException("adapter: fan_in_fan_out: expected=false actual=true");
    }
    boolean gguf = file.format() == WeightFile.Format.GGUF;
    if (gguf && !file.metadata().string("adapter.type").orElse("").equals("lora")) {
      throw new CommandException(file.path() + ": adapter.type: expected=lora actual=other");
    }
    for (Tensor tensor : file.tensors().values()) {
      String name = tensor.name();
      if (gguf) {
        int dot = name.lastIndexOf('.');
        set(name.substring(0, dot), name.substring(dot + 1), tensor);
        continue;
      }
      String stem = name.replaceFirst("^base_model\\.model\\.", "");
      int at = stem.indexOf(".lora_");
      if (at < 0) {
        throw new CommandException("adapter: tensor " + name + ": expected=a part of LoRA");
      }
      String kind = stem.substring(at + 1).replaceFirst("(\\.default)?(\\.weight)?$", "");
      set(stem.substring(0, at) + ".weight", kind, tensor);
    }
    parts.forEach((name, p) -> {
      if (p.a == null || p.b == null) {
        throw new CommandException("adapter of " + name + ": expected=A and B actual=one of them");
      }
    });
  }

  private void set(String matrix, String kind, Tensor tensor) {
    Parts p = parts.computeIfAbsent(matrix, _ -> new Parts());
    switch (kind) {
      case "lora_A", "lora_a" -> p.a = tensor;
      case "lora_B", "lora_b" -> p.b = tensor;
      case "lora_N" -> p.middle = tensor;
      case "lora_magnitude_vector" -> p.magnitude = tensor;
      default -> throw new CommandException("adapter: tensor " + tensor.name() + ": not supported");
    }
  }

  /** Names of the matrices it changes, as in the base. */
  java.util.Set<String> matrices() {
    return parts.keySet();
  }

  /** Its weights. */
  WeightFile file() {
    return file;
  }

  /** What tells it from others of the same path. */
  String fingerprint() {
    return Workspace.fingerprint(file) + config;
  }

  boolean changes(String matrix) {
    return parts.containsKey(matrix);
  }

  /** The base's values with the adapter in them; A is held in memory, nothing else. */
  FloatRows merged(String matrix, FloatRows w, double strength) {
    Parts p = parts.get(matrix);
    int rank = Math.toIntExact(p.a.rows());
    return Merges.lora(
        w,
        Dequantizer.toFloats(p.a),
        FloatRows.of(p.b),
        p.middle == null ? null : Dequantizer.toFloats(p.middle),
        strength * scale(matrix, rank),
        p.magnitude == null ? null : Dequantizer.toFloats(p.magnitude));
  }

  private double scale(String matrix, int rank) {
    if (file.format() == WeightFile.Format.GGUF) {
      return file.metadata()
              .number("adapter.lora.alpha")
              .orElseThrow(() -> new CommandException("adapter.lora.alpha: missing"))
          / rank;
    }
    String module = matrix.substring(0, matrix.length() - ".weight".length());
    double alpha = number(config.get("lora_alpha"), "lora_alpha");
    if (config.get("alpha_pattern") instanceof Map<?, ?> patterns) {
      for (Map.Entry<?, ?> e : patterns.entrySet()) {
        if (module.endsWith((String) e.getKey())) {
          alpha = number(e.getValue(), "alpha_pattern");
        }
      }
    }
    return Boolean.TRUE.equals(config.get("use_rslora")) ? alpha / Math.sqrt(rank) : alpha / rank;
  }

  private static double number(Object value, String key) {
    if (value instanceof Number n) {
      return n.doubleValue();
    }
    throw new CommandException(
        "adapter_config.json: " + key + ": expected=a number actual=" + value);
  }

  @Override
  public void close() {
    file.close();
  }
}
