package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Model;
import io.fletch.quant.FloatRows;
import io.fletch.quant.GgufType;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.quant.Workspace;
import io.fletch.quant.merge.LayerRecipe;
import io.fletch.quant.merge.Merges;
import io.fletch.runtime.convert.ModelConversion;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** {@code fletch merge}: one model out of layers, models and adapters. */
final class MergeCommand implements Command {
  /** What is made of the weights of several models. */
  enum Method {
    AVERAGE,
    TASK,
    DARE,
    TIES
  }

  /** Element types of what changes. */
  enum Type {
    F32,
    F16,
    BF16
  }

  private static final Pattern LAYER = Pattern.compile("^(blk|model\\.layers)\\.(\\d+)\\.(.*)$");

  @Override
  public String usage() {
    return "--model BASE -o OUT [--layers LIST | --with MODEL --method M | --lora ADAPTER |"
        + " --condense ORDER]";
  }

  @Override
  public String description() {
    return """
    Makes one model out of a base and a list of layers, other models of the same shape, or
    a LoRA adapter, or condenses its mixtures of experts: one of the four per run.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "What to merge",
            List.of(
                Command.value(
                    "layers",
                    "LIST",
                    "layers in order, such as 0-3,5,1:6,6+7: N:L is layer L of the N-th --with, A+B"
                        + " the mean of two"),
                Command.value("with", "MODEL", "another model of the same shape; may be repeated"),
                Command.value(
                    "method",
                    "M",
                    "average (all, the base among them), task (base plus deltas), dare or ties"),
                Command.value("lambda", "L", "factor on the deltas (default: 1)"),
                Command.value("drop", "P", "dare: share of deltas that is dropped (default: 0.5)"),
                Command.value("keep", "K", "ties: share of deltas that stays (default: 0.2)"),
                Command.value("seed", "N", "dare: of what is dropped (default: 0)"),
                Command.value(
                    "lora", "ADAPTER", "a PEFT folder (safetensors base) or a GGUF adapter"),
                Command.value("lora-scale", "S", "strength of the adapter (default: 1)"),
                Command.value(
                    "condense",
                    "ORDER.json",
                    "CD-MoE: layers with experts in the order in which they are condensed"),
                Command.value("condense-layers", "N", "how many of them (default: all)"),
                Command.value(
                    "condense-experts",
                    "K",
                    "experts that stay in each (default: 0, or all named)"),
                Command.value("experts", "FILE.json", "experts of each layer, best first"),
                Command.value(
                    "expert-weights",
                    "FILE.json",
                    "their constants: \"layer-expert\": [.., .., w]"))),
        new Section(
            "What to write",
            List.of(
                ModelOutput.option(),
                Command.value(
                    "type",
                    "T",
                    "f32, f16 or bf16 for what changes (default: as it is; required where that is"
                        + " quantized)"),
                Command.flag("json", "print one JSON object"))),
        ModelFlags.fileSection());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch merge --model F16.gguf --layers 0-4,6,7 -o fewer.gguf",
        "fletch merge --model base --with tuned-a --with tuned-b --method dare --drop 0.9 -o"
            + " merged",
        "fletch merge --model base --lora adapter -o merged.gguf",
        "fletch merge --model moe --condense layer_idx_order.e6.json --condense-layers 9 --experts"
            + " layer_idx_to_expert_idx.json --expert-weights dynamic_weight.json -o condensed");
  }

  /** The open models and what is asked of them. */
  private record Work(
      WeightFile base,
      List<WeightFile> others,
      Optional<LayerRecipe> recipe,
      Optional<Method> method,
      Optional<Adapter> adapter,
      Optional<TensorType> type,
      Numbers numbers) {}

  /** Numbers of the methods. */
  private record Numbers(float lambda, float drop, float keep, long seed, float loraScale) {
    static Numbers of(Arguments arguments) {
      return new Numbers(
          arguments.real("lambda", 1, -Float.MAX_VALUE, Float.MAX_VALUE),
          arguments.real("drop", 0.5f, 0, 0.9999f),
          arguments.real("keep", 0.2f, 1e-6f, 1),
          arguments.whole("seed", 0, Long.MIN_VALUE, Long.MAX_VALUE),
          arguments.real("lora-scale", 1, -Float.MAX_VALUE, Float.MAX_VALUE));
    }
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    Path output = Path.of(arguments.required("output"));
    checkRequest(arguments);
    Numbers numbers = Numbers.of(arguments);
    List<WeightFile> others = new ArrayList<>();
    try (WeightFile base = WeightFile.open(ModelFlags.path(arguments));
        TensorStore derived = TensorStore.create();
        Adapter adapter =
            arguments.has("lora") ? Adapter.open(Path.of(arguments.required("lora"))) : null) {
      for (String other : arguments.strings("with")) {
        others.add(
            WeightFile.open(ModelFlags.isDemo(other) ? Model.demoFile(other) : Path.of(other)));
      }
      StringBuilder key = new StringBuilder("merge");
      for (String option :
          List.of(
              "layers",
              "method",
              "lambda",
              "drop",
              "keep",
              "seed",
              "lora",
              "lora-scale",
              "condense-layers",
              "condense-experts",
              "type")) {
        key.append(' ').append(option).append('=').append(arguments.string(option).orElse(""));
      }
      others.forEach(o -> key.append('\n').append(Workspace.fingerprint(o)));
      if (adapter != null) {
        key.append('\n').append(adapter.fingerprint());
      }
      ModelOutput.View view = ModelOutput.View.of(base, ModelOutput.format(output), derived);
      view.notes().forEach(note -> io.note("fletch: " + note));
      if (arguments.has("condense")) {
        Condensation plan = condensation(arguments, view);
        key.append('\n').append(plan);
        view = plan.of(view, derived);
      }
      Optional<LayerRecipe> recipe =
          arguments.string("layers").map(text -> recipe(text, base, others));
      Work work =
          new Work(
              base,
              others,
              recipe,
              others.isEmpty() || recipe.isPresent()
                  ? Optional.empty()
                  : Optional.of(arguments.choice("method", Method.AVERAGE)),
              Optional.ofNullable(adapter),
              arguments.has("type")
                  ? Optional.of(TensorType.valueOf(arguments.choice("type", Type.F16).name()))
                  : Optional.empty(),
              numbers);
      if (adapter != null) {
        for (String name : adapter.matrices()) {
          if (base.tensor(name).isEmpty()) {
            throw new CommandException("adapter of " + name + ": no such tensor in the model");
          }
        }
      }
      List<WeightFile> further = new ArrayList<>(others);
      if (adapter != null) {
        further.add(adapter.file());
      }
      try (ModelOutput out = new ModelOutput(output, base, further, key.toString())) {
        int changed = merge(work, view, out, io);
        long bytes = out.bytes();
        ModelOutput.View described =
            recipe.isPresent() ? withLayers(view, base, recipe.get()) : view;
        out.write(described);
        report(arguments, io, output, recipe, changed, bytes);
      }
    } finally {
      others.forEach(WeightFile::close);
    }
    return Cli.OK;
  }

  private static void checkRequest(Arguments arguments) {
    boolean models = arguments.has("with") && !arguments.has("layers");
    int kinds =
        (arguments.has("layers") ? 1 : 0)
            + (models ? 1 : 0)
            + (arguments.has("lora") ? 1 : 0)
            + (arguments.has("condense") ? 1 : 0);
    if (kinds != 1) {
      throw new UsageException("expected=one of --layers, --with, --lora and --condense");
    }
    if (models != arguments.has("method")) {
      throw new UsageException("--method: expected=with --with, without --layers");
    }
    String method = arguments.string("method").orElse("");
    only(arguments, "lambda", models && !method.equals("average"), "task, dare and ties");
    only(arguments, "drop", method.equals("dare"), "dare");
    only(arguments, "seed", method.equals("dare"), "dare");
    only(arguments, "keep", method.equals("ties"), "ties");
    only(arguments, "lora-scale", arguments.has("lora"), "--lora");
    for (String option :
        List.of("condense-layers", "condense-experts", "experts", "expert-weights")) {
      only(arguments, option, arguments.has("condense"), "--condense");
    }
    only(arguments, "type", !arguments.has("condense"), "what changes values");
  }

  private static void only(Arguments arguments, String option, boolean allowed, String with) {
    if (arguments.has(option) && !allowed) {
      throw new UsageException("--" + option + ": only with " + with);
    }
  }

  private static Condensation condensation(Arguments arguments, ModelOutput.View view)
      throws IOException {
    Optional<Path> experts = arguments.string("experts").map(Path::of);
    int most = Integer.MAX_VALUE;
    return Condensation.read(
        view.tensors(),
        Path.of(arguments.required("condense")),
        (int) arguments.whole("condense-layers", most, 1, most),
        experts,
        arguments.string("expert-weights").map(Path::of),
        (int) arguments.whole("condense-experts", experts.isPresent() ? most : 0, 0, most));
  }

  private static LayerRecipe recipe(String text, WeightFile base, List<WeightFile> others) {
    List<WeightFile> all = new ArrayList<>(List.of(base));
    all.addAll(others);
    try {
      return LayerRecipe.parse(text, all.stream().mapToInt(MergeCommand::layers).toArray());
    } catch (IllegalArgumentException e) {
      throw new UsageException("--" + e.getMessage());
    }
  }

  private static int layers(WeightFile file) {
    int layers = 0;
    for (String name : file.tensors().keySet()) {
      Matcher m = LAYER.matcher(name);
      if (m.matches()) {
        layers = Math.max(layers, 1 + Integer.parseInt(m.group(2)));
      }
    }
    return layers;
  }

  /** Writes all tensors; returns how many of them are new. */
  private static int merge(Work work, ModelOutput.View view, ModelOutput out, Io io) {
    WeightFile.Format to =
        view.gguf() != null ? WeightFile.Format.GGUF : WeightFile.Format.SAFETENSORS;
    int changed = 0;
    try (Progress _ = Progress.show(io, () -> "merging, tensor " + out.done())) {
      for (TensorCopy copy : view.tensors()) {
        Matcher m = LAYER.matcher(copy.name());
        if (work.recipe().isPresent() && m.matches()) {
          continue;
        }
        changed += one(work, copy, copy.name(), copy.source().name(), null, to, out);
      }
      if (work.recipe().isPresent()) {
        changed += layers(work, view, to, out);
      }
    }
    return changed;
  }

  private static int layers(
      Work work, ModelOutput.View view, WeightFile.Format to, ModelOutput out) {
    int changed = 0;
    List<List<LayerRecipe.Source>> layers = work.recipe().orElseThrow().layers();
    for (int l = 0; l < layers.size(); l++) {
      // Names and order of rows are those of the base's layer of the same number, or its first.
      for (TensorCopy copy : view.tensors()) {
        Matcher m = LAYER.matcher(copy.name());
        if (m.matches() && Integer.parseInt(m.group(2)) == layers.get(l).getFirst().layer()) {
          String name = m.group(1) + "." + l + "." + m.group(3);
          changed += one(work, copy, name, copy.source().name(), layers.get(l), to, out);
        }
      }
    }
    return changed;
  }

  private static int one(
      Work work,
      TensorCopy copy,
      String name,
      String source,
      List<LayerRecipe.Source> layer,
      WeightFile.Format to,
      ModelOutput out) {
    List<Tensor> tensors = new ArrayList<>();
    if (layer != null) {
      for (LayerRecipe.Source s : layer) {
        WeightFile file = s.model() == 0 ? work.base() : work.others().get(s.model() - 1);
        Matcher m = LAYER.matcher(source);
        if (!m.matches()) {
          throw new CommandException("tensor " + source + ": expected=one of a layer");
        }
        tensors.add(like(file, m.group(1) + "." + s.layer() + "." + m.group(3), copy.source()));
      }
    } else if (work.method().isPresent()) {
      tensors.add(copy.source());
      work.others().forEach(o -> tensors.add(like(o, source, copy.source())));
    }
    boolean adapted = work.adapter().map(a -> a.changes(source)).orElse(false);
    if (!adapted && tensors.size() <= 1) {
      Tensor from = tensors.isEmpty() ? copy.source() : tensors.getFirst();
      TensorCopy kept = new TensorCopy(name, from, copy.shape(), copy.order());
      TensorType same = ModelConversion.defaultType(kept, to);
      out.add(name, same, copy.shape(), kept.as(same, null));
      return 0;
    }
    TensorType type =
        work.type()
            .orElseGet(() -> {
              if (copy.source().type().isQuantized()) {
                throw new UsageException(
                    "--type: required, since " + copy.source() + " is quantized");
              }
              return ModelConversion.defaultType(copy, to);
            });
    TensorType stored = copy.shape().length > 1 ? type : ModelConversion.defaultType(copy, to);
    FloatRows base = FloatRows.of(tensors.isEmpty() ? copy.source() : tensors.getFirst());
    out.add(
        name,
        stored,
        copy.shape(),
        // Merged when it is written: not at all if an earlier run made it.
        sink -> {
          FloatRows merged =
              adapted
                  ? work.adapter().orElseThrow().merged(source, base, work.numbers().loraScale())
                  : merged(work, name, base, tensors);
          new TensorCopy(name, copy.source(), copy.shape(), copy.order())
              .with(merged, stored)
              .writeTo(sink);
        });
    return 1;
  }

  private static FloatRows merged(Work work, String name, FloatRows base, List<Tensor> tensors) {
    List<FloatRows> rest = tensors.subList(1, tensors.size()).stream().map(FloatRows::of).toList();
    Numbers n = work.numbers();
    return switch (work.method().orElse(Method.AVERAGE)) {
      case AVERAGE -> {
        List<FloatRows> all = new ArrayList<>(List.of(base));
        all.addAll(rest);
        yield Merges.average(all);
      }
      case TASK -> Merges.task(base, rest, n.lambda());
      // Another stream for every tensor, whatever their order.
      case DARE -> Merges.dare(base, rest, n.lambda(), n.drop(), 31 * n.seed() + name.hashCode());
      case TIES -> Merges.ties(base, rest, n.lambda(), n.keep());
    };
  }

  private static Tensor like(WeightFile file, String name, Tensor base) {
    Tensor tensor =
        file.tensor(name)
            .orElseThrow(
                () -> new CommandException(file.path() + ": tensor " + name + ": missing"));
    if (!Arrays.equals(tensor.shape(), base.shape())) {
      throw new CommandException(
          file.path()
              + ": tensor "
              + name
              + ": shape expected="
              + Arrays.toString(base.shape())
              + " actual="
              + Arrays.toString(tensor.shape()));
    }
    return tensor;
  }

  /** The metadata of a model with other layers: their number, and what is said of each. */
  private static ModelOutput.View withLayers(
      ModelOutput.View view, WeightFile base, LayerRecipe recipe) throws IOException {
    int before = layers(base);
    int[] from = recipe.layers().stream().mapToInt(l -> l.getFirst().layer()).toArray();
    if (view.gguf() != null) {
      String at = "";
      for (Map.Entry<String, Object> entry : base.metadata().entries().entrySet()) {
        boolean perLayer =
            entry.getValue() instanceof List<?> list
                && list.size() == before
                && entry.getKey().matches(".*\\.(head_count|head_count_kv|feed_forward_length)");
        if (perLayer) {
          List<?> list = (List<?>) entry.getValue();
          view.gguf()
              .putArray(
                  entry.getKey(),
                  GgufType.UINT32,
                  Arrays.stream(from).mapToObj(list::get).toList());
        }
        if (entry.getKey().equals("general.architecture")) {
          at = entry.getValue() + ".";
        }
      }
      if (at.isEmpty()) {
        at = base.metadata().string("model_type").orElseThrow() + ".";
      }
      view.gguf().put(at + "block_count", from.length);
      return view;
    }
    Map<String, Object> config = JSON.std.mapFrom(view.files().get("config.json"));
    config.put("num_hidden_layers", from.length);
    if (config.get("layer_types") instanceof List<?> types && types.size() == before) {
      config.put("layer_types", Arrays.stream(from).mapToObj(types::get).toList());
    }
    Map<String, String> files = new LinkedHashMap<>(view.files());
    files.put(
        "config.json", JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT).asString(config) + "\n");
    return new ModelOutput.View(view.tensors(), null, files, view.notes());
  }

  private static void report(
      Arguments arguments,
      Io io,
      Path output,
      Optional<LayerRecipe> recipe,
      int changed,
      long bytes) {
    if (arguments.has("json")) {
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("output", output.toString());
      recipe.ifPresent(r -> report.put("layers", r.layers().size()));
      report.put("merged_tensors", changed);
      report.put("bytes", bytes);
      io.println(Json.line(report));
    } else {
      io.printf("%s  %d tensors merged, %s", output, changed, Texts.bytes(bytes));
    }
  }
}
