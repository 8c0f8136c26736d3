package io.fletch.tools;

import io.fletch.Model;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** {@code fletch inspect}: what a model file holds. */
final class InspectCommand implements Command {
  /** Elements of a metadata array that are shown without {@code --full}. */
  private static final int SHOWN = 6;

  private static final int TEXT_SHOWN = 60;

  @Override
  public String usage() {
    return "[options]";
  }

  @Override
  public String description() {
    return """
    Shows the metadata and the tensors of a model file, without running it; with --plan,
    what the backend would do for a forward pass: steps, kernels, buffers and costs.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "What to show",
            List.of(
                Command.flag("plan", "open the model and print the plan of its graph"),
                Command.flag("full", "arrays and texts of the metadata in full"),
                Command.flag(
                    "verify",
                    "read all tensors and compare them with the hashes of a Fletch Arrow file"),
                Command.flag("json", "print one JSON object"))),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch inspect --model qwen3-0.6b-q8_0.gguf",
        "fletch inspect --model demo --plan",
        "fletch inspect --model F --json | jq .types");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    if (arguments.has("plan")) {
      try (Model model = ModelFlags.open(arguments, io)) {
        if (arguments.has("json")) {
          Map<String, Object> report = new LinkedHashMap<>();
          report.put("model", model.name());
          report.put("backend", model.backendDescription());
          report.put("plan", model.plan());
          io.println(Json.line(report));
        } else {
          io.println(model.plan().stripTrailing());
        }
      }
      return Cli.OK;
    }
    try (WeightFile file = WeightFile.open(ModelFlags.path(arguments))) {
      if (arguments.has("verify")) {
        long bytes = file.verify();
        io.note(
            "fletch: "
                + (bytes == 0
                    ? "nothing to verify: the file keeps no hashes of its tensors"
                    : Texts.bytes(bytes) + " of tensors have the hashes that the file keeps"));
      }
      if (arguments.has("json")) {
        io.println(Json.line(json(file, arguments.has("full"))));
      } else {
        print(file, arguments.has("full"), io);
      }
    }
    return Cli.OK;
  }

  /** Bytes and number of the tensors of each type, the largest share first. */
  private record Share(TensorType type, int tensors, long elements, long bytes) {
    static List<Share> of(WeightFile file) {
      Map<TensorType, Share> shares = new TreeMap<>();
      for (Tensor tensor : file.tensors().values()) {
        shares.merge(
            tensor.type(),
            new Share(tensor.type(), 1, tensor.elements(), tensor.bytes()),
            (a, b) ->
                new Share(
                    a.type, a.tensors + b.tensors, a.elements + b.elements, a.bytes + b.bytes));
      }
      return shares.values().stream()
          .sorted(java.util.Comparator.comparingLong(Share::bytes).reversed())
          .toList();
    }
  }

  private static void print(WeightFile file, boolean full, Io io) {
    List<Share> shares = Share.of(file);
    io.printf("File      %s", file.path());
    io.printf("Format    %s", file.format());
    io.printf(
        "Weights   %s in %d tensors, %s elements",
        Texts.bytes(shares.stream().mapToLong(Share::bytes).sum()),
        file.tensors().size(),
        Texts.count(shares.stream().mapToLong(Share::elements).sum()));
    for (Share share : shares) {
      io.printf(
          "          %-8s %6d tensors %12s",
          share.type(), share.tensors(), Texts.bytes(share.bytes()));
    }
    io.println("");
    io.printf("Metadata  %d entries", file.metadata().entries().size());
    int width =
        file.metadata().entries().keySet().stream().mapToInt(String::length).max().orElse(0);
    String form = "  %-" + Math.clamp(width, 1, 60) + "s  %s";
    file.metadata()
        .entries()
        .forEach((key, value) -> io.printf(form, key, full ? whole(value) : shortened(value)));
    io.println("");
    io.printf("Tensors   %d", file.tensors().size());
    int name = file.tensors().keySet().stream().mapToInt(String::length).max().orElse(0);
    String row = "  %-" + Math.clamp(name, 1, 80) + "s  %-7s %-20s %12s";
    for (Tensor tensor : file.tensors().values()) {
      io.printf(
          row,
          tensor.name(),
          tensor.type(),
          Arrays.toString(tensor.shape()),
          Texts.bytes(tensor.bytes()));
    }
  }

  private static String whole(Object value) {
    if (value instanceof String text) {
      return quoted(text);
    }
    if (value instanceof List<?> list) {
      return list.stream().map(InspectCommand::whole).toList().toString();
    }
    return String.valueOf(value);
  }

  private static String shortened(Object value) {
    if (value instanceof String text) {
      return text.length() <= TEXT_SHOWN
          ? quoted(text)
          : quoted(text.substring(0, TEXT_SHOWN)) + "... (" + text.length() + " characters)";
    }
    if (value instanceof List<?> list) {
      String shown = list.stream().limit(SHOWN).map(InspectCommand::shortened).toList().toString();
      return list.size() <= SHOWN
          ? shown
          : shown.substring(0, shown.length() - 1) + ", ...] (" + list.size() + " elements)";
    }
    return String.valueOf(value);
  }

  private static String quoted(String text) {
    return "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n") + "\"";
  }

  private static Map<String, Object> json(WeightFile file, boolean full) {
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("path", file.path().toString());
    report.put("format", file.format().name());
    List<Share> shares = Share.of(file);
    report.put("bytes", shares.stream().mapToLong(Share::bytes).sum());
    report.put("elements", shares.stream().mapToLong(Share::elements).sum());
    Map<String, Object> types = new LinkedHashMap<>();
    for (Share share : shares) {
      Map<String, Object> entry = new LinkedHashMap<>();
      entry.put("tensors", share.tensors());
      entry.put("elements", share.elements());
      entry.put("bytes", share.bytes());
      types.put(share.type().name(), entry);
    }
    report.put("types", types);
    Map<String, Object> metadata = new LinkedHashMap<>();
    file.metadata()
        .entries()
        .forEach((key, value) -> metadata.put(key, full ? value : abridged(value)));
    report.put("metadata", metadata);
    List<Map<String, Object>> tensors = new ArrayList<>();
    for (Tensor tensor : file.tensors().values()) {
      Map<String, Object> entry = new LinkedHashMap<>();
      entry.put("name", tensor.name());
      entry.put("type", tensor.type().name());
      entry.put("shape", tensor.shape());
      entry.put("bytes", tensor.bytes());
      tensors.add(entry);
    }
    report.put("tensors", tensors);
    return report;
  }

  /** A long array as its length and first elements. */
  private static Object abridged(Object value) {
    if (value instanceof List<?> list && list.size() > SHOWN) {
      Map<String, Object> entry = new LinkedHashMap<>();
      entry.put("length", list.size());
      entry.put("first", list.subList(0, SHOWN));
      return entry;
    }
    return value;
  }
}
