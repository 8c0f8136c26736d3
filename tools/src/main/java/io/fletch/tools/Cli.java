package io.fletch.tools;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;

/**
 * Chooses the command, runs it, and turns whatever happens into an exit status: 0 for success, 1
 * for an error, 2 for a wrong command line, 141 for a reader of the output that went away. An error
 * is one line on standard error, with {@code --verbose} followed by the trace.
 */
final class Cli {
  static final int OK = 0;
  static final int ERROR = 1;
  static final int USAGE = 2;

  /** What a shell reports for a program that dies of SIGPIPE. */
  static final int BROKEN_PIPE = 141;

  private record Entry(String summary, Supplier<Command> make) {}

  /** In the order of the help. Suppliers, so that only the command that runs is loaded. */
  private static Map<String, Entry> commands() {
    Map<String, Entry> commands = new java.util.LinkedHashMap<>();
    commands.put("chat", new Entry("talk with a model", ChatCommand::new));
    commands.put("run", new Entry("answer one prompt", RunCommand::new));
    commands.put("serve", new Entry("serve a model over HTTP", ServeCommand::new));
    commands.put("embed", new Entry("vectors of texts", EmbedCommand::new));
    commands.put("tokenize", new Entry("text to token ids and back", TokenizeCommand::new));
    commands.put(
        "inspect", new Entry("what a model file holds, and its plan", InspectCommand::new));
    commands.put("logits", new Entry("write logits of token ids", LogitsCommand::new));
    commands.put("eval", new Entry("accuracy on a set of questions", EvalCommand::new));
    commands.put(
        "compare",
        new Entry("what decoding techniques cost, and their accuracy", CompareCommand::new));
    commands.put(
        "convert", new Entry("the same weights in another container", ConvertCommand::new));
    commands.put("quantize", new Entry("a model with smaller weights", QuantizeCommand::new));
    commands.put("merge", new Entry("one model of layers, models or adapters", MergeCommand::new));
    commands.put("prune", new Entry("a model with fewer weights", PruneCommand::new));
    commands.put(
        "perplexity", new Entry("how well a model predicts a text", PerplexityCommand::new));
    commands.put(
        "calibrate", new Entry("train routers, skipping and forecasters", CalibrateCommand::new));
    commands.put("bench", new Entry("measure prefill and decode speed", BenchCommand::new));
    commands.put(
        "doctor", new Entry("what runs here, why, and what to change", DoctorCommand::new));
    return commands;
  }

  /** What every command understands. */
  private static final Command.Section GENERAL =
      new Command.Section(
          "General",
          List.of(
              Command.flag("v", "verbose", "say what happens on standard error; traces of errors"),
              Command.flag("h", "help", "show this help")));

  private Cli() {}

  /** Runs the program. Never throws for what a user can cause. */
  static int run(Io io, String... args) {
    List<String> words = List.of(args);
    if (words.isEmpty()) {
      io.status(overview());
      return USAGE;
    }
    String name = words.getFirst();
    List<String> rest = words.subList(1, words.size());
    boolean verbose = rest.contains("--verbose") || rest.contains("-v");
    StderrLoggerFinder.verbose(verbose);
    try {
      int status = dispatch(io, name, rest);
      io.flush();
      return status;
    } catch (UsageException e) {
      boolean command = commands().containsKey(name);
      io.note(
          oneLine(
              command
                  ? "fletch " + name + ": " + e.getMessage() + " (see: fletch " + name + " --help)"
                  : "fletch: " + e.getMessage() + " (see: fletch help)"));
      return USAGE;
    } catch (Io.OutputException e) {
      return e.isBrokenPipe() ? BROKEN_PIPE : failed(io, name, e, verbose);
    } catch (IOException | RuntimeException | OutOfMemoryError | LinkageError e) {
      try {
        io.flush();
      } catch (Io.OutputException _) {
        // The first error is the one to report.
      }
      return failed(io, name, e, verbose);
    }
  }

  private static int dispatch(Io io, String name, List<String> rest) throws IOException {
    switch (name) {
      case "--version", "-V", "version" -> {
        io.println(version());
        return OK;
      }
      case "completion" -> {
        if (!rest.equals(List.of("bash"))) {
          throw new UsageException(
              "completion: expected=bash actual="
                  + (rest.isEmpty() ? "nothing" : String.join(" ", rest)));
        }
        Map<String, List<Command.Section>> all = new java.util.LinkedHashMap<>();
        commands().forEach((n, entry) -> all.put(n, sections(entry.make().get())));
        io.print(Completion.bash(all));
        return OK;
      }
      case "help", "--help", "-h" -> {
        if (rest.isEmpty()) {
          io.print(overview());
        } else {
          io.print(help(rest.getFirst(), command(rest.getFirst())));
        }
        return OK;
      }
      default -> {
        Command command = command(name);
        if (rest.contains("--help") || rest.contains("-h")) {
          io.print(help(name, command));
          return OK;
        }
        return command.run(Arguments.parse(sections(command), rest), io);
      }
    }
  }

  private static Command command(String name) {
    Entry entry = commands().get(name);
    if (entry == null) {
      throw new UsageException(
          name.startsWith("-")
              ? "unknown option " + name
              : "unknown command "
                  + name
                  + Similar.to(name, commands().keySet()).map(n -> ", perhaps " + n).orElse(""));
    }
    return entry.make().get();
  }

  private static List<Command.Section> sections(Command command) {
    List<Command.Section> sections = new ArrayList<>(command.sections());
    sections.add(GENERAL);
    return sections;
  }

  private static String help(String name, Command command) {
    return Help.of(name, command, sections(command));
  }

  private static String overview() {
    StringBuilder text = new StringBuilder();
    text.append("usage: fletch COMMAND [options]\n\n");
    text.append("Runs language models on this machine. The demo model needs no download:\n");
    text.append("  fletch run \"What is 457 + 386?\"\n\nCommands:\n");
    commands().forEach((name, entry) -> Help.entry(text, name, entry.summary()));
    Help.entry(text, "help COMMAND", "options and examples of a command");
    Help.entry(text, "completion bash", "a script that completes commands and options");
    Help.entry(text, "--version", "version of fletch and of the JDK");
    return text.toString();
  }

  /** Version, JDK and platform in one line. */
  static String version() {
    String version = Cli.class.getPackage().getImplementationVersion();
    if (version == null && Cli.class.getModule().isNamed()) {
      version = Cli.class.getModule().getDescriptor().rawVersion().orElse(null);
    }
    return "fletch "
        + (version == null ? "development build" : version)
        + " (JDK "
        + Runtime.version()
        + ", "
        + System.getProperty("os.name")
        + " "
        + System.getProperty("os.arch")
        + ")";
  }

  private static int failed(Io io, String name, Throwable error, boolean verbose) {
    io.status(oneLine("fletch " + name + ": " + message(error)) + "\n");
    if (verbose) {
      java.io.StringWriter trace = new java.io.StringWriter();
      error.printStackTrace(new java.io.PrintWriter(trace));
      io.status(trace.toString());
    }
    return ERROR;
  }

  /** The line for an error: the message alone where it was written for people. */
  static String message(Throwable error) {
    return switch (error) {
      case UncheckedIOException e -> message(e.getCause());
      case NoSuchFileException e -> "no such file: " + e.getFile() + missingFolder(e.getFile());
      case AccessDeniedException e -> "permission denied: " + e.getFile();
      case FileAlreadyExistsException e -> "exists already: " + e.getFile();
      case FileSystemException e -> e.getMessage();
      case OutOfMemoryError e ->
          "out of memory: "
              + e.getMessage()
              + " (heap limit "
              + (Runtime.getRuntime().maxMemory() >> 20)
              + " MiB, changed by FLETCH_JAVA_OPTS=-Xmx...)";
      case IOException e -> e.getMessage() == null ? e.toString() : e.getMessage();
      case Throwable e when isForPeople(e) -> e.getMessage();
      default -> "internal error: " + error + " (--verbose shows the trace)";
    };
  }

  /** What keeps a file from being written, too. */
  private static String missingFolder(String file) {
    Path folder = file == null ? null : Path.of(file).toAbsolutePath().getParent();
    return folder == null || Files.isDirectory(folder)
        ? ""
        : " (there is no folder " + folder + ")";
  }

  /** Exceptions of Fletch's modules, and refused arguments, carry messages written for users. */
  private static boolean isForPeople(Throwable error) {
    return error.getMessage() != null
        && (error.getClass().getName().startsWith("io.fletch.")
            || error instanceof IllegalArgumentException);
  }

  private static String oneLine(String text) {
    return text.replaceAll("\\s*\\R\\s*", " ");
  }
}
