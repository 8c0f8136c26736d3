package io.fletch.tools;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.commons.cli.Option;

/** {@code fletch calibrate}: prepares techniques that decide token by token for a model. */
final class CalibrateCommand implements Command {
  private static final Map<String, Calibrator> KINDS = kinds();

  private static Map<String, Calibrator> kinds() {
    Map<String, Calibrator> kinds = new LinkedHashMap<>();
    kinds.put("r2r", new CalibrateRouter());
    kinds.put("ffn-skip", new CalibrateSkip());
    kinds.put("lff", new CalibrateForecasts());
    return kinds;
  }

  @Override
  public String usage() {
    return String.join("|", KINDS.keySet()) + " --model F --set S.jsonl|--text T -o FILE [options]";
  }

  @Override
  public String description() {
    return """
    r2r trains a router that decides which tokens of a small model are replaced by those
    of a large one. The large model answers the questions of a set greedily, or both read
    a text; tokens of the small model that the large one would hardly have chosen (or
    behind which it would end its answer otherwise) are what the router learns to find. A
    fifth is held back; on it the threshold is chosen, and printed is how many tokens each
    threshold would route and how many of those that matter it would find.
    ffn-skip finds the layers of a model whose feed-forward units hardly turn the
    residual stream, and from which similarity on they may rest so that a given share of
    all of them does. Measures what that costs on tokens that it did not see.
    lff fits a small network to every attention and feed-forward unit that forecasts what
    the unit adds, and a router that learns for which tokens the forecast is good. The
    units of a given share of tokens are forecast instead of run. Measures the
    forecasts, and what they cost beside skipping the same units.\
    """;
  }

  @Override
  public List<Section> sections() {
    List<Section> sections = new ArrayList<>();
    List<Option> common =
        new ArrayList<>(
            List.of(
                Command.value("s", "set", "FILE", "questions, which the model answers itself"),
                Command.value(
                    "limit", "N", "only N questions, spread evenly over the set (default: all)"),
                Command.value("n", "max-tokens", "N", "most tokens of an answer (default: 256)")));
    common.addAll(ForcedTexts.options());
    common.add(Command.value("o", "output", "FILE", "what was found, a Fletch Arrow file"));
    common.add(Command.flag("json", "print one JSON object"));
    sections.add(new Section("Calibration", common));
    KINDS.values().forEach(k -> sections.add(k.section()));
    sections.add(ModelFlags.section());
    return sections;
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch calibrate r2r --model demo --small demo-small --set train.jsonl -o router.arrow",
        "fletch calibrate ffn-skip --model F --text T --ratio 0.25 -o skip.arrow",
        "fletch calibrate lff --model F --text T --sparsity 0.25,0.4 -o lff.arrow");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    String kind = String.join(" ", arguments.rest());
    if (!KINDS.containsKey(kind)) {
      throw new UsageException(
          "what is calibrated: expected=one of "
              + String.join(", ", KINDS.keySet())
              + " actual="
              + (kind.isEmpty() ? "nothing" : kind));
    }
    Set<Option> mine = Set.copyOf(KINDS.get(kind).section().options());
    KINDS.forEach((name, calibrator) -> {
      for (Option option : calibrator.section().options()) {
        if (arguments.has(option.getLongOpt())
            && mine.stream().noneMatch(o -> o.getLongOpt().equals(option.getLongOpt()))) {
          throw new UsageException("--" + option.getLongOpt() + " is of " + name);
        }
      }
    });
    KINDS.get(kind).run(arguments, io);
    return Cli.OK;
  }
}
