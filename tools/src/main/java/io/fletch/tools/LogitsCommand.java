package io.fletch.tools;

import io.fletch.Model;
import io.fletch.Session;
import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** {@code fletch logits}: the numbers themselves, for comparisons with other programs. */
final class LogitsCommand implements Command {
  @Override
  public String usage() {
    return "--ids 1,2,3 --out X.npy [options]";
  }

  @Override
  public String description() {
    return """
    Computes the logits of token ids in one forward pass from an empty cache and writes
    them as a NumPy file: float32, shape [ids, vocabulary], row i for position i.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Input and output",
            List.of(
                Command.value("ids", "LIST", "token ids, separated by commas or spaces"),
                Command.value("prompt", "TEXT", "a text instead of ids (no chat template)"),
                Command.value("o", "out", "FILE", "where to write; replaced if it exists"),
                Command.flag("json", "print a JSON object about what was written"))),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of("fletch logits --model demo --ids 1021,117,115 --out logits.npy");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    String out = arguments.required("out");
    if (arguments.has("ids") == arguments.has("prompt")) {
      throw new UsageException("either --ids or --prompt is required");
    }
    int[] given = arguments.string("ids").map(Ids::parse).orElse(null);
    try (Model model = ModelFlags.open(arguments, io);
        Session session = model.newSession()) {
      int[] ids = given == null ? model.tokenizer().encode(arguments.required("prompt")) : given;
      Ids.check(ids, model.info().vocabularySize());
      float[][] logits = session.logits(ids);
      Npy.write(Path.of(out), logits);
      if (arguments.has("json")) {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("out", out);
        report.put("shape", List.of(logits.length, logits[0].length));
        io.println(Json.line(report));
      }
      return Cli.OK;
    }
  }
}
