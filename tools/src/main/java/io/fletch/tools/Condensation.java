package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.LongUnaryOperator;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Condensed mixtures of experts (CD-MoE, specs weights 5.1): in some layers the router and most
 * experts go, and the constant weights of those that stay are stored instead. Read from the three
 * files that the search of CD-MoE writes, which count the layers that have experts, from 0. One
 * that does not name an expert's weight or names a layer twice is refused. Immutable.
 */
final class Condensation {
  /** What stays in a layer. */
  private record Layer(List<Integer> experts, float[] weights) {}

  private static final Pattern GGUF =
      Pattern.compile("blk\\.(\\d+)\\.(ffn_gate_inp|ffn_(?:gate|up|down)_exps)\\.weight");
  private static final Pattern HF_ROUTER =
      Pattern.compile("model\\.layers\\.(\\d+)\\.mlp\\.gate\\.weight");

  /** What is added to the scores of a router, in either container. */
  private static final Pattern ROUTER_BIAS =
      Pattern.compile(
          "(?:blk\\.(\\d+)\\.exp_probs_b\\.bias|model\\.layers\\.(\\d+)\\.mlp\\.gate\\.expert_bias)");

  private static final Pattern HF_EXPERT =
      Pattern.compile("(model\\.layers\\.(\\d+)\\.mlp\\.experts\\.)(\\d+)(\\..*)");

  /** By the number of the layer in the model. */
  private final Map<Integer, Layer> layers = new TreeMap<>();

  private Condensation() {}

  /**
   * Reads a plan for a model.
   *
   * @param tensors of the model
   * @param order a JSON list of layers
   * @param most how many of its first entries count
   * @param experts from layer to experts, best first; empty for none
   * @param weights from {@code layer-expert} to a list whose last entry is the weight
   * @param kept most experts of a layer
   * @throws CommandException if a file is no such plan for the model
   */
  static Condensation read(
      List<TensorCopy> tensors,
      Path order,
      int most,
      Optional<Path> experts,
      Optional<Path> weights,
      int kept)
      throws IOException {
    List<Integer> routed = routed(tensors);
    if (routed.isEmpty()) {
      throw new CommandException("--condense: expected=a model with routers actual=none");
    }
    if (kept > 0 && (experts.isEmpty() || weights.isEmpty())) {
      throw new UsageException(
          "--condense-experts: expected=--experts and --expert-weights actual=" + kept);
    }
    Map<String, Object> chosen = experts.isPresent() ? object(experts.get()) : Map.of();
    Map<String, Object> constants = weights.isPresent() ? object(weights.get()) : Map.of();
    List<Object> all = list(order);
    if (most != Integer.MAX_VALUE && most > all.size()) {
      throw new CommandException(order + ": layers: expected>=" + most + " actual=" + all.size());
    }
    Condensation plan = new Condensation();
    for (Object entry : all.subList(0, Math.min(most, all.size()))) {
      int index = index(order + ": layer", entry, routed.size());
      int layer = routed.get(index);
      int count = experts(tensors, layer);
      List<Integer> stay = new ArrayList<>();
      if (kept > 0) {
        if (!(chosen.get("" + index) instanceof List<?> best)) {
          throw new CommandException(experts.get() + ": " + index + ": expected=a list of experts");
        }
        for (Object e : best.subList(0, Math.min(kept, best.size()))) {
          stay.add(index(experts.get() + ": " + index, e, count));
        }
        if (new HashSet<>(stay).size() < stay.size()) {
          throw new CommandException(
              experts.get() + ": " + index + ": expected=each expert once actual=" + stay);
        }
      }
      float[] factors = new float[stay.size()];
      for (int i = 0; i < factors.length; i++) {
        factors[i] = weight(weights.get(), constants, index + "-" + stay.get(i));
      }
      if (plan.layers.put(layer, new Layer(stay, factors)) != null) {
        throw new CommandException(order + ": layer " + index + ": expected=once actual=twice");
      }
    }
    return plan;
  }

  private static float weight(Path file, Map<String, Object> constants, String key) {
    boolean isNumber =
        constants.get(key) instanceof List<?> l
            && !l.isEmpty()
            && l.getLast() instanceof Number n
            && Float.isFinite(n.floatValue());
    if (!isNumber) {
      throw new CommandException(
          file + ": " + key + ": expected=[sum, count, mean] actual=" + constants.get(key));
    }
    return ((Number) ((List<?>) constants.get(key)).getLast()).floatValue();
  }

  private static int index(String what, Object value, int end) {
    if (!(value instanceof Integer i) || i < 0 || i >= end) {
      throw new CommandException(what + ": expected=[0, " + end + ") actual=" + value);
    }
    return i;
  }

  private static List<Object> list(Path file) throws IOException {
    try {
      return JSON.std.listFrom(Texts.readStrict(file));
    } catch (com.fasterxml.jackson.core.JacksonException e) {
      throw new CommandException(file + ": expected=a JSON list: " + e.getOriginalMessage());
    }
  }

  private static Map<String, Object> object(Path file) throws IOException {
    try {
      return JSON.std.mapFrom(Texts.readStrict(file));
    } catch (com.fasterxml.jackson.core.JacksonException e) {
      throw new CommandException(file + ": expected=a JSON object: " + e.getOriginalMessage());
    }
  }

  /** The layers with routers, ascending. */
  private static List<Integer> routed(List<TensorCopy> tensors) {
    TreeSet<Integer> all = new TreeSet<>();
    for (TensorCopy t : tensors) {
      Matcher gguf = GGUF.matcher(t.name());
      Matcher hf = HF_ROUTER.matcher(t.name());
      if (gguf.matches() && gguf.group(2).equals("ffn_gate_inp")) {
        all.add(Integer.parseInt(gguf.group(1)));
      } else if (hf.matches()) {
        all.add(Integer.parseInt(hf.group(1)));
      }
    }
    return List.copyOf(all);
  }

  /** How many experts a layer has: rows of its router. */
  private static int experts(List<TensorCopy> tensors, int layer) {
    for (TensorCopy t : tensors) {
      if (t.name().equals("blk." + layer + ".ffn_gate_inp.weight")
          || t.name().equals("model.layers." + layer + ".mlp.gate.weight")) {
        return Math.toIntExact(t.shape()[0]);
      }
    }
    throw new IllegalArgumentException("no router in layer " + layer);
  }

  /** The model with these layers condensed. */
  ModelOutput.View of(ModelOutput.View view, TensorStore store) {
    List<TensorCopy> out = new ArrayList<>();
    for (TensorCopy t : view.tensors()) {
      Matcher gguf = GGUF.matcher(t.name());
      Matcher router = HF_ROUTER.matcher(t.name());
      Matcher expert = HF_EXPERT.matcher(t.name());
      if (gguf.matches() && layers.containsKey(Integer.parseInt(gguf.group(1)))) {
        int number = Integer.parseInt(gguf.group(1));
        Layer layer = layers.get(number);
        if (gguf.group(2).equals("ffn_gate_inp")) {
          out.add(fixed("blk." + number + ".ffn_fixed_exps.weight", layer, store));
        } else if (!layer.experts().isEmpty()) {
          out.add(stacked(t, layer.experts()));
        }
      } else if (router.matches() && layers.containsKey(Integer.parseInt(router.group(1)))) {
        int number = Integer.parseInt(router.group(1));
        out.add(
            fixed(
                "model.layers." + number + ".mlp.fixed_experts.weight", layers.get(number), store));
      } else if (expert.matches() && layers.containsKey(Integer.parseInt(expert.group(2)))) {
        int at =
            layers
                .get(Integer.parseInt(expert.group(2)))
                .experts()
                .indexOf(Integer.parseInt(expert.group(3)));
        if (at >= 0) {
          String name = expert.group(1) + at + expert.group(4);
          out.add(new TensorCopy(name, t.source(), t.shape(), t.order()));
        }
      } else if (!isBiasOfCondensed(t.name())) {
        out.add(t);
      }
    }
    return new ModelOutput.View(out, view.gguf(), view.files(), view.notes());
  }

  private boolean isBiasOfCondensed(String name) {
    Matcher m = ROUTER_BIAS.matcher(name);
    return m.matches()
        && layers.containsKey(Integer.parseInt(m.group(1) == null ? m.group(2) : m.group(1)));
  }

  /** A layer without experts has one weight, which is 0. */
  private static TensorCopy fixed(String name, Layer layer, TensorStore store) {
    float[] values = layer.weights().length == 0 ? new float[1] : layer.weights();
    return TensorCopy.of(store.floats(name, values, values.length));
  }

  private static TensorCopy stacked(TensorCopy t, List<Integer> experts) {
    long[] shape = t.shape();
    if (shape.length != 3) {
      throw new CommandException(t.name() + ": axes: expected=3 actual=" + shape.length);
    }
    long rows = shape[1];
    shape[0] = experts.size();
    LongUnaryOperator order =
        row -> t.order().applyAsLong(experts.get((int) (row / rows)) * rows + row % rows);
    return new TensorCopy(t.name(), t.source(), shape, order);
  }

  /** Says what stays where, and with which weights. */
  @Override
  public String toString() {
    StringBuilder text = new StringBuilder("condensed");
    layers.forEach((layer, l) ->
        text.append(' ')
            .append(layer)
            .append('=')
            .append(l.experts())
            .append(java.util.Arrays.toString(l.weights())));
    return text.toString();
  }
}
