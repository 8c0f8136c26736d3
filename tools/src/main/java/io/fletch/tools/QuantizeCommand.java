package io.fletch.tools;

import io.fletch.quant.ImportanceMatrix;
import io.fletch.quant.QuantMix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.calibrate.Calibration;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;

/** {@code fletch quantize}: a model with smaller weights, as GGUF. */
final class QuantizeCommand implements Command {
  @Override
  public String usage() {
    return "--model IN --type T -o OUT.gguf [options]";
  }

  @Override
  public String description() {
    return """
    Writes a model as GGUF with quantized matrices. A type such as Q4_K_M is a recipe: it
    says which matrix gets how many bits. Tensors are converted one after the other; an
    interrupted run goes on where it ended when it is started again.\
    """;
  }

  @Override
  public List<Section> sections() {
    List<org.apache.commons.cli.Option> calibration = new ArrayList<>(CalibrationFlags.options());
    calibration.add(
        Command.value("save-imatrix", "FILE", "write the importance that was measured"));
    return List.of(
        new Section("Importance measured on a text, instead of --imatrix", calibration),
        new Section(
            "What to write",
            List.of(
                Command.value(
                    "type",
                    "T",
                    "Q2_K, Q3_K_S|M|L, Q4_K_S|M, Q5_K_S|M, Q6_K, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,"
                        + " IQ4_NL, IQ4_XS, MXFP4, F16, BF16 or F32"),
                Command.value(
                    "o",
                    "output",
                    "OUT.gguf",
                    "the file to write; NAME.arrow for a Fletch Arrow file"),
                Command.value(
                    "tensor-type",
                    "PATTERN=TYPE",
                    "another type for the tensors whose names contain a match of the regular"
                        + " expression; may be repeated, the first match counts"),
                Command.value(
                    "imatrix", "FILE", "importance matrix (GGUF) that weights the errors"),
                Command.flag("json", "print one JSON object"))),
        ModelFlags.fileSection());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch quantize --model ar-large-F16.gguf --type Q4_K_M -o ar-large-Q4_K_M.gguf",
        "fletch quantize --model F --type Q4_K_S --tensor-type attn_v=Q8_0 -o G.gguf");
  }

  /** A type for some tensors. */
  private record TypeRule(Pattern pattern, TensorType type) {
    boolean isFor(TensorCopy tensor) {
      return tensor.shape().length > 1 && pattern.matcher(tensor.name()).find();
    }

    static TypeRule parse(String text) {
      int at = text.lastIndexOf('=');
      try {
        Pattern pattern = Pattern.compile(text.substring(0, at));
        TensorType type = TensorType.valueOf(text.substring(at + 1).toUpperCase(Locale.ROOT));
        return switch (type) {
          case I8, I16, I32, I64, F64 ->
              throw new IllegalArgumentException("no type of weights: " + type);
          default -> new TypeRule(pattern, type);
        };
      } catch (PatternSyntaxException | StringIndexOutOfBoundsException e) {
        throw new UsageException("--tensor-type: expected=PATTERN=TYPE actual=" + text);
      } catch (IllegalArgumentException e) {
        throw new UsageException(
            "--tensor-type: expected=a type such as Q8_0 actual=" + text.substring(at + 1));
      }
    }
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    QuantMix mix;
    try {
      mix = QuantMix.named(arguments.required("type"));
    } catch (IllegalArgumentException e) {
      throw new UsageException("--" + e.getMessage());
    }
    Path output = Path.of(arguments.required("output"));
    if (ModelOutput.format(output) == WeightFile.Format.SAFETENSORS) {
      throw new UsageException("--output: expected=NAME.gguf or NAME.arrow actual=" + output);
    }
    List<TypeRule> overrides =
        arguments.strings("tensor-type").stream().map(TypeRule::parse).toList();
    Optional<Path> importanceFile = arguments.string("imatrix").map(Path::of);
    if (importanceFile.isPresent() && arguments.has("calibrate")) {
      throw new UsageException("--imatrix and --calibrate: expected=one of them");
    }
    if (arguments.has("save-imatrix") && !arguments.has("calibrate")) {
      throw new UsageException("--save-imatrix: only with --calibrate");
    }
    arguments
        .string("save-imatrix")
        .ifPresent(name -> ModelOutput.checkFolder("save-imatrix", Path.of(name)));
    long start = System.nanoTime();
    try (WeightFile input = WeightFile.open(ModelFlags.path(arguments));
        DenseCopy dense =
            DenseCopy.of(input, output, ModelOutput.format(output) != input.format(), true);
        TensorStore derived = TensorStore.create()) {
      WeightFile file = dense.file();
      ModelOutput.View view = ModelOutput.View.of(file, ModelOutput.format(output), derived);
      Optional<ImportanceMatrix> importance =
          arguments.has("calibrate")
              ? Optional.of(measured(arguments, io, file, view, derived))
              : importanceFile.map(ImportanceMatrix::read);
      arguments
          .string("save-imatrix")
          .ifPresent(name -> importance.orElseThrow().write(Path.of(name)));
      view.notes().forEach(note -> io.note("fletch: " + note));
      String key =
          "quantize "
              + mix
              + " "
              + arguments.strings("tensor-type")
              + " "
              + importanceFile.map(p -> p.toAbsolutePath() + " " + p.toFile().lastModified())
              + " "
              + CalibrationFlags.key(arguments);
      try (ModelOutput out = new ModelOutput(output, input, List.of(), key)) {
        Map<TensorType, Integer> types = new TreeMap<>();
        int weighted = convert(view, mix, overrides, importance, out, io, types);
        view.gguf().put("general.file_type", mix.fileType());
        view.gguf().put("general.quantization_version", 2);
        long bytes = out.bytes();
        out.write(view);
        report(arguments, io, output, mix, input, bytes, types, weighted, start);
      }
    }
    return Cli.OK;
  }

  /** Mean squares of the inputs of all matrices, by running the model over a text. */
  private static ImportanceMatrix measured(
      Arguments arguments, Io io, WeightFile file, ModelOutput.View view, TensorStore derived)
      throws IOException {
    Calibration calibration =
        Calibration.start(file, CalibrationFlags.sequences(arguments, file), derived);
    Map<String, String> names = new LinkedHashMap<>();
    view.tensors().forEach(t -> names.put(t.source().name(), t.name()));
    Map<String, float[]> means = new LinkedHashMap<>();
    AtomicInteger layer = new AtomicInteger();
    try (Progress _ =
        Progress.show(
            io, () -> "calibrating, layer " + layer.get() + " of " + calibration.layers())) {
      for (int l = 0; l < calibration.layers(); l++) {
        layer.set(l + 1);
        calibration.collect(0).forEach((name, s) -> means.put(names.get(name), s.meanSquares()));
        calibration.advance();
      }
    }
    return new ImportanceMatrix(means);
  }

  private static int convert(
      ModelOutput.View view,
      QuantMix mix,
      List<TypeRule> overrides,
      Optional<ImportanceMatrix> importance,
      ModelOutput out,
      Io io,
      Map<TensorType, Integer> types) {
    QuantMix.Model model = model(view, importance.isPresent());
    List<TensorCopy> tensors = view.tensors();
    for (TypeRule rule : overrides) {
      if (tensors.stream().noneMatch(rule::isFor)) {
        io.note("fletch: --tensor-type " + rule.pattern() + ": no matrix has such a name");
      }
    }
    List<String> requantized = new ArrayList<>();
    int weighted = 0;
    try (Progress _ =
        Progress.show(
            io, () -> ModelOutput.line("quantizing to " + mix, out.done(), tensors.size()))) {
      for (TensorCopy tensor : tensors) {
        TensorType type = typeOf(tensor, mix, overrides, model);
        TensorType from = tensor.source().type();
        if (from.isQuantized() && type != from && type.isQuantized()) {
          requantized.add(tensor.name());
        }
        float[] weights =
            importance.flatMap(m -> m.of(tensor.name(), tensor.source().cols())).orElse(null);
        weighted += weights != null && type.isQuantized() ? 1 : 0;
        out.add(tensor.name(), type, tensor.shape(), tensor.as(type, weights));
        types.merge(type, 1, Integer::sum);
      }
    }
    if (!requantized.isEmpty()) {
      io.note(
          "fletch: "
              + requantized.size()
              + " tensors were quantized already, so the result is worse than from F16");
    }
    return weighted;
  }

  private static TensorType typeOf(
      TensorCopy tensor, QuantMix mix, List<TypeRule> overrides, QuantMix.Model model) {
    long[] shape = tensor.shape();
    for (TypeRule rule : overrides) {
      if (rule.isFor(tensor)) {
        return QuantMix.fitting(rule.type(), shape[shape.length - 1]);
      }
    }
    TensorType from = tensor.source().type();
    return switch (from) {
      case I8, I16, I32, I64, F64 -> from;
      default ->
          QuantMix.takesPart(tensor.name(), shape)
              ? mix.typeOf(tensor.name(), shape, model)
              : shape.length == 1 ? TensorType.F32 : from;
    };
  }

  /** What the recipes ask of the model, from its tensors. */
  private static QuantMix.Model model(ModelOutput.View view, boolean importance) {
    int layers = 0;
    long queries = 0;
    long values = 0;
    boolean tied = true;
    for (TensorCopy tensor : view.tensors()) {
      String name = tensor.name();
      tied &= !name.equals("output.weight");
      if (name.startsWith("blk.")) {
        layers = Math.max(layers, 1 + Integer.parseInt(name.substring(4, name.indexOf('.', 4))));
      }
      if (name.endsWith(".attn_output.weight")) {
        queries = Math.max(queries, tensor.source().cols());
      }
      if (name.endsWith(".attn_v.weight")) {
        values = Math.max(values, tensor.source().rows());
      }
    }
    boolean eight =
        view.tensors().stream()
            .anyMatch(t -> t.name().endsWith("ffn_gate_inp.weight") && t.source().rows() == 8);
    return new QuantMix.Model(
        layers, values == 0 ? 1 : (int) (queries / values), eight, tied, importance);
  }

  private static void report(
      Arguments arguments,
      Io io,
      Path output,
      QuantMix mix,
      WeightFile file,
      long bytes,
      Map<TensorType, Integer> types,
      int weighted,
      long start) {
    long elements = ModelOutput.sum(file, Tensor::elements);
    long before = ModelOutput.sum(file, Tensor::bytes);
    double bits = 8.0 * bytes / elements;
    double seconds = (System.nanoTime() - start) / 1e9;
    if (arguments.has("json")) {
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("output", output.toString());
      report.put("type", mix.name());
      report.put("bytes_before", before);
      report.put("bytes", bytes);
      report.put("bits_per_weight", Json.rounded(bits));
      Map<String, Object> counts = new LinkedHashMap<>();
      types.forEach((type, count) -> counts.put(type.name(), count));
      report.put("types", counts);
      report.put("weighted", weighted);
      report.put("seconds", Json.rounded(seconds));
      io.println(Json.line(report));
    } else {
      io.printf(
          "%s  %s -> %s, %.2f bits per weight, %s%s, %.1f s",
          output,
          Texts.bytes(before),
          Texts.bytes(bytes),
          bits,
          types,
          weighted == 0 ? "" : ", " + weighted + " weighted by importance",
          seconds);
    }
  }
}
