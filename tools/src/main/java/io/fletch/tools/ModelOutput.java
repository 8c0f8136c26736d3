package io.fletch.tools;

import io.fletch.quant.ArrowWriter;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.LinearOp;
import io.fletch.quant.LinearOpTensors;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorSource;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.quant.Workspace;
import io.fletch.runtime.convert.ModelConversion;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The model that an offline tool makes: tensors are finished one after the other into a {@link
 * Workspace}, so that a second run goes on where the first ended, and assembled at the end into a
 * file that appears when it is complete. A name that ends with {@code .gguf} is a GGUF file, one
 * with {@code .arrow} a Fletch Arrow file, any other a folder of safetensors. Used by the thread of
 * the command.
 */
final class ModelOutput implements AutoCloseable {
  private record Item(String name, TensorType type, long[] shape) {}

  private final Path path;
  private final List<Path> inputs = new ArrayList<>();
  private final Workspace workspace;
  private final Map<String, Item> items = new LinkedHashMap<>();
  private final Map<String, Integer> kinds = new TreeMap<>();
  private final AtomicInteger done = new AtomicInteger();
  private long shardBytes = Long.MAX_VALUE;

  /**
   * Opens or resumes the making of an output.
   *
   * @param key what the result depends on besides the model
   * @param others further files that the result is made of, which must not be overwritten
   * @throws UsageException if it would overwrite an input or another model's folder
   * @throws io.fletch.quant.WeightFileException if another run is making it
   */
  ModelOutput(Path path, WeightFile input, List<WeightFile> others, String key) throws IOException {
    this.path = path.toAbsolutePath().normalize();
    inputs.addAll(input.shards());
    others.forEach(o -> inputs.addAll(o.shards()));
    check(path, inputs);
    this.workspace = Workspace.open(this.path, key + "\n" + Workspace.fingerprint(input));
  }

  /** The container of an output of that name. */
  static WeightFile.Format format(Path path) {
    String name = path.toString();
    return name.endsWith(".gguf")
        ? WeightFile.Format.GGUF
        : name.endsWith(".arrow") ? WeightFile.Format.ARROW : WeightFile.Format.SAFETENSORS;
  }

  private static void check(Path path, List<Path> inputs) throws IOException {
    for (Path shard : inputs) {
      if (Files.exists(path) && Files.isSameFile(path, shard)) {
        throw new UsageException("--output: expected=another file than the model actual=" + path);
      }
    }
    if (format(path) != WeightFile.Format.SAFETENSORS) {
      if (Files.isDirectory(path)) {
        throw new UsageException("--output: expected=a file actual=" + path + " (a folder)");
      }
    } else if (Files.exists(path) && !isUnfinished(path)) {
      throw new UsageException(
          "--output: expected=NAME.gguf, NAME.arrow or a new folder actual=" + path + " (exists)");
    }
    checkFolder("output", path);
  }

  /**
   * Checks, before the work is done, that there is a folder for a file.
   *
   * @throws UsageException if there is none
   */
  static void checkFolder(String option, Path file) {
    Path folder = file.toAbsolutePath().normalize().getParent();
    if (folder == null || !Files.isDirectory(folder)) {
      throw new UsageException("--" + option + ": expected=in a folder that exists actual=" + file);
    }
  }

  /** Whether nothing is lost in a folder: it is empty, or what an interrupted run has left. */
  private static boolean isUnfinished(Path path) throws IOException {
    if (!Files.isDirectory(path) || Files.exists(path.resolve("config.json"))) {
      return false;
    }
    try (Stream<Path> files = Files.list(path)) {
      return files.findAny().isEmpty() || Workspace.exists(path);
    }
  }

  Workspace workspace() {
    return workspace;
  }

  /** The container of the output. */
  WeightFile.Format format() {
    return format(path);
  }

  /** Tensors finished so far. */
  int done() {
    return done.get();
  }

  /** Adds a tensor whose bytes are made now, unless an earlier run made them. */
  void add(String name, TensorType type, long[] shape, TensorSource source) {
    items.put(name, new Item(name, type, shape));
    String part = "tensor " + name;
    if (!workspace.has(part)) {
      workspace.put(part, source);
    }
    done.incrementAndGet();
  }

  /** Adds a matrix in the form that is asked for, unless an earlier run made it. */
  void add(TensorCopy matrix, SparseRequest request, TensorType dense) {
    add(matrix.name(), store -> request.encode(matrix, dense, store));
  }

  /** Adds a matrix in the form that is made of it, unless an earlier run made it. */
  void add(String matrix, Function<TensorStore, LinearOp> form) {
    String part = "encoding " + matrix;
    if (!workspace.has(part)) {
      try (TensorStore store = TensorStore.create()) {
        LinearOp op = form.apply(store);
        String stem = stem(matrix);
        List<Object> names = new ArrayList<>();
        LinearOpTensors.of(op, stem)
            .forEach((name, t) -> {
              workspace.put("tensor " + name, sink -> sink.write(t.segment()));
              names.add(List.of(name, t.type().name(), Arrays.stream(t.shape()).boxed().toList()));
            });
        byte[] line =
            Json.line(Map.of("kind", SparseRequest.kind(op), "tensors", names))
                .getBytes(StandardCharsets.UTF_8);
        workspace.put(part, sink -> sink.write(MemorySegment.ofArray(line)));
      }
    }
    Map<String, Object> made = Json.object(workspace.bytes(part));
    parts(made).forEach(item -> items.put(item.name(), item));
    kinds.merge((String) made.get("kind"), 1, Integer::sum);
    done.incrementAndGet();
  }

  private static String stem(String matrix) {
    return matrix.substring(0, matrix.lastIndexOf('.'));
  }

  private static List<Item> parts(Map<String, Object> made) {
    List<Item> all = new ArrayList<>();
    for (Object entry : (List<?>) made.get("tensors")) {
      List<?> t = (List<?>) entry;
      long[] shape =
          ((List<?>) t.get(2)).stream().mapToLong(d -> ((Number) d).longValue()).toArray();
      all.add(new Item((String) t.get(0), TensorType.valueOf((String) t.get(1)), shape));
    }
    return all;
  }

  /** A matrix as it was added in a form. */
  LinearOp made(String matrix, long in, TensorStore store) {
    Map<String, Tensor> tensors = new LinkedHashMap<>();
    for (Item i : parts(Json.object(workspace.bytes("encoding " + matrix)))) {
      Tensor t = store.allocate(i.name(), i.type(), i.shape());
      MemorySegment bytes = MemorySegment.ofArray(workspace.bytes("tensor " + i.name()));
      MemorySegment.copy(bytes, 0, t.segment(), 0, t.bytes());
      tensors.put(i.name(), t);
    }
    return LinearOpTensors.find(n -> Optional.ofNullable(tensors.get(n)), stem(matrix), in)
        .orElseThrow();
  }

  /** Matrices that were added in a form of their choice, by kind. */
  Map<String, Integer> kinds() {
    return kinds;
  }

  /** Bytes of the tensors. */
  long bytes() {
    return items.values().stream()
        .mapToLong(i -> {
          long n = 1;
          for (long d : i.shape()) {
            n *= d;
          }
          return i.type().bytes(n);
        })
        .sum();
  }

  private TensorSource source(Item item) {
    return workspace.source("tensor " + item.name());
  }

  /** Writes a GGUF file and ends the workspace. */
  void writeGguf(GgufWriter writer) {
    items.values().forEach(i -> writer.add(i.name(), i.type(), i.shape(), source(i)));
    if (shardBytes == Long.MAX_VALUE) {
      writer.write(path);
    } else {
      writer.writeSplit(path, shardBytes);
    }
    workspace.delete();
  }

  /** Writes a Fletch Arrow file and ends the workspace. */
  void writeArrow(GgufWriter metadata) {
    ArrowWriter writer = new ArrowWriter().putAll(metadata.metadata());
    items.values().forEach(i -> writer.tensor(i.name(), i.type(), i.shape(), source(i)));
    writer.writeSplit(path, shardBytes);
    workspace.delete();
  }

  /**
   * Cuts GGUF and Fletch Arrow files into shards of at most that many bytes of tensors.
   *
   * @throws UsageException if one could overwrite a shard of an input
   */
  void shards(long bytes) throws IOException {
    shardBytes = bytes;
    String name = path.getFileName().toString();
    int dot = name.lastIndexOf('.');
    String shards =
        Pattern.quote(name.substring(0, dot))
            + "-\\d{5}-of-\\d{5}"
            + Pattern.quote(name.substring(dot));
    Path folder = path.toAbsolutePath().getParent();
    for (Path input : inputs) {
      if (input.getFileName().toString().matches(shards)
          && Files.isSameFile(input.toAbsolutePath().getParent(), folder)) {
        throw new UsageException(
            "--output: expected=other files than the model's actual=" + input + " among them");
      }
    }
  }

  /** Writes a folder and ends the workspace. {@code config.json}, which makes it one, is last. */
  void writeSafetensors(Map<String, String> files) throws IOException {
    Files.createDirectories(path);
    SafetensorsWriter writer = new SafetensorsWriter().put("format", "pt");
    items.values().forEach(i -> writer.add(i.name(), i.type(), i.shape(), source(i)));
    writer.write(path.resolve("model.safetensors"));
    for (Map.Entry<String, String> file : files.entrySet()) {
      if (!file.getKey().equals("config.json")) {
        Workspace.writeText(path.resolve(file.getKey()), file.getValue());
      }
    }
    Workspace.writeText(path.resolve("config.json"), files.get("config.json"));
    workspace.delete();
  }

  /** A model in the container of the output. */
  record View(
      List<TensorCopy> tensors, GgufWriter gguf, Map<String, String> files, List<String> notes) {
    /** Sees a file as a container. Safetensors to safetensors keeps the files beside it. */
    static View of(WeightFile file, WeightFile.Format to, io.fletch.quant.TensorStore derived)
        throws IOException {
      String sparse =
          file.tensors().keySet().stream()
              .filter(ModelConversion::isEncoded)
              .findFirst()
              .orElse(null);
      if (sparse != null && to != file.format()) {
        throw new CommandException(
            "tensor "
                + sparse
                + ": sparse and factorised matrices go from "
                + file.format()
                + " to "
                + file.format()
                + " only: expected="
                + file.format()
                + " actual="
                + to);
      }
      if (to != WeightFile.Format.SAFETENSORS) {
        ModelConversion.Gguf gguf = ModelConversion.toGguf(file, derived);
        return new View(gguf.tensors(), gguf.metadata(), Map.of(), gguf.notes());
      }
      if (file.format() != WeightFile.Format.SAFETENSORS) {
        ModelConversion.Safetensors hf = ModelConversion.toSafetensors(file);
        return new View(hf.tensors(), null, hf.files(), hf.notes());
      }
      Path folder = file.shards().getFirst().toAbsolutePath().getParent();
      Map<String, String> files = new LinkedHashMap<>();
      for (String name :
          Set.of(
              "config.json",
              "tokenizer.json",
              "tokenizer_config.json",
              "generation_config.json",
              "special_tokens_map.json",
              "chat_template.jinja")) {
        Path other = folder.resolve(name);
        if (Files.isRegularFile(other)) {
          files.put(name, Files.readString(other));
        }
      }
      if (!files.containsKey("config.json")) {
        throw new CommandException(folder.resolve("config.json") + ": no such file");
      }
      List<TensorCopy> tensors = new ArrayList<>();
      file.tensors().values().forEach(t -> tensors.add(TensorCopy.of(t)));
      return new View(tensors, null, files, List.of());
    }
  }

  /** Lets other runs make it; what is finished stays, unless the whole is written. */
  @Override
  public void close() {
    workspace.close();
  }

  /** Writes the whole, in the container of the view. */
  void write(View view) throws IOException {
    if (format() == WeightFile.Format.ARROW) {
      writeArrow(view.gguf());
    } else if (view.gguf() != null) {
      writeGguf(view.gguf());
    } else {
      writeSafetensors(view.files());
    }
  }

  /** What a progress line says. */
  static String line(String doing, int done, int of) {
    return doing + ", tensor " + done + " of " + of;
  }

  /** The option for the output. */
  static org.apache.commons.cli.Option option() {
    return Command.value(
        "o",
        "output",
        "OUT",
        "NAME.gguf, NAME.arrow, or a new folder for safetensors with their configuration");
  }

  /** Sums a size over all tensors of a file. */
  static long sum(WeightFile file, Function<io.fletch.quant.Tensor, Long> size) {
    return file.tensors().values().stream().mapToLong(size::apply).sum();
  }
}
