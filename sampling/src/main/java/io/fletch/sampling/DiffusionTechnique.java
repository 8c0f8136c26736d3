package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.StringJoiner;

/**
 * Diffusion options as a line of text, for command lines and result tables: techniques with
 * parameters, joined by {@code +}, for example {@code freedave(depth=4)+freecache(refresh=8)}. A
 * preset may stand first; without one {@code reference} is meant. Later parts replace what earlier
 * parts set in the same slot (transfer, cache, search); exits add up.
 */
public final class DiffusionTechnique {
  private static final Map<String, String> SYNTAX = syntax();

  private DiffusionTechnique() {}

  private static Map<String, String> syntax() {
    Map<String, String> s = new LinkedHashMap<>();
    s.put("length", "tokens");
    s.put("block", "tokens");
    s.put("temperature", "t, top-p, top-k");
    s.put("guidance", "scale");
    s.put("end", "rule (plain | forbidden | last), penalty");
    s.put("seed", "value");
    s.put("keep-mask", "");
    s.put("schedule", "steps, order (low-confidence | random | sequential)");
    s.put(
        "dream",
        "steps, algorithm (origin | maskgit-plus | topk-margin | entropy), temperature, epsilon");
    s.put("threshold", "tau");
    s.put("factor", "factor");
    s.put("localleap", "anchor, relaxed, radius");
    s.put("dynamic", "steps, tau");
    s.put("edit", "tau, edit-tau, post-steps");
    s.put("no-cache", "");
    s.put("prefix", "");
    s.put("dual", "");
    s.put("freecache", "refresh, delay");
    s.put("block-causal", "fused");
    s.put("no-search", "");
    s.put("freedave", "depth, max-rows, sequential, adaptive");
    s.put("soar", "beams, tau, min-parallel, max-parallel, collapse, mean");
    s.put("guided", "rule (deterministic | top | top-relative), top, share, chunk");
    s.put("nap", "paths, path-length, summary-length, steps, open");
    s.put("no-exit", "");
    s.put("end-fill", "whole-block");
    s.put("prophet", "from, length, early, middle, late");
    s.put(
        "sched",
        "shape (linear | cosine | exponential), hi, lo, rate, whole-answer, guard, max-change,"
            + " patience, min-progress");
    return s;
  }

  /** Every technique with its parameters, for help texts. */
  public static Map<String, String> techniques() {
    return Collections.unmodifiableMap(SYNTAX);
  }

  /**
   * Reads a technique.
   *
   * @param text the line; blank for {@code reference}
   * @param model what it is for
   * @param answerLength masks, unless the line says {@code length(tokens=...)}
   * @throws IllegalArgumentException for an unknown name or parameter, a value that is not one, or
   *     parts that cannot be combined
   */
  public static DiffusionOptions parse(String text, DiffusionModel model, int answerLength) {
    List<Part> parts = split(text);
    int length = answerLength;
    for (Part p : parts) {
      if (p.name.equals("length")) {
        length = p.copy().integer("tokens", length);
      }
    }
    String preset = "reference";
    if (!parts.isEmpty() && DiffusionPresets.names().contains(parts.getFirst().name)) {
      Part first = parts.removeFirst();
      first.end();
      preset = first.name;
    }
    Draft d = new Draft(DiffusionPresets.of(preset, model, length));
    for (Part p : parts) {
      d.apply(p);
      p.end();
    }
    DiffusionOptions options = d.build();
    Composition.check(options, model);
    return options;
  }

  private static List<Part> split(String text) {
    List<Part> parts = new ArrayList<>();
    int depth = 0;
    int start = 0;
    for (int i = 0; i <= text.length(); i++) {
      char c = i < text.length() ? text.charAt(i) : '+';
      if (c == '(') {
        depth++;
      } else if (c == ')') {
        depth--;
      } else if (c == '+' && (depth == 0 || i == text.length())) {
        String part = text.substring(start, i).strip();
        if (!part.isEmpty()) {
          parts.add(Part.of(part));
        } else if (!text.isBlank()) {
          throw new IllegalArgumentException("technique: nothing between '+' in '" + text + "'");
        }
        start = i + 1;
      }
    }
    return parts;
  }

  /** A name with its parameters; knows which of them nobody has asked for. */
  private static final class Part {
    final String name;
    final Map<String, String> parameters;

    private Part(String name, Map<String, String> parameters) {
      this.name = name;
      this.parameters = parameters;
    }

    static Part of(String text) {
      int open = text.indexOf('(');
      if (open < 0) {
        return new Part(text, new LinkedHashMap<>());
      }
      if (!text.endsWith(")") || text.indexOf('(', open + 1) >= 0) {
        throw new IllegalArgumentException(
            "technique: expected=name(key=value, ...) actual=" + text);
      }
      Map<String, String> parameters = new LinkedHashMap<>();
      String inside = text.substring(open + 1, text.length() - 1);
      if (!inside.isBlank()) {
        for (String pair : inside.split(",", -1)) {
          int eq = pair.indexOf('=');
          if (eq <= 0
              || parameters.put(pair.substring(0, eq).strip(), pair.substring(eq + 1).strip())
                  != null) {
            throw new IllegalArgumentException(
                "technique: expected=key=value, each once, actual=" + pair.strip() + " in " + text);
          }
        }
      }
      return new Part(text.substring(0, open).strip(), parameters);
    }

    Part copy() {
      return new Part(name, new LinkedHashMap<>(parameters));
    }

    void end() {
      if (!parameters.isEmpty()) {
        throw new IllegalArgumentException(
            "technique "
                + name
                + ": unknown parameter: expected="
                + SYNTAX.getOrDefault(name, "none")
                + " actual="
                + parameters.keySet());
      }
    }

    int integer(String key, int otherwise) {
      String v = parameters.remove(key);
      try {
        return v == null ? otherwise : Integer.parseInt(v);
      } catch (NumberFormatException e) {
        throw bad(key, "a whole number", v, e);
      }
    }

    long whole(String key, long otherwise) {
      String v = parameters.remove(key);
      try {
        return v == null ? otherwise : Long.parseLong(v);
      } catch (NumberFormatException e) {
        throw bad(key, "a whole number", v, e);
      }
    }

    float number(String key, float otherwise) {
      String v = parameters.remove(key);
      try {
        if (v == null) {
          return otherwise;
        }
        return switch (v) {
          case "inf" -> Float.POSITIVE_INFINITY;
          default -> Float.parseFloat(v);
        };
      } catch (NumberFormatException e) {
        throw bad(key, "a number", v, e);
      }
    }

    boolean flag(String key, boolean otherwise) {
      String v = parameters.remove(key);
      if (v == null) {
        return otherwise;
      }
      if (!v.equals("true") && !v.equals("false")) {
        throw bad(key, "true or false", v, null);
      }
      return v.equals("true");
    }

    <E extends Enum<E>> E choice(String key, Class<E> type, E otherwise) {
      String v = parameters.remove(key);
      if (v == null) {
        return otherwise;
      }
      for (E e : type.getEnumConstants()) {
        if (word(e).equals(v)) {
          return e;
        }
      }
      throw bad(key, SYNTAX.get(name), v, null);
    }

    private IllegalArgumentException bad(
        String key, String expected, String actual, Exception cause) {
      return new IllegalArgumentException(
          "technique " + name + ": " + key + ": expected=" + expected + " actual=" + actual, cause);
    }
  }

  /** Options while parts are applied; combinations are checked once, at the end. */
  private static final class Draft {
    private int answer;
    private int block;
    private Transfer transfer;
    private Caching caching;
    private Search search;
    private final List<Exit> exits;
    private float temperature;
    private float topP;
    private int topK;
    private float guidance;
    private DiffusionOptions.End end;
    private float endPenalty;
    private boolean suppress;
    private long seed;

    Draft(DiffusionOptions base) {
      answer = base.answerLength();
      block = base.blockLength();
      transfer = base.transfer();
      caching = base.caching();
      search = base.search();
      exits = new ArrayList<>(base.exits());
      temperature = base.temperature();
      topP = base.topP();
      topK = base.topK();
      guidance = base.guidance();
      end = base.end();
      endPenalty = base.endPenalty();
      suppress = base.suppressMask();
      seed = base.seed();
    }

    DiffusionOptions build() {
      return new DiffusionOptions(
          answer,
          block,
          transfer,
          caching,
          search,
          exits,
          temperature,
          topP,
          topK,
          guidance,
          end,
          endPenalty,
          suppress,
          seed);
    }

    void apply(Part p) {
      switch (p.name) {
        case "length" -> answer = p.integer("tokens", answer);
        case "block" -> block = p.integer("tokens", block);
        case "temperature" -> {
          temperature = p.number("t", temperature);
          topP = p.number("top-p", topP);
          topK = p.integer("top-k", topK);
        }
        case "guidance" -> guidance = p.number("scale", guidance);
        case "end" -> {
          end = p.choice("rule", DiffusionOptions.End.class, end);
          endPenalty = p.number("penalty", endPenalty);
        }
        case "seed" -> seed = p.whole("value", seed);
        case "keep-mask" -> suppress = false;
        case "schedule" ->
            transfer =
                new Transfer.Schedule(
                    p.integer("steps", 0),
                    p.choice("order", Transfer.Order.class, Transfer.Order.LOW_CONFIDENCE));
        case "dream" ->
            transfer =
                new Transfer.Dream(
                    p.integer("steps", 0),
                    p.choice(
                        "algorithm",
                        Transfer.DreamAlgorithm.class,
                        Transfer.DreamAlgorithm.ENTROPY),
                    p.number("temperature", 0),
                    p.number("epsilon", 1e-3f));
        case "threshold" -> transfer = new Transfer.Threshold(p.number("tau", 0.9f));
        case "factor" -> transfer = new Transfer.Factor(p.number("factor", 1));
        case "localleap" ->
            transfer =
                new Transfer.LocalLeap(
                    p.number("anchor", 0.9f), p.number("relaxed", 0.75f), p.integer("radius", 4));
        case "dynamic" ->
            transfer = new Transfer.Dynamic(p.integer("steps", 0), p.number("tau", 0.9f));
        case "edit" ->
            transfer =
                new Transfer.Edit(
                    p.number("tau", 0.7f), p.number("edit-tau", 0.5f), p.integer("post-steps", 16));
        case "no-cache" -> caching = new Caching.None();
        case "prefix" -> caching = new Caching.Prefix();
        case "dual" -> caching = new Caching.Dual();
        case "freecache" ->
            caching = new Caching.FreeCache(p.integer("refresh", 0), p.integer("delay", 0));
        case "block-causal" -> caching = new Caching.BlockCausal(p.flag("fused", false));
        case "no-search" -> search = new Search.None();
        case "freedave" ->
            search =
                new Search.FreeDave(
                    p.integer("depth", 4),
                    p.integer("max-rows", 0),
                    p.flag("sequential", false),
                    p.flag("adaptive", false));
        case "soar" ->
            search =
                new Search.Soar(
                    p.integer("beams", 2),
                    p.number("tau", 0.95f),
                    p.integer("min-parallel", 1),
                    p.integer("max-parallel", 5),
                    p.integer("collapse", 1),
                    p.flag("mean", false));
        case "guided" ->
            search =
                new Search.Guided(
                    p.choice("rule", Search.GuideRule.class, Search.GuideRule.TOP_RELATIVE),
                    p.integer("top", 2),
                    p.number("share", 0.5f),
                    p.integer("chunk", 32));
        case "nap" -> {
          int paths = p.integer("paths", 3);
          Checks.range("paths", paths, 1, 64);
          int summary = p.integer("summary-length", Math.min(32, answer / 4));
          Search.Nap nap =
              new Search.Nap(
                  Collections.nCopies(paths, List.of()),
                  List.of(),
                  p.integer("path-length", Math.max(1, (answer - summary) / paths)),
                  summary,
                  p.integer("steps", 0),
                  p.number("open", 0.18f));
          search = nap;
          answer = nap.length();
          block = answer;
        }
        case "no-exit" -> exits.clear();
        case "end-fill" -> exits.add(new Exit.EndFill(p.flag("whole-block", false)));
        case "prophet" ->
            exits.add(
                new Exit.Prophet(
                    p.integer("from", 0),
                    p.integer("length", -1),
                    p.number("early", 7.5f),
                    p.number("middle", 5),
                    p.number("late", 2.5f)));
        case "sched" ->
            exits.add(
                new Exit.Sched(
                    p.choice("shape", Exit.Shape.class, Exit.Shape.EXPONENTIAL),
                    p.number("hi", 7.5f),
                    p.number("lo", 2.5f),
                    p.number("rate", 16),
                    p.flag("whole-answer", false),
                    p.flag("guard", true),
                    p.number("max-change", 0),
                    p.integer("patience", 0),
                    p.number("min-progress", 0)));
        default ->
            throw new IllegalArgumentException(
                "unknown technique: expected=one of "
                    + SYNTAX.keySet()
                    + ", or first one of the presets "
                    + DiffusionPresets.names()
                    + " actual="
                    + p.name);
      }
    }
  }

  /**
   * The line that gives these options for any model that allows them; every slot is named. Headers
   * of {@link Search.Nap} are token ids and cannot be written down.
   */
  public static String format(DiffusionOptions o) {
    StringJoiner s = new StringJoiner("+");
    s.add("reference");
    if (!(o.search() instanceof Search.Nap)) {
      s.add("length(tokens=" + o.answerLength() + ")");
      s.add("block(tokens=" + o.blockLength() + ")");
    }
    s.add(
        switch (o.transfer()) {
          case Transfer.Schedule t ->
              "schedule(steps=" + t.steps() + ",order=" + word(t.order()) + ")";
          case Transfer.Dream t ->
              "dream(steps="
                  + t.steps()
                  + ",algorithm="
                  + word(t.algorithm())
                  + ",temperature="
                  + number(t.algorithmTemperature())
                  + ",epsilon="
                  + number(t.epsilon())
                  + ")";
          case Transfer.Threshold t -> "threshold(tau=" + number(t.tau()) + ")";
          case Transfer.Factor t -> "factor(factor=" + number(t.factor()) + ")";
          case Transfer.LocalLeap t ->
              "localleap(anchor="
                  + number(t.anchor())
                  + ",relaxed="
                  + number(t.relaxed())
                  + ",radius="
                  + t.radius()
                  + ")";
          case Transfer.Dynamic t -> "dynamic(steps=" + t.steps() + ",tau=" + number(t.tau()) + ")";
          case Transfer.Edit t ->
              "edit(tau="
                  + number(t.tau())
                  + ",edit-tau="
                  + number(t.editTau())
                  + ",post-steps="
                  + t.maxPostSteps()
                  + ")";
        });
    s.add(
        switch (o.caching()) {
          case Caching.None _ -> "no-cache";
          case Caching.Prefix _ -> "prefix";
          case Caching.Dual _ -> "dual";
          case Caching.FreeCache c ->
              "freecache(refresh=" + c.refresh() + ",delay=" + c.delay() + ")";
          case Caching.BlockCausal c -> "block-causal(fused=" + c.fused() + ")";
        });
    s.add(
        switch (o.search()) {
          case Search.None _ -> "no-search";
          case Search.FreeDave f ->
              "freedave(depth="
                  + f.depth()
                  + ",max-rows="
                  + f.maxRows()
                  + ",sequential="
                  + f.sequential()
                  + ",adaptive="
                  + f.adaptive()
                  + ")";
          case Search.Soar b ->
              "soar(beams="
                  + b.beams()
                  + ",tau="
                  + number(b.tau())
                  + ",min-parallel="
                  + b.minParallel()
                  + ",max-parallel="
                  + b.maxParallel()
                  + ",collapse="
                  + b.collapse()
                  + ",mean="
                  + b.mean()
                  + ")";
          case Search.Guided g ->
              "guided(rule="
                  + word(g.rule())
                  + ",top="
                  + g.top()
                  + ",share="
                  + number(g.share())
                  + ",chunk="
                  + g.chunk()
                  + ")";
          case Search.Nap n ->
              "nap(paths="
                  + n.pathHeaders().size()
                  + ",path-length="
                  + n.pathLength()
                  + ",summary-length="
                  + n.summaryLength()
                  + ",steps="
                  + n.steps()
                  + ",open="
                  + number(n.openShare())
                  + ")";
        });
    for (Exit exit : o.exits()) {
      s.add(format(exit));
    }
    if (o.temperature() != 0 || o.topP() != 1 || o.topK() != 0) {
      s.add(
          "temperature(t="
              + number(o.temperature())
              + ",top-p="
              + number(o.topP())
              + ",top-k="
              + o.topK()
              + ")");
    }
    if (o.guidance() != 0) {
      s.add("guidance(scale=" + number(o.guidance()) + ")");
    }
    if (o.end() != DiffusionOptions.End.PLAIN || o.endPenalty() != 0) {
      s.add("end(rule=" + word(o.end()) + ",penalty=" + number(o.endPenalty()) + ")");
    }
    if (!o.suppressMask()) {
      s.add("keep-mask");
    }
    if (o.seed() != 0) {
      s.add("seed(value=" + o.seed() + ")");
    }
    return s.toString();
  }

  private static String format(Exit exit) {
    return switch (exit) {
      case Exit.EndFill e -> "end-fill(whole-block=" + e.wholeBlock() + ")";
      case Exit.Prophet e ->
          "prophet(from="
              + e.regionFrom()
              + ",length="
              + e.regionLength()
              + ",early="
              + number(e.early())
              + ",middle="
              + number(e.middle())
              + ",late="
              + number(e.late())
              + ")";
      case Exit.Sched e ->
          "sched(shape="
              + word(e.shape())
              + ",hi="
              + number(e.hi())
              + ",lo="
              + number(e.lo())
              + ",rate="
              + number(e.rate())
              + ",whole-answer="
              + e.wholeAnswer()
              + ",guard="
              + e.guard()
              + ",max-change="
              + number(e.maxChange())
              + ",patience="
              + e.patience()
              + ",min-progress="
              + number(e.minProgress())
              + ")";
    };
  }

  private static String number(float v) {
    return v == Float.POSITIVE_INFINITY ? "inf" : Float.toString(v);
  }

  private static String word(Enum<?> e) {
    return e.name().toLowerCase(Locale.ROOT).replace('_', '-');
  }
}
