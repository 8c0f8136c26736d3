package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.graph.Activation;
import io.fletch.graph.Gate;
import io.fletch.graph.StandIn;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Metadata;
import io.fletch.quant.Tensor;
import io.fletch.quant.WeightFile;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Forecasters and routers in the published shapes (specs autoregressive 3): a safetensors file with
 * the names of the PyTorch modules, F32, F16 or BF16. Widths and ranks are those of the tensors.
 *
 * <p>Each routed unit of layer N has, below {@code layers.N.}, whatever comes before that:
 *
 * <ul>
 *   <li>{@code router_attention} or {@code router_mlp}: {@code hidden_layer} {@code [w, d]} (left
 *       out in the form without a hidden layer) and {@code weight_predictor} {@code [2, w]}, whose
 *       first score says execute
 *   <li>{@code lw_attn} or {@code lw_mlp}: {@code linear1} {@code [r, d]} and {@code linear2}
 *       {@code [d, r]}
 * </ul>
 *
 * <p>all with {@code .weight} and {@code .bias}. {@code __metadata__} may say {@code activation},
 * what is between the two linear layers of a forecaster ({@code silu}, as in the published code, or
 * {@code none}), {@code router_input} ({@code normed}, what the unit reads, or {@code residual},
 * the stream before its norm) and {@code model}, the hash of the model that the file is for.
 * Without the latter only shapes are checked. Stateless.
 */
final class PublishedForecasts {
  private static final Pattern NAME =
      Pattern.compile(
          "(?:.*\\.)?layers\\.(\\d{1,6})\\.(?:(router)_(attention|mlp)\\.(hidden_layer|weight_predictor)"
              + "|(lw)_(attn|mlp)\\.(linear1|linear2))\\.(weight|bias)");
  private static final String META = "__metadata__.";

  private PublishedForecasts() {}

  /**
   * The stand-ins of an open file.
   *
   * @param identity hash of the model that they are for
   * @throws FletchException if a tensor is missing, is not one of these, or has another shape
   */
  static List<StandIn> read(Path path, WeightFile file, String identity) {
    Metadata m = file.metadata();
    m.string(META + "model")
        .ifPresent(hash -> UnitFiles.checkModel(path.toString(), hash, identity));
    Optional<Activation> activation =
        choice(path, m, "activation", "silu", "none")
            ? Optional.of(Activation.SILU)
            : Optional.empty();
    StandIn.RouterInput input =
        choice(path, m, "router_input", "normed", "residual")
            ? StandIn.RouterInput.NORMED
            : StandIn.RouterInput.RESIDUAL;
    Map<Integer, Map<Gate.Unit, Map<String, Tensor>>> units = new TreeMap<>();
    for (Map.Entry<String, Tensor> e : file.tensors().entrySet()) {
      Matcher name = NAME.matcher(e.getKey());
      if (!name.matches()) {
        throw new FletchException(
            path
                + ": tensor "
                + e.getKey()
                + ": not part of forecasters or routers; a model's own weights belong into a file"
                + " of their own");
      }
      boolean router = name.group(2) != null;
      boolean ffn = (router ? name.group(3) : name.group(6)).equals("mlp");
      String part = (router ? name.group(4) : name.group(7)) + "." + name.group(8);
      Tensor before =
          units
              .computeIfAbsent(Integer.parseInt(name.group(1)), _ -> new TreeMap<>())
              .computeIfAbsent(ffn ? Gate.Unit.FFN : Gate.Unit.ATTENTION, _ -> new HashMap<>())
              .put(part, e.getValue());
      if (before != null) {
        throw new FletchException(path + ": given twice: " + before.name() + " and " + e.getKey());
      }
    }
    if (units.isEmpty()) {
      throw new FletchException(path + ": expected=forecasters and routers actual=no tensors");
    }
    List<StandIn> all = new ArrayList<>();
    units.forEach((layer, parts) ->
        parts.forEach((unit, tensors) -> {
          Gate gate = new Gate(layer, unit);
          boolean deep =
              tensors.containsKey("hidden_layer.weight")
                  || tensors.containsKey("hidden_layer.bias");
          try {
            all.add(
                new StandIn(
                    gate,
                    deep
                        ? Optional.of(layer(path, gate, tensors, "hidden_layer"))
                        : Optional.empty(),
                    layer(path, gate, tensors, "weight_predictor"),
                    layer(path, gate, tensors, "linear1"),
                    activation,
                    layer(path, gate, tensors, "linear2"),
                    input));
          } catch (IllegalArgumentException e) {
            throw new FletchException(path + ": " + gate + ": " + e.getMessage(), e);
          }
        }));
    return all;
  }

  /** Whether an entry has the first value, which is also the default. */
  private static boolean choice(Path path, Metadata m, String key, String first, String second) {
    String value = m.string(META + key).orElse(first);
    if (!value.equals(first) && !value.equals(second)) {
      throw new FletchException(
          path + ": " + key + ": expected=" + first + " or " + second + " actual=" + value);
    }
    return value.equals(first);
  }

  private static StandIn.Layer layer(
      Path path, Gate unit, Map<String, Tensor> tensors, String name) {
    Tensor weight = tensors.get(name + ".weight");
    Tensor bias = tensors.get(name + ".bias");
    if (weight == null
        || weight.rank() != 2
        || weight.type().isQuantized()
        || bias == null
        || bias.rank() != 1
        || bias.type().isQuantized()) {
      throw new FletchException(
          path
              + ": "
              + unit
              + ": "
              + name
              + ": expected=a matrix and a bias of floats actual="
              + weight
              + ", "
              + bias);
    }
    return new StandIn.Layer(LinearOp.dense(weight), bias);
  }
}
