package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Adapter;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * {@code fletch chat}: turns with one session, so that a turn computes only what the conversation
 * did not hold before.
 */
final class ChatCommand implements Command {
  private static final Map<String, String> COMMANDS = commands();

  private static Map<String, String> commands() {
    Map<String, String> commands = new LinkedHashMap<>();
    commands.put("/help", "this list");
    commands.put("/reset", "forget the conversation (the system turn stays)");
    commands.put("/system TEXT", "set the system turn and start over; without TEXT remove it");
    commands.put("/save FILE", "write the conversation as JSON");
    commands.put("/load FILE", "go on with a saved conversation");
    commands.put("/lora NAME=SCALE", "set the scale of an adapter, or add FILE=SCALE; alone: list");
    commands.put("/exit", "leave (so does Ctrl-D)");
    return commands;
  }

  private final List<Message> messages = new ArrayList<>();

  @Override
  public String usage() {
    return "[options]";
  }

  @Override
  public String description() {
    return """
    Talks with a model. At a terminal: editing, history, Ctrl-C stops an answer, Ctrl-D
    leaves, /help lists commands. Otherwise every line of standard input is a turn and
    the answers go to standard output.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section("Chat", List.of(Command.value("system", "TEXT", "the system turn"))),
        SamplingFlags.section(),
        DiffusionFlags.section(),
        RoutingFlags.section(),
        UnitFlags.section(),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch chat",
        "fletch chat --model F --system \"You answer in one sentence.\" --temp 0.7",
        "printf 'What is 4 + 3?\\nWhat is 20 + 90?\\n' | fletch chat");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    GenerationOptions sampled =
        SamplingFlags.parse(arguments, ModelFlags.isDemo(ModelFlags.name(arguments)));
    arguments.string("system").ifPresent(text -> messages.add(Message.system(text)));
    boolean terminal = io.isTerminal(Io.Stream.IN) && io.isTerminal(Io.Stream.OUT);
    boolean failed = false;
    ModelOptions modelOptions = ModelFlags.options(arguments);
    try (Model model = ModelFlags.openPlain(arguments, io, modelOptions);
        Model guide = DiffusionFlags.openGuide(arguments, io);
        Model small = RoutingFlags.openSmall(arguments, io);
        Session session = model.newSession();
        ChatFront front =
            terminal
                ? new TerminalFront(COMMANDS.keySet().stream().map(ChatCommand::word).toList())
                : new PlainFront(io)) {
      GenerationOptions options =
          RoutingFlags.apply(
              arguments, model, small, DiffusionFlags.apply(arguments, model, guide, sampled));
      session.adapters(ModelFlags.attach(model, modelOptions));
      boolean fillsIn = terminal && io.isScreen(Io.Stream.OUT) && model.diffusion().isPresent();
      if (terminal) {
        front.note(model.name() + " - /help lists commands, Ctrl-D leaves");
      }
      for (String line; (line = front.readLine()) != null; ) {
        if (line.isBlank()) {
          continue;
        }
        try {
          if (line.startsWith("/")) {
            if (!command(line.strip(), session, front)) {
              break;
            }
          } else {
            answer(line, session, options, front, fillsIn, arguments.has("verbose"));
          }
        } catch (FletchException | CommandException | IOException e) {
          failed = true;
          front.note("fletch: " + Cli.message(e));
        }
      }
    }
    // At a terminal errors were seen and answered; a script must find them in the status.
    return failed && !terminal ? Cli.ERROR : Cli.OK;
  }

  private static String word(String command) {
    return command.split(" ", 2)[0];
  }

  private void answer(
      String text,
      Session session,
      GenerationOptions options,
      ChatFront front,
      boolean fillsIn,
      boolean verbose) {
    messages.add(Message.user(text));
    boolean answered = false;
    FillingView filling =
        new FillingView(session.model().tokenizer(), FillingView.columns(), front::print);
    try (Generation generation = session.chat(List.copyOf(messages), options)) {
      front.answering(
          generation::cancel,
          () -> {
            while (generation.hasNext()) {
              Generation.Chunk chunk = generation.next();
              if (fillsIn) {
                filling.accept(chunk);
              } else {
                front.print(chunk.text());
              }
            }
          });
      Generation.Result result = generation.result();
      answered = true;
      if (fillsIn) {
        filling.clear();
        front.print(result.text());
      }
      messages.add(Message.assistant(result.text()));
      front.print(
          result.finishReason() == Generation.FinishReason.CANCELLED ? " [stopped]\n" : "\n");
      Context.remark(session.model(), result).ifPresent(note -> front.note("[" + note + "]"));
      boolean isRouted = options.routing().isPresent();
      if (verbose) {
        front.note("[" + Speed.line(result) + "]");
        Speed.costs(result, isRouted).forEach(line -> front.note("[" + line + "]"));
      } else if (isRouted) {
        front.note("[" + Counters.routing(result.counters()) + "]");
      }
    } finally {
      if (!answered) {
        messages.removeLast();
      }
    }
  }

  /** Runs a command; false ends the chat. */
  private boolean command(String line, Session session, ChatFront front) throws IOException {
    String[] words = line.split("\\s+", 2);
    String argument = words.length > 1 ? words[1].strip() : "";
    switch (words[0]) {
      case "/exit", "/quit" -> {
        return false;
      }
      case "/help" ->
          COMMANDS.forEach((name, text) -> front.note(Texts.format("%-14s %s", name, text)));
      case "/reset" -> {
        messages.removeIf(message -> !message.role().equals("system"));
        session.truncate(0);
        front.note("[conversation forgotten]");
      }
      case "/system" -> {
        messages.clear();
        if (!argument.isEmpty()) {
          messages.add(Message.system(argument));
        }
        front.note(argument.isEmpty() ? "[no system turn]" : "[system turn set]");
      }
      case "/lora" -> lora(argument, session, front);
      case "/save" -> {
        save(file(argument, words[0]));
        front.note("[" + messages.size() + " turns saved]");
      }
      case "/load" -> {
        load(file(argument, words[0]));
        front.note("[" + messages.size() + " turns loaded]");
      }
      default -> throw new CommandException("unknown command " + words[0] + " (see /help)");
    }
    return true;
  }

  /** Sets the scale of one adapter; the conversation is computed anew with the next turn. */
  private static void lora(String argument, Session session, ChatFront front) {
    Model model = session.model();
    if (!argument.isEmpty()) {
      ModelOptions.Adapter asked;
      try {
        asked = ModelFlags.adapter(argument);
      } catch (UsageException _) {
        throw new CommandException("/lora: expected=NAME=SCALE or FILE=SCALE actual=" + argument);
      }
      String name = asked.path().toString();
      Adapter adapter =
          model.adapters().stream()
              .filter(a -> a.name().equals(name) || a.path().equals(asked.path()))
              .findFirst()
              .orElseGet(() -> {
                if (!Files.exists(asked.path())) {
                  throw new CommandException(
                      "/lora: expected="
                          + model.adapters().stream().map(Adapter::name).toList()
                          + " or a file actual="
                          + name);
                }
                return model.adapter(asked.path());
              });
      List<Adapter.Scaled> next = new ArrayList<>(session.adapters());
      next.removeIf(s -> s.adapter() == adapter);
      next.add(adapter.scaled(asked.scale()));
      next.sort(Comparator.comparingInt(s -> s.adapter().id()));
      session.adapters(next);
    }
    for (Adapter a : model.adapters()) {
      float scale =
          session.adapters().stream()
              .filter(s -> s.adapter() == a)
              .map(Adapter.Scaled::scale)
              .findFirst()
              .orElse(0f);
      front.note("[" + a.name() + "=" + scale + ", rank " + a.rank() + "]");
    }
    if (model.adapters().isEmpty()) {
      front.note("[no adapters]");
    }
  }

  private static Path file(String argument, String command) {
    if (argument.isEmpty()) {
      throw new CommandException(command + " needs a file name");
    }
    return Path.of(argument);
  }

  private void save(Path file) throws IOException {
    List<Map<String, Object>> turns = new ArrayList<>();
    for (Message message : messages) {
      Map<String, Object> turn = new LinkedHashMap<>();
      turn.put("role", message.role());
      turn.put("content", message.content());
      turns.add(turn);
    }
    Files.writeString(
        file,
        JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT).asString(turns) + "\n",
        StandardCharsets.UTF_8);
  }

  private void load(Path file) throws IOException {
    List<Object> turns;
    try {
      turns = JSON.std.listFrom(Texts.readStrict(file));
    } catch (com.fasterxml.jackson.core.JacksonException e) {
      throw new CommandException(file + ": not a saved conversation: " + e.getOriginalMessage(), e);
    }
    List<Message> loaded = new ArrayList<>();
    for (Object turn : turns) {
      if (turn instanceof Map<?, ?> map
          && map.get("role") instanceof String role
          && map.get("content") instanceof String content) {
        loaded.add(new Message(role, content));
      } else {
        throw new CommandException(
            file
                + ": not a saved conversation: turn "
                + loaded.size()
                + ": expected=an object with role and content actual="
                + turn);
      }
    }
    messages.clear();
    messages.addAll(loaded);
  }
}
