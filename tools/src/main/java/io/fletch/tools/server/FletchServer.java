package io.fletch.tools.server;

import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.fletch.Adapter;
import io.fletch.ContextShift;
import io.fletch.Embedder;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.Generation.TokenLogprob;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.Pooling;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.SessionPool;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.SamplingException;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * An HTTP server for a model that generates text, one that embeds texts, or both, in the form of
 * OpenAI's API: chat completions, completions, embeddings, models, with streaming, and a chat page,
 * health and metrics. Every request has a virtual thread; generations run in sessions, so those
 * that run at once share forward passes, and so do texts that are embedded.
 *
 * <p>Bounds: {@link Options#parallel} answers at once, {@link Options#queue} requests that wait,
 * all others are refused with 429; {@link Options#maxBody} bytes per request; {@link
 * Options#timeLimit} for waiting and generating. A client that has gone is noticed at the next
 * write: of a token if it streams, else of white space in front of the JSON, once in {@link
 * #PATIENCE}; that cancels its generation, or ends its waiting.
 *
 * <p>{@link #close()} lets running answers finish, up to {@link Options#drain}, then cancels them.
 * The models stay open: they are their opener's. Thread-safe.
 */
public final class FletchServer implements AutoCloseable {
  private static final Logger LOG = System.getLogger("io.fletch.server");
  private static final int RESPONSE_SLACK_SECONDS = 60;
  private static final String JSON_TYPE = "application/json";

  /** How long a client that waits for an answer hears nothing. */
  private static final Duration PATIENCE = Duration.ofSeconds(1);

  /** Connections of which each holds a file descriptor and 22 KB of heap, see docs/server.md. */
  private static final int LEAST_CONNECTIONS = 1024;

  /** Texts of a request that are embedded before it looks at its time limit again. */
  private static final int TEXTS_AT_ONCE = 32;

  static {
    // The JDK's server reads these once. Headers that trickle in hold a connection for so long, and
    // small chunks of a stream are sent at once.
    System.getProperties().putIfAbsent("sun.net.httpserver.maxReqTime", "60");
    System.getProperties().putIfAbsent("sun.net.httpserver.nodelay", "true");
  }

  /**
   * How a server runs.
   *
   * @param address where it listens
   * @param modelId name of the model that generates text in the API
   * @param sampling what requests start from
   * @param parallel most generations at once
   * @param queue most requests that wait for one
   * @param maxBody most bytes of a request
   * @param timeLimit for one answer, waiting included
   * @param drain how long {@link #close} waits
   * @param apiKey what clients must send as bearer token
   * @param corsOrigin the origin that pages of others may call from, or {@code *}
   * @param routing a small model in front of the model; it must stay open as long as the server
   * @param contextShift goes on where the context is full; empty to end the answer, and to refuse
   *     prompts that do not fit
   */
  public record Options(
      InetSocketAddress address,
      String modelId,
      SamplingOptions sampling,
      int parallel,
      int queue,
      int maxBody,
      Duration timeLimit,
      Duration drain,
      Optional<String> apiKey,
      Optional<String> corsOrigin,
      Optional<Routing> routing,
      Optional<ContextShift> contextShift) {
    /** Without a small model and a context shift. */
    public Options(
        InetSocketAddress address,
        String modelId,
        SamplingOptions sampling,
        int parallel,
        int queue,
        int maxBody,
        Duration timeLimit,
        Duration drain,
        Optional<String> apiKey,
        Optional<String> corsOrigin) {
      this(
          address,
          modelId,
          sampling,
          parallel,
          queue,
          maxBody,
          timeLimit,
          drain,
          apiKey,
          corsOrigin,
          Optional.empty(),
          Optional.empty());
    }

    /** Checks ranges. */
    public Options {
      Objects.requireNonNull(address, "address");
      Objects.requireNonNull(modelId, "modelId");
      Objects.requireNonNull(sampling, "sampling");
      Objects.requireNonNull(apiKey, "apiKey");
      Objects.requireNonNull(corsOrigin, "corsOrigin");
      Objects.requireNonNull(routing, "routing");
      Objects.requireNonNull(contextShift, "contextShift");
      if (parallel < 1
          || queue < 0
          || maxBody < 1
          || timeLimit.isNegative()
          || drain.isNegative()) {
        throw new IllegalArgumentException(
            "out of range: parallel="
                + parallel
                + " queue="
                + queue
                + " maxBody="
                + maxBody
                + " timeLimit="
                + timeLimit
                + " drain="
                + drain);
      }
      if (apiKey.isPresent() && apiKey.get().isBlank()) {
        throw new IllegalArgumentException("the API key is blank");
      }
    }
  }

  /**
   * A model for embeddings.
   *
   * @param embedder with a pooling other than {@code NONE}
   * @param modelId its name in the API
   */
  public record Embeddings(Embedder embedder, String modelId) {
    /** Checks the pooling. */
    public Embeddings {
      Objects.requireNonNull(modelId, "modelId");
      if (embedder.info().pooling() == Pooling.NONE) {
        throw new IllegalArgumentException(
            "an embedding model whose pooling is NONE gives no vectors of texts: " + modelId);
      }
    }
  }

  /** Null if the server has none. */
  private final Model model;

  private final Optional<Embeddings> embeddings;
  private final Options options;
  private final Duration patience;
  private final HttpServer http;
  private final ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor();
  private final ScheduledThreadPoolExecutor clock =
      new ScheduledThreadPoolExecutor(
          1, Thread.ofPlatform().daemon().name("fletch-server-clock").factory());
  private final Metrics metrics = new Metrics();

  /** Null without such a model. */
  private final SessionPool sessions;

  /** Adapters of requests that name none. */
  private volatile List<Adapter.Scaled> adapters;

  private final Slots slots;
  private final AtomicInteger inFlight = new AtomicInteger();
  private final Set<Generation> running = ConcurrentHashMap.newKeySet();
  private final byte[] page;
  private final String pagePolicy;
  private final long created = System.currentTimeMillis() / 1000;
  private volatile boolean draining;

  private FletchServer(
      Optional<Model> model,
      Optional<Embeddings> embeddings,
      List<Adapter.Scaled> adapters,
      Options options,
      Duration patience)
      throws IOException {
    this.patience = patience;
    this.adapters = List.copyOf(adapters);
    if (model.isEmpty() && embeddings.isEmpty()) {
      throw new IllegalArgumentException("a server without a model");
    }
    if (model.isPresent()
        && embeddings.filter(e -> e.modelId().equals(options.modelId())).isPresent()) {
      throw new IllegalArgumentException("two models are called " + options.modelId());
    }
    this.model = model.orElse(null);
    this.embeddings = embeddings;
    this.options = options;
    // Else the alarms of answers that have ended stay until the time limit.
    clock.setRemoveOnCancelPolicy(true);
    sessions = model.map(m -> new SessionPool(m, options.parallel())).orElse(null);
    slots = new Slots(options.parallel(), options.queue());
    try (InputStream in = FletchServer.class.getResourceAsStream("/META-INF/fletch/chat.html")) {
      page = Objects.requireNonNull(in, "chat.html").readAllBytes();
    }
    pagePolicy = policy(new String(page, StandardCharsets.UTF_8));
    // A client that does not read blocks a write; its connection is cut some time after the limit.
    System.getProperties()
        .putIfAbsent(
            "sun.net.httpserver.maxRspTime",
            Long.toString(options.timeLimit().toSeconds() + RESPONSE_SLACK_SECONDS));
    System.getProperties()
        .putIfAbsent(
            "jdk.httpserver.maxConnections",
            Long.toString(
                Math.max(LEAST_CONNECTIONS, 2L * options.parallel() + 2L * options.queue())));
    http = HttpServer.create(options.address(), 128);
    http.setExecutor(threads);
    http.createContext("/", this::handle);
  }

  /**
   * Starts a server for a model that generates text.
   *
   * @throws UncheckedIOException if it cannot listen there
   */
  public static FletchServer start(Model model, Options options) {
    return start(Optional.of(model), Optional.empty(), List.of(), options);
  }

  /**
   * Starts a server without adapters for a model that generates text, one for embeddings, or both.
   */
  public static FletchServer start(
      Optional<Model> model, Optional<Embeddings> embeddings, Options options) {
    return start(model, embeddings, List.of(), options);
  }

  /**
   * Starts a server for a model that generates text, one for embeddings, or both.
   *
   * @param adapters registered with the first model: those of requests that name none, until a
   *     client sets others ({@code POST /lora-adapters})
   * @throws IllegalArgumentException for none, or two of the same name
   * @throws UncheckedIOException if it cannot listen there
   */
  public static FletchServer start(
      Optional<Model> model,
      Optional<Embeddings> embeddings,
      List<Adapter.Scaled> adapters,
      Options options) {
    return start(model, embeddings, adapters, options, PATIENCE);
  }

  /** With another patience, for tests. */
  static FletchServer start(
      Optional<Model> model,
      Optional<Embeddings> embeddings,
      List<Adapter.Scaled> adapters,
      Options options,
      Duration patience) {
    try {
      FletchServer server = new FletchServer(model, embeddings, adapters, options, patience);
      server.http.start();
      return server;
    } catch (IOException e) {
      String message = "cannot listen on " + options.address() + ": " + e.getMessage();
      throw new UncheckedIOException(message, new IOException(message, e));
    }
  }

  /** Where it listens; with the port that the system chose if port 0 was asked for. */
  public InetSocketAddress address() {
    return http.getAddress();
  }

  /** Nothing but the script and the style that the page contains may run. */
  private static String policy(String html) {
    return "default-src 'none'; script-src '"
        + hash(html, "script")
        + "'; style-src '"
        + hash(html, "style")
        + "'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
  }

  private static String hash(String html, String element) {
    int start = html.indexOf("<" + element + ">") + element.length() + 2;
    int end = html.indexOf("</" + element + ">", start);
    try {
      byte[] digest =
          MessageDigest.getInstance("SHA-256")
              .digest(html.substring(start, end).getBytes(StandardCharsets.UTF_8));
      return "sha256-" + Base64.getEncoder().encodeToString(digest);
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /** A handler with the method that it takes. */
  private record Route(String name, String method, Handler handler) {}

  private interface Handler {
    void handle(HttpExchange exchange) throws IOException;
  }

  private Optional<Route> route(String path, String method) {
    return Optional.ofNullable(
        switch (path) {
          case "/" -> new Route("page", "GET", this::page);
          case "/health" -> new Route("health", "GET", this::health);
          case "/metrics" -> new Route("metrics", "GET", this::metrics);
          case "/v1/models" -> new Route("models", "GET", this::models);
          case "/v1/chat/completions" -> new Route("chat", "POST", e -> complete(e, true));
          case "/v1/completions" -> new Route("completions", "POST", e -> complete(e, false));
          case "/v1/embeddings" -> new Route("embeddings", "POST", this::embeddings);
          case "/lora-adapters" ->
              method.equals("POST")
                  ? new Route("lora", "POST", this::setAdapters)
                  : new Route("lora", "GET", this::listAdapters);
          default ->
              path.startsWith("/v1/models/") ? new Route("models", "GET", this::model) : null;
        });
  }

  /**
   * Answers a request.
   *
   * @throws IOException if the client has gone, or its answer breaks off. The JDK's server closes
   *     and forgets a connection whose handler fails; one that is closed here it would keep in its
   *     tables, with its buffers, until the time limit of its response.
   */
  private void handle(HttpExchange exchange) throws IOException {
    inFlight.incrementAndGet();
    String route = "other";
    try {
      try {
        present(exchange);
        String path = exchange.getRequestURI().getPath();
        Route found =
            route(path, exchange.getRequestMethod())
                .orElseThrow(
                    () -> ApiException.of(404, "not_found", "no such path: " + shown(path)));
        route = found.name();
        guard(exchange, found);
        String method = exchange.getRequestMethod();
        if (method.equals("OPTIONS") && options.corsOrigin().isPresent()) {
          preflight(exchange);
          exchange.sendResponseHeaders(204, -1);
        } else if (method.equals(found.method())
            || method.equals("HEAD") && found.method().equals("GET")) {
          found.handler().handle(exchange);
        } else {
          exchange.getResponseHeaders().set("Allow", allowed(path));
          throw ApiException.of(
              405,
              "method_not_allowed",
              "method: expected=" + found.method() + " actual=" + method);
        }
      } catch (ApiException e) {
        fail(exchange, e);
      } catch (RuntimeException | Error e) {
        LOG.log(Level.ERROR, "a request failed", e);
        fail(exchange, internal(e));
      }
      exchange.close();
    } catch (IOException e) {
      LOG.log(Level.DEBUG, "the client went away: {0}", e.getMessage());
      throw e;
    } finally {
      metrics.request(route, exchange.getResponseCode());
      inFlight.decrementAndGet();
    }
  }

  /** The methods that a path takes. */
  private String allowed(String path) {
    return Stream.of("GET", "POST")
        .filter(method -> route(path, method).filter(r -> r.method().equals(method)).isPresent())
        .map(method -> method.equals("GET") ? "GET, HEAD" : method)
        .collect(Collectors.joining(", "));
  }

  /** What browsers must know of any response. */
  private void present(HttpExchange exchange) {
    Headers out = exchange.getResponseHeaders();
    options
        .corsOrigin()
        .ifPresent(origin -> {
          out.set("Access-Control-Allow-Origin", origin);
          out.set("Access-Control-Expose-Headers", "Retry-After");
          out.set("Vary", "Origin");
        });
    out.set("X-Content-Type-Options", "nosniff");
  }

  /** What a page of the origin may send: also the headers that libraries add of their own. */
  private static void preflight(HttpExchange exchange) {
    Headers out = exchange.getResponseHeaders();
    String asked = exchange.getRequestHeaders().getFirst("Access-Control-Request-Headers");
    boolean isList = asked != null && asked.matches("[A-Za-z0-9_-]+( *, *[A-Za-z0-9_-]+){0,99}");
    out.set("Access-Control-Allow-Headers", isList ? asked : "Authorization, Content-Type");
    out.set("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    out.set("Access-Control-Max-Age", "600");
    out.set("Vary", "Origin, Access-Control-Request-Headers");
  }

  /** What a client has sent, or how long it is. */
  private static String shown(String text) {
    return text.length() > 200 ? "a text of " + text.length() + " characters" : text;
  }

  /** Who may ask, and in which form. */
  private void guard(HttpExchange exchange, Route route) {
    Headers in = exchange.getRequestHeaders();
    // A page of another site that points its name at this machine must not get in.
    if (options.address().getAddress().isLoopbackAddress() && !isLocal(in.getFirst("Host"))) {
      throw ApiException.of(
          403, "wrong_host", "Host: expected=localhost or a loopback address (see --host)");
    }
    boolean isOpen = Set.of("page", "health").contains(route.name());
    if (!isOpen
        && options.apiKey().isPresent()
        && !exchange.getRequestMethod().equals("OPTIONS")
        && !isKey(in.getFirst("Authorization"))) {
      exchange.getResponseHeaders().set("WWW-Authenticate", "Bearer");
      throw ApiException.of(
          401, "invalid_api_key", "Authorization: expected=Bearer and the API key");
    }
    // What a page may send without asking first is never JSON.
    if (exchange.getRequestMethod().equals("POST")
        && !Objects.requireNonNullElse(in.getFirst("Content-Type"), "")
            .toLowerCase(java.util.Locale.ROOT)
            .startsWith(JSON_TYPE)) {
      throw ApiException.of(415, "unsupported_media_type", "Content-Type: expected=" + JSON_TYPE);
    }
    String coding = in.getFirst("Content-Encoding");
    if (coding != null && !coding.equalsIgnoreCase("identity")) {
      throw ApiException.of(
          415, "unsupported_media_type", "Content-Encoding: expected=identity actual=" + coding);
    }
  }

  private static boolean isLocal(String host) {
    if (host == null) {
      return false;
    }
    String name = host.replaceFirst(":[0-9]*$", "");
    return name.equalsIgnoreCase("localhost")
        || name.equals("[::1]")
        || name.matches("127(\\.[0-9]{1,3}){3}");
  }

  private boolean isKey(String header) {
    byte[] expected = ("Bearer " + options.apiKey().orElseThrow()).getBytes(StandardCharsets.UTF_8);
    byte[] actual = Objects.requireNonNullElse(header, "").getBytes(StandardCharsets.UTF_8);
    return MessageDigest.isEqual(expected, actual);
  }

  private void fail(HttpExchange exchange, ApiException e) throws IOException {
    if (exchange.getResponseCode() >= 0) {
      // Headers are out: that the answer breaks off is all that can be told.
      throw new IOException("a response broke off: " + e.getMessage(), e);
    }
    if (e.status() == 429 || e.status() == 503) {
      exchange.getResponseHeaders().set("Retry-After", "1");
    }
    send(exchange, e.status(), JSON_TYPE, Wire.bytes(e.body()));
  }

  private static void send(HttpExchange exchange, int status, String type, byte[] body)
      throws IOException {
    exchange.getResponseHeaders().set("Content-Type", type);
    if (exchange.getRequestMethod().equals("HEAD")) {
      exchange.getResponseHeaders().set("Content-Length", Integer.toString(body.length));
      exchange.sendResponseHeaders(status, -1);
      return;
    }
    exchange.sendResponseHeaders(status, body.length);
    // Closed here: closing the exchange would hide that the client has gone.
    try (OutputStream out = exchange.getResponseBody()) {
      out.write(body);
    }
  }

  private void page(HttpExchange exchange) throws IOException {
    Headers out = exchange.getResponseHeaders();
    out.set("Content-Security-Policy", pagePolicy);
    out.set("Referrer-Policy", "no-referrer");
    out.set("Cache-Control", "no-cache");
    send(exchange, 200, "text/html; charset=utf-8", page);
  }

  private void health(HttpExchange exchange) throws IOException {
    if (draining) {
      throw ApiException.of(503, "shutting_down", "the server is shutting down");
    }
    send(exchange, 200, JSON_TYPE, Wire.bytes(Map.of("status", "ok")));
  }

  private void metrics(HttpExchange exchange) throws IOException {
    send(
        exchange,
        200,
        "text/plain; version=0.0.4; charset=utf-8",
        metrics
            .text(sessions == null ? 0 : sessions.open(), slots.waiting())
            .getBytes(StandardCharsets.UTF_8));
  }

  private Map<String, Object> description(String id) {
    return Map.of("id", id, "object", "model", "created", created, "owned_by", "fletch");
  }

  private List<String> names() {
    List<String> names = new ArrayList<>();
    if (model != null) {
      names.add(options.modelId());
    }
    embeddings.ifPresent(e -> names.add(e.modelId()));
    return names;
  }

  private void models(HttpExchange exchange) throws IOException {
    send(
        exchange,
        200,
        JSON_TYPE,
        Wire.bytes(
            Map.of("object", "list", "data", names().stream().map(this::description).toList())));
  }

  private void model(HttpExchange exchange) throws IOException {
    String name = exchange.getRequestURI().getPath().substring("/v1/models/".length());
    checkModel(name);
    send(exchange, 200, JSON_TYPE, Wire.bytes(description(name)));
  }

  private void checkModel(String name) {
    if (!names().contains(name)) {
      throw ApiException.of(
          404,
          "model_not_found",
          "model: expected=" + String.join(" or ", names()) + " actual=" + shown(name));
    }
  }

  private void embeddings(HttpExchange exchange) throws IOException {
    Wire body = Wire.parse(body(exchange));
    String name = body.text("model", embeddings.map(Embeddings::modelId).orElse(options.modelId()));
    checkModel(name);
    if (embeddings.filter(e -> e.modelId().equals(name)).isEmpty()) {
      throw ApiException.of(
          400,
          "not_an_embedding_model",
          "model " + name + " generates text: it is not an embedding model");
    }
    Embedder embedder = embeddings.get().embedder();
    EmbeddingRequest request = EmbeddingRequest.of(body, embedder);
    long deadline = System.nanoTime() + options.timeLimit().toNanos();
    inSlot(
        exchange,
        WatchedResponse.Form.JSON,
        deadline,
        () -> {},
        response -> {
          List<float[]> vectors = new ArrayList<>();
          int n = request.inputs().size();
          while (vectors.size() < n) {
            check(response);
            if (System.nanoTime() - deadline >= 0 || Thread.currentThread().isInterrupted()) {
              metrics.cancelled.increment();
              throw ApiException.of(
                  503,
                  "timeout",
                  "embedded " + vectors.size() + " of " + n + " within the time limit");
            }
            int to = Math.min(n, vectors.size() + TEXTS_AT_ONCE);
            List<int[]> some = request.inputs().subList(vectors.size(), to);
            vectors.addAll(embedder.embedTokens(some));
            metrics.promptTokens.add(some.stream().mapToInt(ids -> ids.length).sum());
            metrics.embeddings.add(some.size());
          }
          response.finish(Wire.bytes(request.answer(name, vectors)));
        });
  }

  private interface Work {
    void run(WatchedResponse response) throws IOException;
  }

  /**
   * Does work in one of the slots, when there is one. The client is asked meanwhile whether it is
   * still there, so the request has to be known to be valid.
   *
   * @param check of the request what takes time, a grammar: not for those that find no place
   * @throws IOException if the client is gone
   */
  private void inSlot(
      HttpExchange exchange, WatchedResponse.Form form, long deadline, Runnable check, Work work)
      throws IOException {
    try (WatchedResponse response = new WatchedResponse(exchange, form, clock, threads, patience);
        Slots.Turn turn = slots.enter().orElseThrow(this::full)) {
      try {
        check.run();
        response.watch(turn::leave);
        await(turn, response, deadline);
        metrics.active.incrementAndGet();
        try {
          work.run(response);
        } finally {
          metrics.active.decrementAndGet();
        }
      } catch (RuntimeException e) {
        // The status is out, but a stream can say what has happened.
        if (form == WatchedResponse.Form.EVENTS && response.isBegun()) {
          event(response, (e instanceof ApiException known ? known : internal(e)).body());
        }
        throw e;
      }
    }
  }

  private static ApiException internal(Throwable e) {
    return ApiException.of(500, "internal_error", "internal error: " + e.getMessage());
  }

  /** Ends work whose client has gone. */
  private void check(WatchedResponse response) throws IOException {
    try {
      response.check();
    } catch (IOException e) {
      metrics.cancelled.increment();
      throw e;
    }
  }

  private byte[] body(HttpExchange exchange) throws IOException {
    ApiException tooLarge =
        ApiException.of(413, "request_too_large", "request bytes: expected<=" + options.maxBody());
    String length = exchange.getRequestHeaders().getFirst("Content-Length");
    if (length != null
        && length.matches("[0-9]{1,18}")
        && Long.parseLong(length) > options.maxBody()) {
      throw tooLarge;
    }
    byte[] body;
    try {
      body = exchange.getRequestBody().readNBytes(options.maxBody() + 1);
    } catch (IOException e) {
      // Broken off, or no chunks. What comes then is no request; who has gone does not hear it.
      exchange.getResponseHeaders().set("Connection", "close");
      throw ApiException.of(
          400, "invalid_body", "the body cannot be read to its end: " + e.getMessage());
    }
    if (body.length > options.maxBody()) {
      throw tooLarge;
    }
    return body;
  }

  private void complete(HttpExchange exchange, boolean chat) throws IOException {
    Wire body = Wire.parse(body(exchange));
    String name = body.text("model", names().getFirst());
    checkModel(name);
    if (model == null || !name.equals(options.modelId())) {
      throw ApiException.of(
          400,
          "not_a_text_model",
          "model " + name + " is an embedding model: it does not generate text");
    }
    Request request =
        chat
            ? Request.chat(body, model, options.sampling())
            : Request.completion(body, model, options.sampling());
    int most = options.contextShift().isEmpty() ? model.info().contextLength() : Integer.MAX_VALUE;
    for (int[] prompt : request.prompts()) {
      if (prompt.length >= most) {
        throw ApiException.of(
            400,
            "context_length_exceeded",
            chat ? "messages" : "prompt",
            "prompt tokens: expected<" + most + " actual=" + prompt.length);
      }
    }
    long deadline = System.nanoTime() + options.timeLimit().toNanos();
    inSlot(
        exchange,
        request.stream() ? WatchedResponse.Form.EVENTS : WatchedResponse.Form.JSON,
        deadline,
        () -> {
          try {
            for (int[] prompt : request.prompts()) {
              model.check(prompt, completed(request, 0));
            }
          } catch (FletchException | SamplingException | IllegalArgumentException e) {
            throw ApiException.invalid(null, e.getMessage());
          }
        },
        response -> {
          try (SessionPool.Lease lease =
              lease(request.prompt(0), request.adapters().orElse(adapters))) {
            try {
              generate(response, request, lease.session(), deadline);
              lease.keep();
            } catch (IOException | ApiException e) {
              // The client's fault; the generation is closed and the session as good as ever.
              lease.keep();
              throw e;
            }
          }
        });
  }

  /** The options of a choice with what the server's ask for. */
  private GenerationOptions completed(Request request, int choice) {
    GenerationOptions asked = request.options(choice);
    GenerationOptions routed = options.routing().map(asked::withRouting).orElse(asked);
    return options.contextShift().map(routed::withContextShift).orElse(routed);
  }

  /**
   * The registered adapters with the scales of requests that name none, as llama.cpp lists them.
   */
  private void listAdapters(HttpExchange exchange) throws IOException {
    List<Map<String, Object>> all = new ArrayList<>();
    List<Adapter.Scaled> now = adapters;
    for (Adapter a : model == null ? List.<Adapter>of() : model.adapters()) {
      Map<String, Object> one = new LinkedHashMap<>();
      one.put("id", a.id());
      one.put("path", a.path().toString());
      one.put("name", a.name());
      one.put("rank", a.rank());
      one.put(
          "scale",
          now.stream()
              .filter(s -> s.adapter() == a)
              .map(Adapter.Scaled::scale)
              .findFirst()
              .orElse(0f));
      all.add(one);
    }
    send(exchange, 200, JSON_TYPE, Wire.bytes(all));
  }

  /** Sets the scales of requests that name no adapters; those that are not listed get 0. */
  private void setAdapters(HttpExchange exchange) throws IOException {
    List<?> list = Wire.parseList(body(exchange));
    if (model == null) {
      throw ApiException.invalid(null, "the server has no model that takes adapters");
    }
    adapters = Request.adapters(list, "", model);
    send(exchange, 200, JSON_TYPE, Wire.bytes(Map.of("success", true)));
  }

  private SessionPool.Lease lease(int[] prompt, List<Adapter.Scaled> with) {
    try {
      return sessions.lease(prompt, with);
    } catch (FletchException | IllegalArgumentException e) {
      throw ApiException.invalid("lora", e.getMessage());
    } catch (IllegalStateException e) {
      if (draining) {
        throw ApiException.of(503, "shutting_down", "the server is shutting down");
      }
      throw e;
    }
  }

  private ApiException full() {
    metrics.rejected.increment();
    return ApiException.of(
        429,
        "queue_full",
        "too many requests: parallel=" + options.parallel() + " queue=" + options.queue());
  }

  /**
   * Waits for a slot.
   *
   * @throws IOException if the client is gone
   */
  private void await(Slots.Turn turn, WatchedResponse response, long deadline) throws IOException {
    try {
      switch (turn.await(deadline - System.nanoTime())) {
        case TAKEN -> {
          return;
        }
        case LEFT -> check(response);
        case LATE -> throw ApiException.of(503, "timeout", "no slot within the time limit");
        case CLOSED -> {}
      }
    } catch (InterruptedException _) {
      Thread.currentThread().interrupt();
    }
    throw ApiException.of(503, "shutting_down", "the server is shutting down");
  }

  private void generate(WatchedResponse response, Request request, Session session, long deadline)
      throws IOException {
    Answers answers = new Answers(request, options.modelId(), model.tokenizer());
    if (request.stream()) {
      stream(response, request, session, answers, deadline);
      return;
    }
    for (int i = 0; i < request.answers(); i++) {
      answers.choose(i);
      run(
          response,
          request,
          i,
          session,
          deadline,
          generation -> {
            List<TokenLogprob> logprobs = new ArrayList<>();
            while (hasNext(generation, deadline)) {
              logprobs.addAll(generation.next().logprobs());
            }
            response.check();
            answers.whole(generation.result(), logprobs);
          });
    }
    response.finish(Wire.bytes(answers.all()));
  }

  private interface Reading {
    void read(Generation generation) throws IOException;
  }

  /**
   * Generates a choice; all choices of a request use its session, so the prompt runs once. The
   * choice ends when the client of the response has gone.
   */
  private void run(
      WatchedResponse response,
      Request request,
      int choice,
      Session session,
      long deadline,
      Reading reading)
      throws IOException {
    Generation generation;
    try {
      generation = session.generate(request.prompt(choice), completed(request, choice));
    } catch (FletchException | IllegalArgumentException e) {
      throw ApiException.invalid(null, e.getMessage());
    }
    running.add(generation);
    ScheduledFuture<?> alarm =
        clock.schedule(generation::cancel, deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
    boolean isDone = false;
    try (generation) {
      response.watch(generation::cancel);
      reading.read(generation);
      isDone = true;
    } finally {
      alarm.cancel(false);
      running.remove(generation);
      account(generation, isDone);
    }
  }

  /** The alarm ends long prompts; an answer is ended here, whatever else the machine does. */
  private static boolean hasNext(Generation generation, long deadline) {
    if (System.nanoTime() - deadline >= 0) {
      generation.cancel();
    }
    return generation.hasNext();
  }

  private void account(Generation generation, boolean isDone) {
    // Closed by now, so nothing more is computed.
    Generation.Result result = generation.result();
    metrics.promptTokens.add(result.promptTokens());
    metrics.reusedTokens.add(result.reusedTokens());
    metrics.completionTokens.add(result.completionTokens());
    metrics.prefillNanos.add(result.prefillNanos());
    metrics.decodeNanos.add(result.decodeNanos());
    DecodeCounters counters = result.counters();
    metrics.weightBytes.add(counters.weights().bytes());
    metrics.activatedParameters.add(counters.weights().activated());
    if (options.routing().isPresent()) {
      metrics.routedTokens.add(counters.drafted() - counters.accepted());
    }
    if (!isDone || result.finishReason() == Generation.FinishReason.CANCELLED) {
      metrics.cancelled.increment();
    }
  }

  private void stream(
      WatchedResponse response, Request request, Session session, Answers answers, long deadline)
      throws IOException {
    for (int i = 0; i < request.answers(); i++) {
      answers.choose(i);
      // Nothing of the answer is written before the request is known to be valid, which it is when
      // it runs.
      run(
          response,
          request,
          i,
          session,
          deadline,
          generation -> choice(response, generation, answers, deadline));
    }
    Map<String, Object> last = answers.last();
    if (last != null) {
      event(response, last);
    }
    response.finish("data: [DONE]\n\n".getBytes(StandardCharsets.UTF_8));
  }

  private static void choice(
      WatchedResponse response, Generation generation, Answers answers, long deadline)
      throws IOException {
    Map<String, Object> begin = answers.begin();
    if (begin != null) {
      event(response, begin);
    }
    while (hasNext(generation, deadline)) {
      Map<String, Object> piece = answers.piece(generation.next());
      if (piece != null) {
        event(response, piece);
      } else {
        // Nothing to say yet; this finds out whether the client is still there.
        response.writeSign();
      }
    }
    response.check();
    for (Map<String, Object> end : answers.end(generation.result())) {
      event(response, end);
    }
  }

  private static void event(WatchedResponse response, Map<String, Object> data) throws IOException {
    response.write(
        "data: ".getBytes(StandardCharsets.UTF_8),
        Wire.bytes(data),
        "\n\n".getBytes(StandardCharsets.UTF_8));
  }

  @Override
  public void close() {
    draining = true;
    slots.close();
    long end = System.nanoTime() + options.drain().toNanos();
    while (inFlight.get() > 0 && System.nanoTime() - end < 0) {
      pause();
    }
    if (inFlight.get() > 0) {
      LOG.log(Level.INFO, "cancelling {0} answers", running.size());
    }
    long patience = System.nanoTime() + TimeUnit.SECONDS.toNanos(10);
    while (inFlight.get() > 0 && System.nanoTime() - patience < 0) {
      running.forEach(Generation::cancel);
      pause();
    }
    http.stop(0);
    threads.shutdownNow();
    clock.shutdownNow();
    try {
      if (!threads.awaitTermination(10, TimeUnit.SECONDS)) {
        LOG.log(Level.WARNING, "requests do not end");
      }
    } catch (InterruptedException _) {
      Thread.currentThread().interrupt();
    }
    if (sessions != null) {
      sessions.close();
    }
  }

  private static void pause() {
    try {
      Thread.sleep(5);
    } catch (InterruptedException _) {
      Thread.currentThread().interrupt();
    }
  }
}
