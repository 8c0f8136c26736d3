package io.fletch.tools;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.quant.Workspace;
import io.fletch.quant.prune.DynamicSparsity;
import io.fletch.quant.prune.InputStatistics;
import io.fletch.quant.prune.LayerRatios;
import io.fletch.quant.prune.Masks;
import io.fletch.quant.prune.Pattern;
import io.fletch.quant.prune.SparseGpt;
import io.fletch.runtime.calibrate.Calibration;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;

/** {@code fletch prune}: a model with fewer weights, without training. */
final class PruneCommand implements Command {
  /** Ways to choose. */
  enum Method {
    MAGNITUDE,
    WANDA,
    SPARSEGPT,
    DSNOT,
    FLAP,
    LOWRANK
  }

  /** Ways to spread sparsity over layers. */
  enum Ratios {
    UNIFORM,
    OWL
  }

  /** Element types of the result. */
  enum Type {
    F32,
    F16,
    BF16,
    Q8_0
  }

  /**
   * Inputs wider than this get no exact error unless the method needs the second moments anyway.
   */
  private static final int EXACT_ERROR = 2048;

  private static final List<org.apache.commons.cli.Option> SPARSE = SparseRequest.options();

  @Override
  public String usage() {
    return "--model IN --method M --sparsity S --calibrate TEXT -o OUT [options]";
  }

  @Override
  public String description() {
    return """
    Removes weights of the matrices of all layers: single ones become zeros, which
    quantize and the sparse encodings keep; flap removes whole heads and neurons instead,
    so that matrices become smaller, and lowrank makes two factors of each. Layers are pruned one after the other, each seeing
    what the pruned ones before it give.\
    """;
  }

  @Override
  public List<Section> sections() {
    List<org.apache.commons.cli.Option> how =
        new ArrayList<>(
            List.of(
                Command.value(
                    "method",
                    "M",
                    "magnitude, wanda, sparsegpt, dsnot, flap or lowrank (default: wanda)"),
                Command.value("sparsity", "S", "share of weights that goes (default: 0.5)"),
                Command.value(
                    "pattern",
                    "P",
                    "unstructured (default), N:M such as 2:4 (of M neighbours N stay), or"
                        + " structured (flap alone)"),
                Command.value(
                    "ratios", "R", "sparsity of layers: uniform (default) or owl, by outliers"),
                Command.value("owl-lambda", "L", "most deviation of a layer (default: 0.08)"),
                Command.value("owl-m", "M", "an outlier is M times the mean (default: 5)")));
    how.addAll(LowRankRun.Request.options());
    how.addAll(CalibrationFlags.options());
    return List.of(
        new Section("How to prune", how),
        new Section(
            "What to write",
            List.of(
                ModelOutput.option(),
                Command.value(
                    "type",
                    "T",
                    "f32, f16, bf16 or q8_0 for pruned matrices (default: as they are, F16 for"
                        + " quantized ones)"),
                SPARSE.get(0),
                SPARSE.get(1),
                Command.value("report", "FILE.json", "errors, sparsities and outliers per layer"),
                Command.value("picture", "FILE.svg", "the same as a picture"),
                Command.flag("json", "print the report as one JSON object"))),
        ModelFlags.fileSection());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch prune --model F16.gguf --sparsity 0.5 --calibrate text.txt -o wanda.gguf",
        "fletch prune --model F16.gguf --method sparsegpt --pattern 2:4 --calibrate text.txt -o"
            + " sparse24.gguf",
        "fletch prune --model F16.gguf --method sparsegpt --pattern 2:4 --calibrate text.txt"
            + " --sparse 2:4 --sparse-type q4_0 -o sparse24.arrow",
        "fletch prune --model F16.gguf --method lowrank --rank-ratio 0.6 --residual columns:0.05"
            + " --calibrate text.txt -o factors.arrow",
        "fletch prune --model F16.gguf --method flap --sparsity 0.2 --calibrate text.txt -o"
            + " small.gguf");
  }

  /** What was asked for. */
  private record Request(
      Method method,
      double sparsity,
      Pattern pattern,
      Ratios ratios,
      float lambda,
      float m,
      Optional<SparseRequest> sparse,
      Optional<LowRankRun.Request> lowRank) {
    static Request of(Arguments arguments, Path output) {
      Method method = arguments.choice("method", Method.WANDA);
      float sparsity = arguments.real("sparsity", 0.5f, 0, 1);
      Ratios ratios = arguments.choice("ratios", Ratios.UNIFORM);
      float lambda = arguments.real("owl-lambda", 0.08f, 0, 1);
      float m = arguments.real("owl-m", 5, Float.MIN_VALUE, Float.MAX_VALUE);
      String shape =
          arguments.string("pattern").orElse(method == Method.FLAP ? "structured" : "unstructured");
      if ((method == Method.FLAP) != shape.equals("structured")) {
        throw new UsageException(
            "--pattern: expected="
                + (method == Method.FLAP ? "structured" : "unstructured or N:M")
                + " actual="
                + shape);
      }
      Pattern pattern = Pattern.UNSTRUCTURED;
      if (method != Method.FLAP) {
        try {
          pattern = Pattern.parse(shape);
        } catch (IllegalArgumentException e) {
          throw new UsageException("--" + e.getMessage());
        }
      }
      if (pattern.isGrouped() && arguments.has("sparsity")) {
        throw new UsageException("--sparsity: a pattern N:M says it already");
      }
      if (ratios == Ratios.OWL && (pattern.isGrouped() || method == Method.FLAP)) {
        throw new UsageException("--ratios owl: only with the pattern unstructured");
      }
      if (ratios == Ratios.UNIFORM && (arguments.has("owl-lambda") || arguments.has("owl-m"))) {
        throw new UsageException("--owl-lambda and --owl-m: only with --ratios owl");
      }
      if (!arguments.has("calibrate")
          && ((method != Method.MAGNITUDE && method != Method.LOWRANK) || ratios == Ratios.OWL)) {
        throw new UsageException("--calibrate is required");
      }
      double share =
          pattern.isGrouped() ? 1 - (double) pattern.keep() / pattern.group() : rounded(sparsity);
      Optional<SparseRequest> sparse = SparseRequest.of(arguments, output);
      if (sparse.isPresent() && method == Method.FLAP) {
        throw new UsageException("--sparse: not with flap, which leaves no zeros");
      }
      Optional<LowRankRun.Request> lowRank = Optional.empty();
      if (method == Method.LOWRANK) {
        for (String other : List.of("sparsity", "pattern", "ratios", "sparse")) {
          if (arguments.has(other)) {
            throw new UsageException("--" + other + ": not with lowrank");
          }
        }
        lowRank = Optional.of(LowRankRun.Request.of(arguments));
      } else {
        for (String other : List.of("rank-ratio", "rank-energy", "rank-threshold", "residual")) {
          if (arguments.has(other)) {
            throw new UsageException("--" + other + ": only with --method lowrank");
          }
        }
      }
      return new Request(method, share, pattern, ratios, lambda, m, sparse, lowRank);
    }

    /** The number as it was written, not its nearest float. */
    private static double rounded(float value) {
      return Double.parseDouble(Float.toString(value));
    }
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    Path output = Path.of(arguments.required("output"));
    Request request = Request.of(arguments, output);
    for (String option : List.of("report", "picture")) {
      arguments.string(option).ifPresent(name -> ModelOutput.checkFolder(option, Path.of(name)));
    }
    Optional<TensorType> type =
        arguments.has("type")
            ? Optional.of(TensorType.valueOf(arguments.choice("type", Type.F16).name()))
            : Optional.empty();
    long start = System.nanoTime();
    Map<String, Object> report;
    try (WeightFile file = WeightFile.open(ModelFlags.path(arguments));
        TensorStore derived = TensorStore.create()) {
      ModelOutput.View view = ModelOutput.View.of(file, ModelOutput.format(output), derived);
      view.notes().forEach(note -> io.note("fletch: " + note));
      // What is not a number is neither large nor small, and reaches all statistics.
      file.tensors().values().forEach(Dequantizer::checkFinite);
      int[][] sequences = CalibrationFlags.sequences(arguments, file);
      boolean calibrated = sequences.length > 0;
      Calibration calibration =
          Calibration.start(file, calibrated ? sequences : new int[][] {{0}}, derived);
      AtomicReference<String> doing = new AtomicReference<>("calibrating");
      String key = "prune " + request + " " + type + " " + CalibrationFlags.key(arguments);
      try (ModelOutput out = new ModelOutput(output, file, List.of(), key);
          Progress _ = Progress.show(io, doing::get)) {
        report =
            request.lowRank().isPresent()
                ? new LowRankRun(
                        request.lowRank().get(),
                        file,
                        view,
                        calibration,
                        calibrated,
                        out,
                        type,
                        doing)
                    .run()
                : request.method() == Method.FLAP
                    ? new FlapRun(file, view, calibration, out, type, doing).run(request.sparsity())
                    : prune(request, file, view, calibration, calibrated, out, type, doing);
        report.put("calibration_tokens", calibrated ? calibration.tokens() : 0);
        report.put("bytes", out.bytes());
        if (!out.kinds().isEmpty()) {
          report.put("forms", out.kinds());
        }
        out.write(view);
      }
    }
    Map<String, Object> whole = new LinkedHashMap<>();
    whole.put("output", output.toString());
    whole.put("method", request.method().name().toLowerCase(java.util.Locale.ROOT));
    whole.put("pattern", arguments.string("pattern").orElse("unstructured"));
    whole.put("ratios", request.ratios().name().toLowerCase(java.util.Locale.ROOT));
    whole.put("sparsity_asked", request.sparsity());
    whole.putAll(report);
    whole.put("seconds", Json.rounded((System.nanoTime() - start) / 1e9));
    arguments
        .string("report")
        .ifPresent(name -> Workspace.writeText(Path.of(name), Json.line(whole) + "\n"));
    arguments
        .string("picture")
        .ifPresent(
            name -> Workspace.writeText(Path.of(name), LayerPicture.svg(output.toString(), whole)));
    if (arguments.has("json")) {
      io.println(Json.line(whole));
    } else {
      print(io, whole);
    }
    return Cli.OK;
  }

  private static void print(Io io, Map<String, Object> report) {
    io.println("layer  sparsity  error    outliers");
    for (Object entry : (List<?>) report.get("layers")) {
      Map<?, ?> layer = (Map<?, ?>) entry;
      io.printf(
          "%5s  %7.2f %%  %-7s  %s",
          layer.get("layer"),
          100 * (Double) layer.get("sparsity"),
          layer.get("error") instanceof Double e ? Texts.format("%.4f", e) : "-",
          layer.get("outliers") instanceof Double d ? Texts.format("%.3f %%", d) : "-");
    }
    io.printf(
        "%s  %s, sparsity %.2f %% of the layers' matrices, %s, %s s",
        report.get("output"),
        report.get("method"),
        100 * (Double) report.get("sparsity"),
        Texts.bytes((Long) report.get("bytes")),
        report.get("seconds"));
  }

  private static Map<String, Object> prune(
      Request request,
      WeightFile file,
      ModelOutput.View view,
      Calibration calibration,
      boolean calibrated,
      ModelOutput out,
      Optional<TensorType> type,
      AtomicReference<String> doing)
      throws IOException {
    int n = calibration.layers();
    double[] outliers = null;
    double[] sparsities = LayerRatios.uniform(n, request.sparsity());
    if (request.ratios() == Ratios.OWL) {
      outliers = outliers(calibration, request.m(), doing);
      sparsities = LayerRatios.owl(outliers, request.sparsity(), request.lambda());
      calibration.restart();
    }
    Map<String, TensorType> pruned = new LinkedHashMap<>();
    List<Object> layers = new ArrayList<>();
    long weights = 0;
    double zeros = 0;
    for (int l = 0; l < n; l++) {
      doing.set("pruning, layer " + (l + 1) + " of " + n);
      List<Tensor> matrices = calibration.matrices();
      for (Tensor m : matrices) {
        pruned.put(m.name(), type.orElse(m.type().isQuantized() ? TensorType.F16 : m.type()));
      }
      String part = "report " + l;
      boolean known =
          out.workspace().has(part)
              && matrices.stream().allMatch(m -> out.workspace().has("pruned " + m.name()));
      if (!known) {
        Map<String, Object> layer =
            pruneLayer(request, calibration, calibrated, l, sparsities[l], matrices, pruned, out);
        if (outliers != null) {
          layer.put("outliers", outliers[l]);
        }
        byte[] line = Json.line(layer).getBytes(StandardCharsets.UTF_8);
        out.workspace().put(part, sink -> sink.write(MemorySegment.ofArray(line)));
      }
      Map<String, Object> layer = Json.object(out.workspace().bytes(part));
      layers.add(layer);
      // The next layers see the weights as they are stored.
      for (Tensor m : matrices) {
        float[] stored = stored(request, out, m, pruned.get(m.name()));
        weights += stored.length;
        zeros += Masks.sparsity(stored) * stored.length;
        calibration.replace(m, stored);
      }
      calibration.advance();
    }
    doing.set("writing");
    assemble(request, view, pruned, out);
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("sparsity", zeros / weights);
    report.put("layers", layers);
    return report;
  }

  private static double[] outliers(
      Calibration calibration, float m, AtomicReference<String> doing) {
    double[] outliers = new double[calibration.layers()];
    for (int l = 0; l < outliers.length; l++) {
      doing.set("outliers, layer " + (l + 1) + " of " + outliers.length);
      Map<String, InputStatistics> inputs = calibration.collect(0);
      List<float[]> scores = new ArrayList<>();
      for (Tensor t : calibration.matrices()) {
        scores.add(Masks.wandaScores(Dequantizer.toFloats(t), inputs.get(t.name()).norms()));
      }
      outliers[l] = LayerRatios.outliers(scores, m);
      calibration.advance();
    }
    return outliers;
  }

  private static Map<String, Object> pruneLayer(
      Request request,
      Calibration calibration,
      boolean calibrated,
      int index,
      double sparsity,
      List<Tensor> matrices,
      Map<String, TensorType> types,
      ModelOutput out) {
    boolean moments = request.method() == Method.SPARSEGPT;
    Map<String, InputStatistics> inputs =
        calibration.collect(!calibrated ? 0 : moments ? Integer.MAX_VALUE : EXACT_ERROR);
    List<Object> reports = new ArrayList<>();
    double zeros = 0;
    double errors = 0;
    long weights = 0;
    for (Tensor matrix : matrices) {
      InputStatistics input = inputs.get(matrix.name());
      float[] before = Dequantizer.toFloats(matrix);
      float[] w = before.clone();
      prune(request, matrix.name(), w, input, sparsity);
      TensorType type = types.get(matrix.name());
      // With a sparse form the type of the values comes later, once rows are in their order.
      put(out, matrix, request.sparse().isPresent() ? TensorType.F32 : type, w);
      float[] after = stored(request, out, matrix, type);
      double error = calibrated ? input.relativeError(before, after) : 0;
      Map<String, Object> entry = new LinkedHashMap<>();
      entry.put("name", matrix.name());
      entry.put("sparsity", Masks.sparsity(after));
      if (calibrated) {
        entry.put("error", error);
      }
      reports.add(entry);
      zeros += Masks.sparsity(after) * after.length;
      errors += error / matrices.size();
      weights += after.length;
    }
    Map<String, Object> layer = new LinkedHashMap<>();
    layer.put("layer", index);
    layer.put("target", sparsity);
    layer.put("sparsity", zeros / weights);
    if (calibrated) {
      layer.put("error", errors);
    }
    layer.put("matrices", reports);
    return layer;
  }

  private static void prune(
      Request request, String name, float[] w, InputStatistics input, double sparsity) {
    int cols = input.channels();
    Pattern pattern = request.pattern();
    switch (request.method()) {
      case MAGNITUDE -> Masks.apply(Masks.magnitude(w, cols, sparsity, pattern), w);
      case WANDA, DSNOT -> {
        boolean[] mask = Masks.perRow(Masks.wandaScores(w, input.norms()), cols, sparsity, pattern);
        if (request.method() == Method.DSNOT && name.contains("att")) {
          // As published, feed-forward matrices keep the mask they start with.
          DynamicSparsity.refine(mask, w, input, pattern);
        }
        Masks.apply(mask, w);
      }
      case SPARSEGPT -> {
        try {
          SparseGpt.prune(w, cols, input.hessian().orElseThrow(), sparsity, pattern);
        } catch (ArithmeticException e) {
          throw new CommandException("sparsegpt: " + e.getMessage() + " (other text helps)", e);
        }
      }
      case FLAP, LOWRANK -> throw new AssertionError(request);
    }
  }

  /** Stores a matrix in its type, rows in the order of the source. */
  static void put(ModelOutput out, Tensor matrix, TensorType type, float[] w) {
    try (TensorStore store = TensorStore.create()) {
      Tensor values = store.floats(matrix.name(), w, matrix.shape());
      out.workspace().put("pruned " + matrix.name(), TensorCopy.of(values).as(type, null));
    }
  }

  /** The elements as the output will have them, rows in the order of the source. */
  private static float[] stored(Request request, ModelOutput out, Tensor matrix, TensorType type) {
    if (request.sparse().isEmpty()) {
      return stored(out, matrix, type);
    }
    try (TensorStore store = TensorStore.create()) {
      Tensor w = store.floats(matrix.name(), stored(out, matrix, TensorType.F32), matrix.shape());
      return SparseRequest.floats(request.sparse().get().encode(TensorCopy.of(w), type, store));
    }
  }

  private static float[] stored(ModelOutput out, Tensor matrix, TensorType type) {
    float[] w = new float[Math.toIntExact(matrix.elements())];
    Dequantizer.dequantize(
        type,
        MemorySegment.ofArray(out.workspace().bytes("pruned " + matrix.name())),
        0,
        w,
        0,
        w.length);
    return w;
  }

  /** Adds all tensors of the view, the pruned ones from the workspace. */
  private static void assemble(
      Request request, ModelOutput.View view, Map<String, TensorType> pruned, ModelOutput out) {
    WeightFile.Format to =
        view.gguf() != null ? WeightFile.Format.GGUF : WeightFile.Format.SAFETENSORS;
    for (TensorCopy copy : view.tensors()) {
      TensorType type = pruned.get(copy.source().name());
      if (type == null) {
        TensorType same = io.fletch.runtime.convert.ModelConversion.defaultType(copy, to);
        out.add(copy.name(), same, copy.shape(), copy.as(same, null));
        continue;
      }
      try (TensorStore store = TensorStore.create()) {
        TensorType kept = request.sparse().isPresent() ? TensorType.F32 : type;
        Tensor values = store.allocate(copy.source().name(), kept, copy.source().shape());
        MemorySegment.copy(
            MemorySegment.ofArray(out.workspace().bytes("pruned " + copy.source().name())),
            0,
            values.segment(),
            0,
            values.bytes());
        TensorCopy ordered = new TensorCopy(copy.name(), values, copy.shape(), copy.order());
        if (request.sparse().isPresent()) {
          out.add(ordered, request.sparse().get(), type);
        } else {
          out.add(copy.name(), type, copy.shape(), ordered.as(type, null));
        }
      }
    }
  }
}
