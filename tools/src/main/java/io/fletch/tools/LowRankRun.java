package io.fletch.tools;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.QuantMix;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.quant.prune.InputStatistics;
import io.fletch.quant.prune.LowRank;
import io.fletch.quant.prune.Masks;
import io.fletch.quant.prune.Pattern;
import io.fletch.runtime.calibrate.Calibration;
import io.fletch.runtime.convert.ModelConversion;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;

/**
 * {@code fletch prune --method lowrank}: every matrix of a layer becomes two factors, and perhaps a
 * sparse rest that is added, layer by layer; a matrix that would not become smaller stays.
 */
final class LowRankRun {
  /** How a rank is chosen. */
  enum Rule {
    RATIO,
    ENERGY,
    THRESHOLD
  }

  /** What is kept of what the factors leave. */
  enum Rest {
    NONE,
    COLUMNS,
    BITMAP
  }

  /**
   * What was asked for.
   *
   * @param value of the rule
   * @param share of columns or elements of the rest that are kept
   */
  record Request(Rule rule, double value, Rest rest, double share) {
    static List<org.apache.commons.cli.Option> options() {
      return List.of(
          Command.value(
              "rank-ratio", "R", "lowrank: elements of the factors, of all (default: 0.5)"),
          Command.value("rank-energy", "E", "lowrank: share of the squared singular values"),
          Command.value(
              "rank-threshold", "T", "lowrank: keep singular values above T times the largest"),
          Command.value(
              "residual",
              "KIND:SHARE",
              "lowrank: keep a share of what the factors leave, columns:S or bitmap:S"));
    }

    static Request of(Arguments arguments) {
      List<String> given =
          List.of("rank-ratio", "rank-energy", "rank-threshold").stream()
              .filter(arguments::has)
              .toList();
      if (given.size() > 1) {
        throw new UsageException("--" + given.get(0) + " and --" + given.get(1) + ": one of them");
      }
      Rule rule =
          given.isEmpty()
              ? Rule.RATIO
              : Rule.valueOf(
                  given.getFirst().substring("rank-".length()).toUpperCase(java.util.Locale.ROOT));
      double value =
          given.isEmpty() ? 0.5 : arguments.real(given.getFirst(), 0, Float.MIN_VALUE, 1);
      Optional<String> text = arguments.string("residual");
      if (text.isEmpty()) {
        return new Request(rule, value, Rest.NONE, 0);
      }
      String[] parts = text.get().split(":", 2);
      try {
        double share = Double.parseDouble(parts.length == 2 ? parts[1] : "");
        Rest rest = Rest.valueOf(parts[0].toUpperCase(java.util.Locale.ROOT));
        if (rest != Rest.NONE && share > 0 && share < 1) {
          return new Request(rule, value, rest, share);
        }
      } catch (IllegalArgumentException e) {
        // The same message.
      }
      throw new UsageException(
          "--residual: expected=columns:S or bitmap:S with 0 < S < 1 actual=" + text.get());
    }
  }

  private final Request request;
  private final ModelOutput.View view;
  private final Calibration calibration;
  private final boolean calibrated;
  private final ModelOutput out;
  private final Optional<TensorType> type;
  private final AtomicReference<String> doing;

  LowRankRun(
      Request request,
      WeightFile file,
      ModelOutput.View view,
      Calibration calibration,
      boolean calibrated,
      ModelOutput out,
      Optional<TensorType> type,
      AtomicReference<String> doing) {
    if (file.format() == WeightFile.Format.SAFETENSORS || out.format() != WeightFile.Format.ARROW) {
      throw new UsageException("--method lowrank: expected=GGUF or Arrow to NAME.arrow");
    }
    this.request = request;
    this.view = view;
    this.calibration = calibration;
    this.calibrated = calibrated;
    this.out = out;
    this.type = type;
    this.doing = doing;
  }

  Map<String, Object> run() {
    Map<String, TensorCopy> copies = new LinkedHashMap<>();
    view.tensors().forEach(c -> copies.put(c.name(), c));
    List<Object> layers = new ArrayList<>();
    double stays = 0;
    double all = 0;
    for (int l = 0; l < calibration.layers(); l++) {
      doing.set("factorising, layer " + (l + 1) + " of " + calibration.layers());
      Map<String, InputStatistics> inputs = calibration.collect(calibrated ? 2048 : 0);
      List<Object> reports = new ArrayList<>();
      double errors = 0;
      double kept = 0;
      double whole = 0;
      List<Tensor> matrices = calibration.matrices();
      for (Tensor m : matrices) {
        copies.remove(m.name());
        InputStatistics input = inputs.get(m.name());
        float[] before = Dequantizer.toFloats(m);
        try (TensorStore store = TensorStore.create()) {
          out.add(m.name(), s -> encode(m, before, input, s));
          LinearOp op = out.made(m.name(), m.cols(), store);
          float[] after = SparseRequest.floats(op);
          Map<String, Object> entry = new LinkedHashMap<>();
          entry.put("name", m.name());
          entry.put("form", SparseRequest.kind(op));
          rank(op).ifPresent(k -> entry.put("rank", k));
          entry.put("sparsity", 1 - (double) elements(op) / m.elements());
          if (calibrated) {
            double error = input.relativeError(before, after);
            entry.put("error", error);
            errors += error / matrices.size();
          }
          reports.add(entry);
          kept += elements(op);
          whole += m.elements();
          calibration.replace(m, after);
        }
      }
      Map<String, Object> layer = new LinkedHashMap<>();
      layer.put("layer", l);
      layer.put("sparsity", 1 - kept / whole);
      if (calibrated) {
        layer.put("error", errors);
      }
      layer.put("matrices", reports);
      layers.add(layer);
      stays += kept;
      all += whole;
      calibration.advance();
    }
    doing.set("writing");
    for (TensorCopy copy : copies.values()) {
      TensorType same = ModelConversion.defaultType(copy, WeightFile.Format.ARROW);
      out.add(copy.name(), same, copy.shape(), copy.as(same, null));
    }
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("sparsity", 1 - stays / all);
    report.put("layers", layers);
    return report;
  }

  /** Values that are stored; masks and numbers of columns are not. */
  private static long elements(LinearOp op) {
    return switch (op) {
      case LinearOp.Sum s -> s.terms().stream().mapToLong(t -> elements(t.op())).sum();
      case LinearOp.LowRank f -> elements(f.u()) + elements(f.v());
      case LinearOp.Sparse s -> s.matrix().kept();
      case LinearOp.Columns c -> elements(c.weight());
      default -> op.tensors().stream().mapToLong(Tensor::elements).sum();
    };
  }

  private static Optional<Long> rank(LinearOp op) {
    return switch (op) {
      case LinearOp.LowRank f -> Optional.of(f.rank());
      case LinearOp.Sum s -> s.terms().stream().flatMap(t -> rank(t.op()).stream()).findFirst();
      default -> Optional.empty();
    };
  }

  private LinearOp encode(Tensor m, float[] w, InputStatistics input, TensorStore store) {
    int rows = Math.toIntExact(m.rows());
    int cols = Math.toIntExact(m.cols());
    TensorType wanted = type.orElse(m.type().isQuantized() ? TensorType.F16 : m.type());
    LowRank svd = LowRank.of(w, rows, cols, calibrated ? input.norms() : null);
    int rank =
        switch (request.rule()) {
          case RATIO -> LowRank.rankByRatio(rows, cols, request.value());
          case ENERGY -> svd.rankByEnergy(request.value());
          case THRESHOLD -> svd.rankByThreshold(request.value());
        };
    int block = wanted.blockSize();
    rank = Math.min((rank + block - 1) / block * block, Math.min(rows, cols));
    LowRank.Factors f = svd.factors(rank);
    Tensor u = store.floats(m.name() + ".u", f.u(), rows, rank);
    Tensor v = store.floats(m.name() + ".v", f.v(), rank, cols);
    LinearOp factors =
        LinearOp.lowRank(
            SparseRequest.as(u, QuantMix.fitting(wanted, rank), store),
            SparseRequest.as(v, QuantMix.fitting(wanted, cols), store));
    LinearOp op = factors;
    if (request.rest() != Rest.NONE) {
      // What the stored factors leave, their rounding included.
      float[] rest = w.clone();
      float[] stored = SparseRequest.floats(factors);
      for (int i = 0; i < rest.length; i++) {
        rest[i] -= stored[i];
      }
      Tensor kept = store.floats(m.name(), chosen(rest, rows, cols, input, wanted), rows, cols);
      LinearOp sparse =
          request.rest() == Rest.COLUMNS
              ? SparseEncoder.columns(kept, wanted, store)
              : new LinearOp.Sparse(SparseEncoder.anyBitmap(kept, wanted, store));
      op = new LinearOp.Sum(List.of(new LinearOp.Term(1, sparse), new LinearOp.Term(1, factors)));
    }
    LinearOp dense =
        LinearOp.dense(
            SparseRequest.as(
                store.floats(m.name(), w, rows, cols), QuantMix.fitting(wanted, cols), store));
    return op.bytes() < dense.bytes() ? op : dense;
  }

  /** The largest columns or elements of the rest, as the inputs weight them; zero elsewhere. */
  private float[] chosen(float[] rest, int rows, int cols, InputStatistics input, TensorType t) {
    double[] norms = new double[cols];
    Arrays.fill(norms, 1);
    if (calibrated) {
      norms = input.norms();
    }
    float[] kept = rest.clone();
    if (request.rest() == Rest.BITMAP) {
      float[] scores = Masks.wandaScores(rest, norms);
      Masks.apply(Masks.magnitude(scores, cols, 1 - request.share(), Pattern.UNSTRUCTURED), kept);
      return kept;
    }
    double[] size = new double[cols];
    for (int i = 0; i < rest.length; i++) {
      size[i % cols] += (double) rest[i] * rest[i];
    }
    Integer[] order = new Integer[cols];
    for (int j = 0; j < cols; j++) {
      size[j] *= norms[j] * norms[j];
      order[j] = j;
    }
    Arrays.sort(order, (a, b) -> Double.compare(size[b], size[a]));
    int n = Math.max(1, (int) Math.round(request.share() * cols));
    n = Math.min(cols, (n + t.blockSize() - 1) / t.blockSize() * t.blockSize());
    boolean[] stays = new boolean[cols];
    for (int j = 0; j < n; j++) {
      stays[order[j]] = true;
    }
    for (int i = 0; i < kept.length; i++) {
      kept[i] = stays[i % cols] ? kept[i] : 0;
    }
    return kept;
  }
}
