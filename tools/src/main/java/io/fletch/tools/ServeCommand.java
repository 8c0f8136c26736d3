package io.fletch.tools;

import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.sampling.SamplingOptions;
import io.fletch.tools.server.FletchServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CountDownLatch;

/** {@code fletch serve}: the HTTP server. */
final class ServeCommand implements Command {
  @Override
  public String usage() {
    return "[options]";
  }

  @Override
  public String description() {
    return """
    Serves a model over HTTP in the form of OpenAI's API: /v1/chat/completions,
    /v1/completions, /v1/models, with streaming, and a chat page at /; an embedding
    model, as --model or beside it, at /v1/embeddings. Answers that are generated at
    the same time share the passes over the weights. Listens on this machine alone
    unless --host says otherwise. SIGTERM and Ctrl-C let running answers finish.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Server",
            List.of(
                Command.value("host", "NAME", "address to listen on (default: 127.0.0.1)"),
                Command.value("port", "N", "port (default: 8080; 0 for any free one)"),
                Command.value("parallel", "N", "most answers at once (default: 8)"),
                Command.value("queue", "N", "most requests that wait (default: 64)"),
                Command.value("max-body", "BYTES", "largest request (default: 4 MiB)"),
                Command.value(
                    "time-limit", "SECONDS", "for an answer, waiting included (default: 600)"),
                Command.value("drain", "SECONDS", "for running answers at shutdown (default: 30)"),
                Command.value(
                    "api-key-file", "FILE", "clients must send the key in this file (one line)"),
                Command.value("cors", "ORIGIN", "let pages of this origin (or *) use the server"),
                Command.value(
                    "embedding-model",
                    "F",
                    "an embedding model beside the one that generates text"),
                Command.value("embedding-alias", "NAME", "its name in the API (default: its file)"),
                Command.flag(
                    "context-shift",
                    "where the context is full, drop the older half of it and go on"),
                Command.value(
                    "keep", "N", "tokens at the start that a shift never drops (default: 0)"),
                Command.value("alias", "NAME", "the model's name in the API (default: its file)"),
                Command.value(
                    "prefix-cache",
                    "MIB",
                    "memory for beginnings of prompts that sessions share (default: 512; 0 for"
                        + " none)"))),
        RoutingFlags.section(),
        UnitFlags.section(),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch serve",
        "fletch serve --model qwen3-0.6b-q8_0.gguf --port 8080 --parallel 8",
        "fletch serve --model qwen3-0.6b-q8_0.gguf --embedding-model bge-small-en-v1.5-q8_0.gguf",
        "fletch serve --host 0.0.0.0 --api-key-file key.txt");
  }

  /** The model for embeddings, or null if there is none. */
  private static Embedder openEmbedder(Arguments arguments, Io io, boolean isModel) {
    if (isModel) {
      ModelOptions options = EmbedCommand.modelOptions(arguments);
      Path path = Path.of(ModelFlags.name(arguments));
      return ModelFlags.load(
          arguments,
          io,
          options,
          heard -> Embedder.open(path, EmbedderOptions.defaults().withModel(heard)),
          Embedder::name);
    }
    // As the other model, but for what is said of that one alone.
    ModelOptions options =
        EmbedCommand.modelOptions(arguments)
            .withUnits(List.of())
            .withAdapters(List.of())
            .withContextLength(0);
    return arguments
        .string("embedding-model")
        .map(file -> Embedder.open(Path.of(file), EmbedderOptions.defaults().withModel(options)))
        .orElse(null);
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    InetAddress address = InetAddress.getByName(arguments.string("host").orElse("127.0.0.1"));
    Optional<String> key = Optional.empty();
    if (arguments.has("api-key-file")) {
      key = Optional.of(Files.readString(Path.of(arguments.required("api-key-file"))).strip());
      if (key.get().isEmpty()) {
        throw new UsageException("--api-key-file: the file is empty");
      }
    }
    long mebibytes = arguments.whole("prefix-cache", 512, 0, 1 << 20);
    ModelOptions modelOptions = ModelFlags.options(arguments).withPrefixCache(mebibytes << 20);
    String name = ModelFlags.name(arguments);
    boolean isDemo = ModelFlags.isDemo(name);
    boolean isEmbedding = !isDemo && Embedder.isEmbeddingModel(Path.of(name));
    if (isEmbedding && (arguments.has("embedding-model") || arguments.has("small"))) {
      throw new UsageException(
          "--model is an embedding model: --embedding-model and --small need one that generates"
              + " text");
    }
    if (arguments.has("embedding-alias") && !arguments.has("embedding-model")) {
      throw new UsageException("--embedding-alias needs --embedding-model");
    }
    try (Model model = isEmbedding ? null : ModelFlags.openPlain(arguments, io, modelOptions);
        Embedder embedder = openEmbedder(arguments, io, isEmbedding);
        Model small = RoutingFlags.openSmall(arguments, io)) {
      String embedderName =
          embedder == null
              ? ""
              : arguments.string(isEmbedding ? "alias" : "embedding-alias").orElse(embedder.name());
      FletchServer.Options options =
          new FletchServer.Options(
              new InetSocketAddress(address, arguments.integer("port", 8080, 0, 65535)),
              model == null ? embedderName : arguments.string("alias").orElse(model.name()),
              isDemo ? SamplingOptions.greedy() : SamplingOptions.defaults(),
              arguments.integer("parallel", 8, 1, 64),
              arguments.integer("queue", 64, 0, 1 << 20),
              arguments.integer("max-body", 4 << 20, 1, 1 << 30),
              Duration.ofSeconds(arguments.integer("time-limit", 600, 1, 1 << 24)),
              Duration.ofSeconds(arguments.integer("drain", 30, 0, 1 << 24)),
              key,
              arguments.string("cors"),
              Optional.ofNullable(RoutingFlags.routing(arguments, model, small)),
              SamplingFlags.contextShift(arguments));
      CountDownLatch end = new CountDownLatch(1);
      CountDownLatch closed = new CountDownLatch(1);
      Optional<FletchServer.Embeddings> embeddings =
          Optional.ofNullable(embedder).map(e -> new FletchServer.Embeddings(e, embedderName));
      try (FletchServer server =
          FletchServer.start(
              Optional.ofNullable(model),
              embeddings,
              model == null ? List.of() : ModelFlags.attach(model, modelOptions),
              options)) {
        Thread hook =
            new Thread(() -> {
              end.countDown();
              try {
                closed.await();
              } catch (InterruptedException _) {
                Thread.currentThread().interrupt();
              }
            });
        Runtime.getRuntime().addShutdownHook(hook);
        InetSocketAddress at = server.address();
        String host = at.getAddress().isLoopbackAddress() ? "localhost" : at.getHostString();
        String served = options.modelId();
        if (model != null && embedder != null) {
          served += " and " + embedderName;
        }
        io.note("fletch: " + served + " at http://" + host + ":" + at.getPort() + "/");
        if (!at.getAddress().isLoopbackAddress() && key.isEmpty()) {
          io.note("fletch: warning: everybody who reaches this machine can use the server");
        }
        end.await();
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      } finally {
        // The server is closed: the process may end.
        closed.countDown();
      }
      return Cli.OK;
    }
  }
}
