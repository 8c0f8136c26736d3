package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** {@code fletch run}: one prompt, one answer. */
final class RunCommand implements Command {
  @Override
  public String usage() {
    return "[options] [PROMPT]";
  }

  @Override
  public String description() {
    return """
    Answers one prompt: that of --prompt, of --prompt-file, the words on the command
    line, or standard input. The prompt is one user turn of the model's chat template;
    --raw continues it as plain text.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Prompt and output",
            List.of(
                Command.value("p", "prompt", "TEXT", "the prompt"),
                Command.value("f", "prompt-file", "FILE", "a file with the prompt (UTF-8)"),
                Command.value("system", "TEXT", "a system turn before it"),
                Command.flag("raw", "no chat template: continue the text"),
                Command.flag(
                    "json",
                    "print one JSON object at the end: text, ids, prompt_tokens,"
                        + " completion_tokens, finish_reason, prefill_tps, decode_tps,"
                        + " model_bytes_per_token, and what it cost: forwards, rows, head_rows,"
                        + " bytes_read, drafts_proposed, drafts_accepted, exit_step"),
                Command.value(
                    "logprobs",
                    "N",
                    "with --json: log-probability of every token and of the N likeliest ones"))),
        SamplingFlags.section(),
        DiffusionFlags.section(),
        RoutingFlags.section(),
        UnitFlags.section(),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch run \"What is 457 + 386?\"",
        "fletch run --model qwen3-0.6b-q8_0.gguf --temp 0 --max-tokens 64 \"Why is the sky blue?\"",
        "fletch run --model F --raw --prompt \"Once upon a time\" --json");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    boolean json = arguments.has("json");
    if (arguments.has("logprobs") && !json) {
      throw new UsageException("--logprobs needs --json");
    }
    if (arguments.has("raw") && arguments.has("system")) {
      throw new UsageException("--system needs the chat template, which --raw leaves out");
    }
    GenerationOptions sampled =
        SamplingFlags.parse(arguments, ModelFlags.isDemo(ModelFlags.name(arguments)))
            .withLogprobs(arguments.integer("logprobs", -1, 0, 1000));
    String prompt = prompt(arguments, io);
    try (Model model = ModelFlags.open(arguments, io);
        Model guide = DiffusionFlags.openGuide(arguments, io);
        Model small = RoutingFlags.openSmall(arguments, io);
        Session session = model.newSession();
        Generation generation =
            start(
                session,
                arguments,
                prompt,
                RoutingFlags.apply(
                    arguments,
                    model,
                    small,
                    DiffusionFlags.apply(arguments, model, guide, sampled)))) {
      List<Generation.TokenLogprob> logprobs = new ArrayList<>();
      boolean lineEnded = false;
      FillingView filling =
          !json && io.isScreen(Io.Stream.OUT) && model.diffusion().isPresent()
              ? new FillingView(model.tokenizer(), FillingView.columns(), io::show)
              : null;
      while (generation.hasNext()) {
        Generation.Chunk chunk = generation.next();
        logprobs.addAll(chunk.logprobs());
        if (filling != null) {
          filling.accept(chunk);
        } else if (!json && !chunk.text().isEmpty()) {
          io.print(chunk.text());
          io.flush();
          lineEnded = chunk.text().endsWith("\n");
        }
      }
      Generation.Result result = generation.result();
      if (filling != null) {
        filling.clear();
        io.print(result.text());
        lineEnded = result.text().endsWith("\n");
      }
      if (json) {
        io.println(
            Json.line(
                report(model, result, small != null, sampled.logprobs() >= 0 ? logprobs : null)));
      } else if (!lineEnded) {
        io.println("");
      }
      Context.remark(model, result).ifPresent(text -> io.note("fletch: " + text));
      if (arguments.has("verbose")) {
        io.note("fletch: " + Speed.line(result) + ", seed " + sampled.sampling().seed());
        Speed.costs(result, small != null).forEach(line -> io.note("fletch: " + line));
      }
      return Cli.OK;
    }
  }

  private static Generation start(
      Session session, Arguments arguments, String prompt, GenerationOptions options) {
    if (arguments.has("raw")) {
      return session.generate(prompt, options);
    }
    List<Message> messages = new ArrayList<>();
    arguments.string("system").ifPresent(text -> messages.add(Message.system(text)));
    messages.add(Message.user(prompt));
    return session.chat(messages, options);
  }

  private static String prompt(Arguments arguments, Io io) throws IOException {
    List<String> given = new ArrayList<>();
    arguments.string("prompt").ifPresent(given::add);
    if (arguments.has("prompt-file")) {
      given.add(Texts.read(arguments.required("prompt-file"), io));
    }
    if (!arguments.rest().isEmpty()) {
      given.add(String.join(" ", arguments.rest()));
    }
    if (given.isEmpty() && !io.isTerminal(Io.Stream.IN)) {
      String text = io.readAll();
      if (!text.isEmpty()) {
        given.add(text);
      }
    }
    if (given.size() != 1) {
      throw new UsageException(given.isEmpty() ? "no prompt given" : "more than one prompt given");
    }
    return given.getFirst();
  }

  private static Map<String, Object> report(
      Model model,
      Generation.Result result,
      boolean isRouted,
      List<Generation.TokenLogprob> logprobs) {
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("text", result.text());
    report.put("ids", result.ids());
    report.put("prompt_tokens", result.promptTokens());
    report.put("completion_tokens", result.completionTokens());
    if (result.droppedTokens() > 0) {
      report.put("dropped_tokens", result.droppedTokens());
    }
    report.put("finish_reason", Speed.written(result.finishReason()));
    report.put("prefill_tps", Json.rounded(Speed.prefill(result)));
    report.put("decode_tps", Json.rounded(Speed.decode(result)));
    report.put("model_bytes_per_token", model.info().bytesPerToken());
    Counters.put(result.counters(), report);
    if (isRouted) {
      Counters.putRouting(result.counters(), report);
    }
    report.put("exit_step", result.counters().exitStep());
    if (logprobs != null) {
      report.put("logprobs", logprobs.stream().map(token -> entry(model, token)).toList());
    }
    return report;
  }

  private static Map<String, Object> entry(Model model, Generation.TokenLogprob token) {
    Map<String, Object> entry = new LinkedHashMap<>();
    entry.put("id", token.id());
    entry.put("token", model.tokenizer().token(token.id()));
    entry.put("logprob", Json.finite(token.logprob()));
    entry.put(
        "top",
        token.top().stream()
            .map(other -> {
              Map<String, Object> alternative = new LinkedHashMap<>();
              alternative.put("id", other.id());
              alternative.put("token", model.tokenizer().token(other.id()));
              alternative.put("logprob", Json.finite(other.logprob()));
              return alternative;
            })
            .toList());
    return entry;
  }
}
