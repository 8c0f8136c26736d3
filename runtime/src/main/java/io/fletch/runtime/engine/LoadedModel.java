package io.fletch.runtime.engine;

import io.fletch.Adapter;
import io.fletch.FletchException;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.Tokenizer;
import io.fletch.ToolCallFormat;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.Plan;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.quant.WeightFileException;
import io.fletch.runtime.arch.AdapterFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.template.ChatTemplate;
import io.fletch.sampling.DiffusionModel;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.GrammarTokens;
import io.fletch.sampling.SamplerExtras;
import io.fletch.sampling.SamplingOptions;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.IntPredicate;
import java.util.stream.Collectors;

/**
 * An open model: owns the weight file and the executable. Immutable apart from the count of open
 * sessions; safe for use by several threads.
 */
final class LoadedModel implements Model {
  private static final long SAMPLE_BYTES = 1024;

  /** Grammars whose masks are kept. */
  private static final int MOST_GRAMMARS = 8;

  private final String name;
  private final Info info;
  private final WeightFile file;
  private final TensorStore derived;
  private final HyperParameters hp;
  private final Executable executable;
  private final Tokenizer tokenizer;
  private final Optional<String> templateText;
  private final Optional<ToolCallFormat> toolFormat;
  private final UnitTechniques units;
  private final ModelOptions options;
  private final PassCost cost;
  private final StepScheduler scheduler;
  private final PrefixStore prefixes;
  private final AtomicInteger forwards = new AtomicInteger();
  private volatile Optional<ChatTemplate> template = Optional.empty();
  private volatile Breakers breakers = new Breakers(List.of(), new BitSet());
  private byte[] identity;

  /** By grammar, the least recently used first. */
  private final Map<Object, GrammarTokens> grammars =
      new LinkedHashMap<>(16, 0.75f, true) {
        private static final long serialVersionUID = 1L;

        @Override
        protected boolean removeEldestEntry(Map.Entry<Object, GrammarTokens> eldest) {
          return size() > MOST_GRAMMARS;
        }
      };

  /** Guarded by this. */
  private final List<AutoCloseable> owned = new ArrayList<>();

  /** Registered adapters by id; guarded by itself. */
  private final Map<Integer, LoadedAdapter> adapters = new TreeMap<>();

  private int nextAdapter;
  private final Users users =
      new Users("the model", "the model has open sessions, close them first: sessions");

  LoadedModel(
      String name,
      Info info,
      WeightFile file,
      TensorStore derived,
      HyperParameters hp,
      Executable executable,
      Tokenizer tokenizer,
      Optional<String> templateText,
      UnitTechniques units,
      ModelOptions options) {
    this.name = name;
    this.info = info;
    this.file = file;
    this.derived = derived;
    this.hp = hp;
    this.executable = executable;
    this.tokenizer = tokenizer;
    this.templateText = templateText;
    this.toolFormat = templateText.flatMap(ToolCallFormat::of);
    this.units = units;
    this.options = options;
    this.cost = PassCost.of(executable);
    this.scheduler = new StepScheduler(executable);
    this.prefixes = new PrefixStore(executable, kvType(), options.prefixCacheBytes());
  }

  @Override
  public String name() {
    return name;
  }

  @Override
  public Info info() {
    return info;
  }

  @Override
  public Optional<DiffusionModel> diffusion() {
    return hp.diffusion()
        ? Optional.of(
            diffusion(tokenizer.endOfGeneration().stream().mapToInt(Integer::intValue).toArray()))
        : Optional.empty();
  }

  /** What decoding must know if these tokens end an answer. */
  DiffusionModel diffusion(int[] stopTokens) {
    int fill =
        tokenizer
            .eos()
            .orElseThrow(() ->
                new FletchException("model " + name + ": the tokenizer declares no end token"));
    return new DiffusionModel(
        hp.maskToken().orElseThrow(),
        stopTokens,
        fill,
        definedTokens(),
        hp.shiftLogits(),
        hp.diffusionBlock());
  }

  @Override
  public Tokenizer tokenizer() {
    return tokenizer;
  }

  /** Whether DRY's repetitions end at a token: its text contains one of the breakers. */
  IntPredicate breakers(SamplingOptions sampling) {
    List<String> texts = sampling.extras().dry().map(SamplerExtras.Dry::breakers).orElse(List.of());
    if (texts.isEmpty()) {
      return token -> false;
    }
    Breakers known = breakers;
    if (!known.texts().equals(texts)) {
      BitSet tokens = new BitSet();
      for (int id = 0; id < tokenizer.vocabularySize(); id++) {
        String text = new String(tokenizer.bytes(id), StandardCharsets.UTF_8);
        if (texts.stream().anyMatch(text::contains)) {
          tokens.set(id);
        }
      }
      known = new Breakers(texts, tokens);
      breakers = known;
    }
    return known.tokens()::get;
  }

  /** The tokens that contain one of some texts; not changed once it is published. */
  private record Breakers(List<String> texts, BitSet tokens) {}

  int contextLength() {
    return info.contextLength();
  }

  HyperParameters hyperParameters() {
    return hp;
  }

  Executable executable() {
    return executable;
  }

  KvCache.Type kvType() {
    return switch (options.kvType()) {
      case F32 -> KvCache.Type.F32;
      case F16 -> KvCache.Type.F16;
      case Q8_0 -> KvCache.Type.Q8_0;
    };
  }

  @Override
  public long kvBytesPerToken() {
    long elements = 0;
    for (AttentionSpec spec : executable.graph().kvLayers()) {
      elements += (long) spec.kvHeads() * (spec.keyDim() + spec.valueDim());
    }
    return switch (kvType()) {
      case F32 -> 4 * elements;
      case F16 -> 2 * elements;
      case Q8_0 -> elements + elements / 32 * 2;
    };
  }

  /** Ids below this are tokens; output rows from there on pad the matrix. */
  int definedTokens() {
    return Math.min(tokenizer.vocabularySize(), info.vocabularySize());
  }

  /** A causal forward with a cache of its own that runs alone; the caller closes it. */
  GraphForward newForward(int capacity, int maxLogitRows) {
    return newForward(capacity, maxLogitRows, null);
  }

  /** The forward of a session: its steps may share passes with those of other sessions. */
  GraphForward newSharingForward() {
    return newForward(contextLength(), 1, scheduler);
  }

  private GraphForward newForward(int capacity, int maxLogitRows, StepScheduler with) {
    int rows = Math.min(executable.plans().getLast().maxRows(), capacity);
    return new GraphForward(
        executable,
        capacity,
        kvType(),
        definedTokens(),
        rows,
        Math.min(rows, maxLogitRows),
        cost,
        kvBytesPerToken(),
        with,
        forwards);
  }

  @Override
  public String chatPrompt(
      List<Message> messages, boolean addGenerationPrompt, Map<String, Object> variables) {
    Objects.requireNonNull(messages, "messages");
    ChatTemplate t = template();
    Map<String, Object> context = new HashMap<>();
    tokenizer.bos().ifPresent(id -> context.put("bos_token", tokenizer.token(id)));
    tokenizer.eos().ifPresent(id -> context.put("eos_token", tokenizer.token(id)));
    context.putAll(variables);
    List<Map<String, Object>> turns = new ArrayList<>();
    for (Message m : messages) {
      Map<String, Object> turn = new HashMap<>(m.more());
      turn.put("role", m.role());
      turn.put("content", m.content());
      turns.add(turn);
    }
    context.put("messages", turns);
    context.put("add_generation_prompt", addGenerationPrompt);
    return t.render(context);
  }

  @Override
  public String toString() {
    return "Model[" + name + ", " + info + "]";
  }

  @Override
  public void check(int[] prompt, GenerationOptions of) {
    BaseSession.checked(this, prompt.clone(), Objects.requireNonNull(of, "options"));
  }

  @Override
  public Optional<ToolCallFormat> toolCallFormat() {
    return toolFormat;
  }

  /** Parsed when it is first used: a template that cannot be rendered spoils raw prompts not. */
  private ChatTemplate template() {
    Optional<ChatTemplate> parsed = template;
    if (parsed.isEmpty()) {
      parsed = templateText.map(ChatTemplate::parse).or(() -> ChatTemplate.fallback(tokenizer));
      template = parsed;
    }
    return parsed.orElseThrow(() ->
        new FletchException("model " + name + " has no chat template: use a raw prompt instead"));
  }

  @Override
  public Adapter adapter(Path path) {
    // Nobody may close the model meanwhile.
    sessionOpened();
    try (TensorStore factors = TensorStore.create()) {
      AdapterFile read = AdapterFile.open(path, 1, factors, file.format(), hp);
      byte[] digest = AdapterFile.digest(path);
      synchronized (adapters) {
        String unique = unique(path);
        LowRankAdapter weights = executable.newAdapter(unique, read.deltas(executable.graph()));
        LoadedAdapter made =
            new LoadedAdapter(
                this, nextAdapter++, unique, path, read.rank(), read.targets(), digest, weights);
        adapters.put(made.id(), made);
        return made;
      }
    } catch (WeightFileException | GraphException | IllegalArgumentException e) {
      throw ModelLoader.failure(path, e);
    } finally {
      sessionClosed();
    }
  }

  /** A name that no open adapter has; called with the lock on them. */
  private String unique(Path path) {
    Path last = path.toAbsolutePath().normalize().getFileName();
    String stem = (last == null ? "adapter" : last.toString()).replaceFirst("\\.gguf$", "");
    String candidate = stem;
    for (int n = 2; isTaken(candidate); n++) {
      candidate = stem + "-" + n;
    }
    return candidate;
  }

  private boolean isTaken(String adapterName) {
    return adapters.values().stream().anyMatch(a -> a.name().equals(adapterName));
  }

  @Override
  public List<Adapter> adapters() {
    synchronized (adapters) {
      return List.copyOf(adapters.values());
    }
  }

  /** An adapter is about to be closed. */
  void forget(LoadedAdapter adapter) {
    synchronized (adapters) {
      adapters.remove(adapter.id());
    }
    prefixes.forget(adapter.weights());
  }

  @Override
  public Session newSession() {
    sessionOpened();
    try {
      return hp.diffusion() ? new DiffusionSession(this) : new AutoregressiveSession(this);
    } catch (GraphException e) {
      sessionClosed();
      throw failure(e);
    } catch (RuntimeException | Error e) {
      sessionClosed();
      throw e;
    }
  }

  /** What users of the model hear of a failure below the graph. */
  FletchException failure(GraphException e) {
    return new FletchException(name + ": " + e.getMessage(), e);
  }

  /** Counts a user of the model, which may not be closed until {@link #sessionClosed}. */
  void sessionOpened() {
    users.enter();
  }

  void sessionClosed() {
    users.leave();
  }

  /**
   * The grammar over this model's tokens; the latest few are kept, with all their masks.
   *
   * @param ignoreEnd whether end tokens are not allowed even where the text is complete
   */
  GrammarTokens grammar(Grammar grammar, boolean ignoreEnd) {
    record Key(Grammar grammar, boolean ignoreEnd) {}
    Key key = new Key(grammar, ignoreEnd);
    synchronized (grammars) {
      GrammarTokens known = grammars.get(key);
      if (known == null) {
        byte[][] bytes = new byte[info.vocabularySize()][];
        for (int i = 0; i < bytes.length; i++) {
          bytes[i] =
              i < definedTokens() && !tokenizer.isSpecial(i) ? tokenizer.bytes(i) : new byte[0];
        }
        int[] ends =
            ignoreEnd
                ? new int[0]
                : tokenizer.endOfGeneration().stream().mapToInt(Integer::intValue).toArray();
        known = new GrammarTokens(grammar, bytes, ends);
        grammars.put(key, known);
      }
      return known;
    }
  }

  int openSessions() {
    return users.count();
  }

  /** Caches of sessions and of measurements that are not closed yet. */
  int openForwards() {
    return forwards.get();
  }

  PrefixStore prefixes() {
    return prefixes;
  }

  /**
   * The identity of a model, as files that are made for it have it.
   *
   * @throws FletchException if it is not one that {@link ModelLoader} opened
   */
  static String hash(Model model) {
    if (!(model instanceof LoadedModel loaded)) {
      throw new FletchException("model " + model.name() + " is not one that Fletch opened");
    }
    return HexFormat.of().formatHex(loaded.identity());
  }

  /** Scale and content of an adapter. */
  private static void digest(ModelOptions.Adapter adapter, MessageDigest into) {
    into.update(ByteBuffer.allocate(Float.BYTES).putFloat(adapter.scale()).flip());
    AdapterFile.digest(adapter.path(), into);
  }

  /**
   * What tells this model from others: architecture, name, type, shape and samples of the content
   * of every tensor (its beginning, middle and end), and scales and bytes of the adapters.
   */
  synchronized byte[] identity() {
    if (identity == null) {
      identity = identity(info.architecture(), file, options.adapters());
    }
    return identity.clone();
  }

  /** Compiles a graph that belongs to this model for the same backend, with the same options. */
  Executable compile(Graph graph, int maxRows) {
    return ModelLoader.compile(
        graph,
        maxRows,
        options
            .withPackCache(ModelOptions.PackCache.off())
            .withGpuLayers(ModelOptions.AS_MANY_AS_FIT),
        file);
  }

  /**
   * Takes over something that uses this model's memory; it is closed with the model.
   *
   * @throws IllegalStateException if the model is closed
   */
  synchronized void own(AutoCloseable part) {
    // owned() comes after the end and waits for this.
    if (users.isClosed()) {
      throw new IllegalStateException("the model is closed");
    }
    owned.add(part);
  }

  /** The identity of a model of that architecture in a file, with adapters. */
  static byte[] identity(
      String architecture, WeightFile file, List<ModelOptions.Adapter> adapters) {
    MessageDigest digest;
    try {
      digest = MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
    digest.update(architecture.getBytes(StandardCharsets.UTF_8));
    for (Tensor tensor : file.tensors().values()) {
      String head = tensor.name() + ' ' + tensor.type() + ' ' + Arrays.toString(tensor.shape());
      digest.update(head.getBytes(StandardCharsets.UTF_8));
      long bytes = tensor.segment().byteSize();
      long sample = Math.min(SAMPLE_BYTES, bytes);
      for (long at : new long[] {0, (bytes - sample) / 2, bytes - sample}) {
        digest.update(tensor.segment().asSlice(at, sample).asByteBuffer());
      }
    }
    adapters.forEach(a -> digest(a, digest));
    return digest.digest();
  }

  /** What decides about units. */
  UnitTechniques units() {
    return units;
  }

  StepScheduler scheduler() {
    return scheduler;
  }

  @Override
  public String backendDescription() {
    return executable.description();
  }

  @Override
  public List<KernelTime> kernelTimes(int context) {
    if (context < 1 || context > contextLength()) {
      throw new IllegalArgumentException(
          "context: expected in [1, " + contextLength() + "] actual=" + context);
    }
    sessionOpened();
    try {
      return executable.kernelTimes(context, kvType()).stream()
          .map(t -> new KernelTime(t.kernel(), t.launches(), t.micros(), t.weightBytes()))
          .toList();
    } catch (GraphException e) {
      throw failure(e);
    } finally {
      sessionClosed();
    }
  }

  @Override
  public String plan() {
    return executable.plans().stream().map(Plan::toString).collect(Collectors.joining("\n"));
  }

  @Override
  public void close() {
    if (!users.close()) {
      return;
    }
    // Each by itself, so that one that fails keeps no other from being closed.
    List<Runnable> parts = new ArrayList<>();
    owned().forEach(part -> parts.add(() -> closeOwned(part)));
    adapters().forEach(adapter -> parts.add(adapter::close));
    parts.addAll(
        List.of(
            scheduler::close,
            prefixes::close,
            executable::close,
            units::close,
            derived::close,
            file::close));
    RuntimeException failure = null;
    for (Runnable part : parts) {
      try {
        part.run();
      } catch (RuntimeException e) {
        if (failure == null) {
          failure = e;
        } else {
          failure.addSuppressed(e);
        }
      }
    }
    if (failure != null) {
      throw failure instanceof GraphException e ? failure(e) : failure;
    }
  }

  private synchronized List<AutoCloseable> owned() {
    return List.copyOf(owned);
  }

  private void closeOwned(AutoCloseable part) {
    try {
      part.close();
    } catch (RuntimeException e) {
      throw e;
    } catch (Exception e) {
      throw new FletchException("closing what belongs to " + name + ": " + e.getMessage(), e);
    }
  }
}
