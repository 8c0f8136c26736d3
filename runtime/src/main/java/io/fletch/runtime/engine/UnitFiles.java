package io.fletch.runtime.engine;

import io.fletch.FfnSkip;
import io.fletch.FletchException;
import io.fletch.Model;
import io.fletch.graph.Activation;
import io.fletch.graph.Gate;
import io.fletch.graph.StandIn;
import io.fletch.quant.ArrowWriter;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Metadata;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.quant.WeightFileException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * Artefacts of techniques that let units rest, as Fletch Arrow files (specs autoregressive P7):
 * bound to their model by its hash. Stateless.
 *
 * <p>Stand-ins have tensors {@code blk.N.attn.*} and {@code blk.N.ffn.*}: {@code router_hidden} (if
 * any), {@code router_scores}, {@code forecast_down} and {@code forecast_up}, each with {@code
 * .weight} and {@code .bias}.
 */
public final class UnitFiles {
  private static final String PREFIX = "fletch.units.";
  private static final String SKIP = "ffn-skip";
  private static final String FORECASTS = "lff";
  private static final int VERSION = 1;
  private static final float LARGEST_HALF = 65504;

  private UnitFiles() {}

  /** See {@link FfnSkip#save}. */
  public static void saveSkip(FfnSkip skip, Path file, Model target, Map<String, Object> facts) {
    try (TensorStore store = TensorStore.create()) {
      ArrowWriter writer = writer(SKIP, target, facts);
      writer
          .put(PREFIX + "from", skip.from())
          .put(PREFIX + "to", skip.to())
          .put(PREFIX + "threshold", (double) skip.threshold())
          .put(PREFIX + "run", skip.run())
          .put(PREFIX + "budget", skip.budget())
          .put(PREFIX + "warm_up", skip.warmUp())
          // An Arrow file has at least one column.
          .tensor(store.floats("skip.threshold", new float[] {skip.threshold()}, 1))
          .write(file);
    }
  }

  /** See {@link FfnSkip#load}. */
  public static FfnSkip loadSkip(Path file) {
    try (WeightFile in = WeightFile.open(file)) {
      Metadata m = in.metadata();
      checkTechnique(file, m, SKIP);
      return new FfnSkip(
          integer(file, m, "from"),
          integer(file, m, "to"),
          (float) number(file, m, "threshold"),
          integer(file, m, "run"),
          integer(file, m, "budget"),
          integer(file, m, "warm_up"),
          m.string(PREFIX + "model").orElse("of none"));
    } catch (WeightFileException | IllegalArgumentException e) {
      throw ModelLoader.failure(file, e);
    }
  }

  /** Writes stand-ins for a model; forecasters' matrices become F16. */
  public static void saveForecasts(
      List<StandIn> standIns, Path file, Model target, Map<String, Object> facts) {
    try (TensorStore halves = TensorStore.create()) {
      saveForecasts(standIns, writer(FORECASTS, target, facts), halves, file);
    }
  }

  private static void saveForecasts(
      List<StandIn> standIns, ArrowWriter writer, TensorStore halves, Path file) {
    for (StandIn s : standIns) {
      boolean silu = s.activation().equals(Optional.of(Activation.SILU));
      if (s.activation().isPresent() && !silu || s.routerInput() != StandIn.RouterInput.NORMED) {
        throw new IllegalArgumentException(
            "expected=SILU or nothing, and a router of the unit's input actual=" + s);
      }
      writer.put(PREFIX + "activation", silu ? "silu" : "none");
      String name = name(s.unit());
      s.hidden().ifPresent(h -> put(writer, name + "router_hidden", h));
      put(writer, name + "router_scores", s.output());
      put(writer, name + "forecast_down", half(halves, s.down()));
      put(writer, name + "forecast_up", half(halves, s.up()));
    }
    writer.write(file);
  }

  /** The matrix as F16, unless an element is too large for that; forecasts are not that exact. */
  private static StandIn.Layer half(TensorStore halves, StandIn.Layer layer) {
    if (!(layer.weight() instanceof LinearOp.Dense dense)
        || dense.weight().type() != TensorType.F32) {
      return layer;
    }
    Tensor from = dense.weight();
    float[] values = Dequantizer.toFloats(from);
    for (float v : values) {
      if (!(Math.abs(v) <= LARGEST_HALF)) {
        return layer;
      }
    }
    Tensor to = halves.allocate(from.name(), TensorType.F16, from.shape());
    for (int i = 0; i < values.length; i++) {
      to.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, Float.floatToFloat16(values[i]));
    }
    return new StandIn.Layer(LinearOp.dense(to), layer.bias());
  }

  private static void put(ArrowWriter writer, String name, StandIn.Layer layer) {
    if (!(layer.weight() instanceof LinearOp.Dense dense)) {
      throw new IllegalArgumentException(name + ": expected=a dense matrix actual=" + layer);
    }
    writer.tensor(dense.weight().view(name + ".weight", 0, dense.weight().shape()));
    writer.tensor(layer.bias().view(name + ".bias", 0, layer.bias().shape()));
  }

  /**
   * The stand-ins of an open file, which may be a safetensors file of {@link PublishedForecasts}.
   *
   * @param identity hash of the model that they are for
   */
  static List<StandIn> forecasts(Path path, WeightFile file, String identity) {
    if (file.format() == WeightFile.Format.SAFETENSORS) {
      return PublishedForecasts.read(path, file, identity);
    }
    Metadata m = file.metadata();
    checkTechnique(path, m, FORECASTS);
    checkModel(path.toString(), m.string(PREFIX + "model").orElse("of none"), identity);
    Optional<Activation> activation =
        switch (m.string(PREFIX + "activation").orElse("none")) {
          case "silu" -> Optional.of(Activation.SILU);
          case "none" -> Optional.empty();
          case String other ->
              throw new FletchException(
                  path + ": activation: expected=silu or none actual=" + other);
        };
    Map<String, Tensor> tensors = new HashMap<>();
    Set<Gate> units = new HashSet<>();
    for (Tensor t : file.tensors().values()) {
      tensors.put(t.name(), t);
      units.add(unit(path, t.name()));
    }
    List<StandIn> all = new ArrayList<>();
    for (Gate unit : units) {
      String name = name(unit);
      boolean deep = tensors.containsKey(name + "router_hidden.weight");
      all.add(
          new StandIn(
              unit,
              deep ? Optional.of(layer(path, tensors, name + "router_hidden")) : Optional.empty(),
              layer(path, tensors, name + "router_scores"),
              layer(path, tensors, name + "forecast_down"),
              activation,
              layer(path, tensors, name + "forecast_up")));
    }
    if (!tensors.isEmpty()) {
      throw new FletchException(path + ": unknown tensors: " + tensors.keySet());
    }
    return all;
  }

  private static StandIn.Layer layer(Path path, Map<String, Tensor> tensors, String name) {
    Tensor weight = tensors.remove(name + ".weight");
    Tensor bias = tensors.remove(name + ".bias");
    if (weight == null || weight.rank() != 2 || bias == null || bias.rank() != 1) {
      throw new FletchException(
          path + ": " + name + ": expected=a matrix and a bias actual=" + weight + ", " + bias);
    }
    return new StandIn.Layer(LinearOp.dense(weight), bias);
  }

  private static String name(Gate unit) {
    return "blk." + unit.layer() + (unit.unit() == Gate.Unit.FFN ? ".ffn." : ".attn.");
  }

  private static Gate unit(Path path, String tensor) {
    String[] parts = tensor.split("\\.");
    if (parts.length == 5
        && parts[0].equals("blk")
        && parts[1].matches("\\d{1,6}")
        && (parts[2].equals("ffn") || parts[2].equals("attn"))) {
      Gate.Unit unit = parts[2].equals("ffn") ? Gate.Unit.FFN : Gate.Unit.ATTENTION;
      return new Gate(Integer.parseInt(parts[1]), unit);
    }
    throw new FletchException(path + ": unknown tensor: " + tensor);
  }

  private static ArrowWriter writer(String technique, Model target, Map<String, Object> facts) {
    ArrowWriter writer = new ArrowWriter();
    facts.forEach((key, value) -> writer.put(PREFIX + key, value));
    return writer
        .put("general.type", "units")
        .put(PREFIX + "technique", technique)
        .put(PREFIX + "version", VERSION)
        .put(PREFIX + "model", LoadedModel.hash(target));
  }

  private static void checkTechnique(Path file, Metadata m, String expected) {
    String technique = m.string(PREFIX + "technique").orElse("nothing");
    long version = m.integer(PREFIX + "version").orElse(0L);
    if (!technique.equals(expected) || version != VERSION) {
      throw new FletchException(
          file
              + ": expected="
              + expected
              + " version "
              + VERSION
              + " actual="
              + technique
              + " version "
              + version);
    }
  }

  /** Refuses what was made for another model. */
  static void checkModel(String what, String expected, String identity) {
    if (!expected.equals(identity)) {
      throw new FletchException(
          what + ": made for another model: expected=" + expected + " actual=" + identity);
    }
  }

  private static int integer(Path file, Metadata m, String key) {
    long value = m.integer(PREFIX + key).orElseThrow(() -> missing(file, key));
    return Math.toIntExact(Math.clamp(value, Integer.MIN_VALUE, Integer.MAX_VALUE));
  }

  private static double number(Path file, Metadata m, String key) {
    return m.number(PREFIX + key).orElseThrow(() -> missing(file, key));
  }

  private static FletchException missing(Path file, String key) {
    return new FletchException(file + ": " + PREFIX + key + ": missing");
  }
}
