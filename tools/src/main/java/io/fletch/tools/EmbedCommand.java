package io.fletch.tools;

import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.ModelOptions;
import io.fletch.Pooling;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** {@code fletch embed}: vectors of texts. */
final class EmbedCommand implements Command {
  @Override
  public String usage() {
    return "--model F [options] [TEXT...]";
  }

  @Override
  public String description() {
    return """
    Prints the vector of every text, a line of numbers each. Texts are the arguments
    (one text each), --file (the whole file), --lines (a text per line), or the lines
    of standard input. With --similarity it prints instead how alike the first text
    and each of the others are (cosine, from -1 to 1). A prefix like "query: " that a
    model wants is part of the text.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Input and output",
            List.of(
                Command.value("f", "file", "FILE", "the whole file is one text (- for stdin)"),
                Command.value("lines", "FILE", "every line is a text (- for stdin)"),
                Command.flag("similarity", "print similarities to the first text, not vectors"),
                Command.flag("json", "print one JSON object"))),
        new Section("Vectors", List.of(pooling(), dimensions(), raw(), truncate())),
        ModelFlags.section());
  }

  private static org.apache.commons.cli.Option pooling() {
    return Command.value(
        "pooling",
        "NAME",
        "mean, cls, last, or none for a vector per token (default: what the model says)");
  }

  private static org.apache.commons.cli.Option dimensions() {
    return Command.value(
        "dimensions", "N", "the first N elements alone, for models trained so (default: all)");
  }

  private static org.apache.commons.cli.Option raw() {
    return Command.flag("no-normalize", "vectors as they come, not of length 1");
  }

  private static org.apache.commons.cli.Option truncate() {
    return Command.flag("truncate", "cut texts of too many tokens (default: an error)");
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch embed --model bge-small-en-v1.5-q8_0.gguf --json \"a text\"",
        "fletch embed --model F --similarity \"a cat sat on a mat\" \"a cat is on a rug\"",
        "fletch embed --model F --lines documents.txt > vectors.txt");
  }

  /** The options of the command line. */
  private static EmbedderOptions options(Arguments arguments) {
    EmbedderOptions options = EmbedderOptions.defaults().withModel(modelOptions(arguments));
    if (arguments.has("pooling")) {
      options = options.withPooling(arguments.choice("pooling", Pooling.MEAN));
    }
    if (arguments.has("truncate")) {
      options = options.withOverlong(EmbedderOptions.Overlong.TRUNCATE);
    }
    return options
        .withNormalize(!arguments.has("no-normalize"))
        .withDimensions(arguments.integer("dimensions", 0, 1, 1 << 20));
  }

  /** Those of the model section, with float32 keys and values unless they say otherwise. */
  static ModelOptions modelOptions(Arguments arguments) {
    ModelOptions options = ModelFlags.options(arguments);
    return arguments.has("kv") ? options : options.withKvType(ModelOptions.KvType.F32);
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    if (!arguments.has("model")) {
      throw new UsageException("--model is required: an embedding model");
    }
    EmbedderOptions options = options(arguments);
    boolean isSimilarity = arguments.has("similarity");
    if (isSimilarity && options.pooling().equals(java.util.Optional.of(Pooling.NONE))) {
      throw new UsageException("--similarity needs a vector per text: not --pooling none");
    }
    List<String> texts = texts(arguments, io);
    if (texts.isEmpty() || isSimilarity && texts.size() < 2) {
      throw new UsageException(
          "texts: expected=at least " + (isSimilarity ? 2 : 1) + " actual=" + texts.size());
    }
    Path path = ModelFlags.path(arguments);
    try (Embedder embedder =
        ModelFlags.load(
            arguments,
            io,
            options.model(),
            heard -> Embedder.open(path, options.withModel(heard)),
            Embedder::name)) {
      boolean perToken = embedder.info().pooling() == Pooling.NONE;
      if (isSimilarity && perToken) {
        throw new UsageException(
            "--similarity needs a vector per text: the model's pooling is none");
      }
      List<float[][]> vectors = new ArrayList<>();
      if (perToken) {
        texts.forEach(t -> vectors.add(embedder.tokenVectors(t)));
      } else {
        embedder.embed(texts).forEach(v -> vectors.add(new float[][] {v}));
      }
      if (isSimilarity) {
        similarity(arguments, io, vectors);
      } else if (arguments.has("json")) {
        io.println(Json.line(report(embedder, texts, vectors, perToken)));
      } else {
        vectors.forEach(rows -> {
          for (float[] row : rows) {
            io.println(line(row));
          }
        });
      }
    }
    return Cli.OK;
  }

  private static List<String> texts(Arguments arguments, Io io) throws IOException {
    int sources = 0;
    for (String option : List.of("file", "lines")) {
      sources += arguments.has(option) ? 1 : 0;
    }
    if (sources + (arguments.rest().isEmpty() ? 0 : 1) > 1) {
      throw new UsageException("texts: arguments, --file and --lines exclude each other");
    }
    if (arguments.has("file")) {
      return List.of(Texts.read(arguments.required("file"), io));
    }
    return arguments.rest().isEmpty()
        ? Texts.read(arguments.string("lines").orElse("-"), io).lines().toList()
        : arguments.rest();
  }

  private static void similarity(Arguments arguments, Io io, List<float[][]> vectors) {
    List<Double> all = new ArrayList<>();
    for (float[][] other : vectors.subList(1, vectors.size())) {
      all.add(Embedder.similarity(vectors.getFirst()[0], other[0]));
    }
    if (arguments.has("json")) {
      io.println(Json.line(Map.of("similarities", all)));
    } else {
      all.forEach(s -> io.printf("%.6f", s));
    }
  }

  private static Map<String, Object> report(
      Embedder embedder, List<String> texts, List<float[][]> vectors, boolean perToken) {
    Embedder.Info info = embedder.info();
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("model", embedder.name());
    report.put("architecture", info.architecture());
    report.put("pooling", info.pooling().name().toLowerCase(java.util.Locale.ROOT));
    report.put("dimensions", info.dimensions());
    report.put("tokens", texts.stream().map(t -> embedder.tokens(t).length).toList());
    report.put(
        "vectors",
        vectors.stream()
            .map(rows ->
                perToken
                    ? (Object) List.of(rows).stream().map(EmbedCommand::list).toList()
                    : list(rows[0]))
            .toList());
    return report;
  }

  private static List<Float> list(float[] vector) {
    List<Float> out = new ArrayList<>(vector.length);
    for (float x : vector) {
      out.add(x);
    }
    return out;
  }

  private static String line(float[] vector) {
    StringBuilder out = new StringBuilder();
    for (float x : vector) {
      out.append(out.isEmpty() ? "" : " ").append(x);
    }
    return out.toString();
  }
}
