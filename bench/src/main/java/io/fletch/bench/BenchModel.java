package io.fletch.bench;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.QuantizedCheckpoint;
import io.fletch.quant.SyntheticModel;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * A model that is measured without a tokenizer, a session or a sampler: an executable with packed
 * weights and one cache, whose keys and values are copies of those of a short prompt, as their
 * contents do not matter for the speed. Used by one thread.
 */
final class BenchModel implements AutoCloseable {
  /** Rows of the prompt, and most rows of a pass. */
  static final int ROWS = 128;

  private final WeightFile file;
  private final TensorStore derived = TensorStore.create();
  private final Executable executable;
  private final KvCache kv;
  private final Batch batch;
  private final int[] prompt = new int[ROWS];
  private final int[] token = {1};

  /**
   * Opens a file.
   *
   * @param capacity slots of the cache, at least {@link #ROWS}
   */
  BenchModel(Path path, int threads, KvCache.Type type, int capacity) {
    file = WeightFile.open(path);
    HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
    WeightTensors weights =
        WeightTensors.of(
            file.format(),
            QuantizedCheckpoint.tensors(file, derived),
            declared.architecture(),
            derived);
    HyperParameters hp = weights.fit(declared);
    Graph graph = ModelGraph.build(hp, weights, capacity, path.getFileName().toString());
    CpuBackend.Options options =
        CpuBackend.Options.defaults().withThreads(threads).withLayout(CpuBackend.Layout.PACKED);
    executable = new CpuBackend(options).compile(graph, ROWS);
    kv = executable.newKvCache(capacity, type);
    batch = executable.newBatch(ROWS, 1);
    for (int i = 0; i < ROWS; i++) {
      prompt[i] = (1000 + 7 * i) % graph.vocabulary();
    }
    prefill(ROWS);
    for (int filled = ROWS; filled < capacity; ) {
      int n = Math.min(filled, capacity - filled);
      kv.copy(kv, 0, filled, n);
      filled += n;
    }
  }

  /**
   * The file that a name means: a path, or {@code SHAPE:MIX} for random weights of a real shape,
   * generated into a folder where they are not there yet.
   */
  static Path file(String name, Path folder) {
    int colon = name.indexOf(':');
    if (colon < 0 || Files.exists(Path.of(name))) {
      return Path.of(name);
    }
    String shape = name.substring(0, colon);
    String mix = name.substring(colon + 1);
    Path path = folder.resolve(shape + "-" + mix + ".gguf");
    if (!Files.exists(path)) {
      try {
        Files.createDirectories(folder);
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
      SyntheticModel.write(
          path, SyntheticModel.Shape.named(shape), SyntheticModel.Mix.valueOf(mix), 1);
    }
    return path;
  }

  /** Runs the first rows of the prompt into an empty cache. */
  void prefill(int rows) {
    kv.length(0);
    batch.clear();
    batch.append(kv, prompt, 0, rows);
    batch.wantLogits(rows - 1);
    executable.forward(batch);
    kv.length(rows);
  }

  /** Slots that the next {@link #decode} sees, besides its own. */
  void length(int slots) {
    kv.length(slots);
  }

  /** Runs one token behind the slots there are; returns the likeliest next one. */
  int decode() {
    batch.clear();
    batch.append(kv, token, 0, 1);
    batch.wantLogits(0);
    executable.forward(batch);
    kv.length(kv.length() + 1);
    return batch.argmax(0);
  }

  /** Bytes of weights that a token reads. */
  long weightBytes() {
    return executable.plans().getFirst().weightBytes();
  }

  /** Bytes of keys and values of a slot. */
  long slotBytes() {
    return kv.slotBytes();
  }

  String description() {
    return executable.description();
  }

  @Override
  public void close() {
    batch.close();
    kv.close();
    executable.close();
    derived.close();
    file.close();
  }
}
