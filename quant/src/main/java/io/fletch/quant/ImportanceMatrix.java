package io.fletch.quant;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;

/**
 * Mean squares of the inputs of a model's matrices, by the GGUF name of the matrix: how much an
 * error in a column of weights counts. Immutable.
 *
 * <p>Files are GGUF as llama.cpp writes them: {@code general.type = imatrix}, and per matrix {@code
 * NAME.in_sum2} (F32, sums of squares) and {@code NAME.counts} (F32, one number: rows summed).
 */
public final class ImportanceMatrix {
  private static final String SUMS = ".in_sum2";
  private static final String COUNTS = ".counts";

  private final Map<String, float[]> means;

  /** Takes mean squares per column, by name of the matrix. */
  public ImportanceMatrix(Map<String, float[]> means) {
    this.means = new LinkedHashMap<>(means);
  }

  /**
   * Reads a file.
   *
   * @throws WeightFileException if it is damaged or no importance matrix
   */
  public static ImportanceMatrix read(Path path) {
    Map<String, float[]> means = new LinkedHashMap<>();
    try (WeightFile file = WeightFile.open(path)) {
      for (Tensor sums : file.tensors().values()) {
        if (!sums.name().endsWith(SUMS)) {
          continue;
        }
        String name = sums.name().substring(0, sums.name().length() - SUMS.length());
        Tensor counts =
            file.tensor(name + COUNTS)
                .orElseThrow(() ->
                    new WeightFileException(path + ": tensor " + name + COUNTS + ": missing"));
        if (sums.type() != TensorType.F32
            || counts.type() != TensorType.F32
            || counts.elements() != 1
            || sums.rows() != 1) {
          throw new WeightFileException(
              path
                  + ": expected=F32 sums of one matrix and one count actual="
                  + sums
                  + ", "
                  + counts
                  + " (importance of experts is not supported)");
        }
        float count = Dequantizer.toFloats(counts)[0];
        float[] mean = Dequantizer.toFloats(sums);
        for (int i = 0; i < mean.length; i++) {
          mean[i] /= Math.max(count, 1);
          if (!(mean[i] >= 0 && mean[i] < Float.POSITIVE_INFINITY)) {
            throw new WeightFileException(
                path + ": " + sums.name() + "[" + i + "]: expected=finite, >= 0 actual=" + mean[i]);
          }
        }
        means.put(name, mean);
      }
      if (means.isEmpty()) {
        throw new WeightFileException(
            path + ": expected=an importance matrix (tensors NAME" + SUMS + ") actual=none");
      }
    }
    return new ImportanceMatrix(means);
  }

  /** Writes a file that {@link #read} takes. */
  public void write(Path path) {
    GgufWriter writer = new GgufWriter().put("general.type", "imatrix");
    try (TensorStore store = TensorStore.create()) {
      means.forEach((name, mean) -> {
        writer.add(store.floats(name + SUMS, mean, 1, mean.length));
        writer.add(store.floats(name + COUNTS, new float[] {1}, 1, 1));
      });
      writer.write(path);
    }
  }

  /**
   * The importance of a matrix's columns, if it was seen. A column that was never excited counts a
   * little, so that its weights do not vanish.
   *
   * @throws WeightFileException if the matrix has another number of columns
   */
  public Optional<float[]> of(String name, long cols) {
    float[] mean = means.get(name);
    if (mean == null) {
      return Optional.empty();
    }
    if (mean.length != cols) {
      throw new WeightFileException(
          "importance of " + name + ": columns: expected=" + cols + " actual=" + mean.length);
    }
    double sum = 0;
    for (float v : mean) {
      sum += v;
    }
    if (sum == 0) {
      return Optional.empty();
    }
    float least = (float) (sum / cols * 1e-6);
    float[] result = mean.clone();
    for (int i = 0; i < result.length; i++) {
      result[i] = Math.max(result[i], least);
    }
    return Optional.of(result);
  }

  /** Names of the matrices. */
  public java.util.Set<String> names() {
    return java.util.Collections.unmodifiableSet(means.keySet());
  }
}
