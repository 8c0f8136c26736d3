package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;

/**
 * Decodes an answer with a diffusion model: a prompt in, committed spans out step by step.
 *
 * <pre>{@code
 * decoder.start(prompt);
 * while (decoder.next()) {
 *   show(decoder.latest().offsets(), decoder.latest().tokens());
 * }
 * int[] answer = decoder.answer();
 * }</pre>
 *
 * The result is a function of (model, options, prompt): noise is keyed by the seed, ties go to the
 * lowest position. Belongs to one thread at a time; may be started again.
 */
public final class DiffusionDecoder {
  private final CanvasForward forward;
  private final DiffusionModel model;
  private final DiffusionOptions options;
  private final CausalForward guide;
  private final DecodeTrace trace = new DecodeTrace();
  private Tally tally = new Tally();
  private DecodeRun run;
  private DecodeTrace.Step latest;
  private int prompt;

  private DiffusionDecoder(
      CanvasForward forward, DiffusionModel model, DiffusionOptions options, CausalForward guide) {
    this.forward = Objects.requireNonNull(forward, "forward");
    this.model = Objects.requireNonNull(model, "model");
    this.options = Objects.requireNonNull(options, "options");
    this.guide = guide;
    Composition.check(options, model);
    boolean guided = options.search() instanceof Search.Guided;
    if (guided != (guide != null)) {
      throw new IllegalArgumentException(
          guided
              ? "guided diffusion needs an autoregressive guide"
              : "a guide is of no use without guided diffusion");
    }
    int defined = Math.min(model.definedIds(), forward.vocabulary());
    if (guided && guide.vocabulary() < defined) {
      throw new IllegalArgumentException(
          "the guide's vocabulary is not the model's: expected=at least "
              + defined
              + " ids actual="
              + guide.vocabulary());
    }
  }

  /**
   * A decoder.
   *
   * @throws IllegalArgumentException if the options do not fit the model
   */
  public static DiffusionDecoder of(
      CanvasForward forward, DiffusionModel model, DiffusionOptions options) {
    return new DiffusionDecoder(forward, model, options, null);
  }

  /**
   * A decoder under a guide, whose cache it takes over. The caller has made sure that both have the
   * same tokenizer; only the number of ids is checked here.
   */
  public static DiffusionDecoder of(
      CanvasForward forward, DiffusionModel model, DiffusionOptions options, CausalForward guide) {
    return new DiffusionDecoder(forward, model, options, Objects.requireNonNull(guide, "guide"));
  }

  /** Starts on a prompt with an answer of masks only. */
  public void start(int[] promptTokens) {
    int[] answer;
    if (options.search() instanceof Search.Nap nap) {
      answer = NapPolicy.template(nap, model.maskId());
    } else {
      answer = new int[options.answerLength()];
      Arrays.fill(answer, model.maskId());
    }
    start(promptTokens, answer);
  }

  /**
   * Starts on a prompt and an answer of which some tokens are given, the others masks: infilling,
   * or a planted end such as "the answer is".
   *
   * @throws IllegalArgumentException for a token outside the vocabulary, a mask in the prompt, a
   *     wrong answer length, or a canvas beyond the model's context
   */
  public void start(int[] promptTokens, int[] answer) {
    int length = promptTokens.length + answer.length;
    if (answer.length != options.answerLength()) {
      throw new IllegalArgumentException(
          "answer length: expected=" + options.answerLength() + " actual=" + answer.length);
    }
    if (length > forward.context()) {
      throw new IllegalArgumentException(
          "prompt and answer: expected=at most "
              + forward.context()
              + " positions actual="
              + promptTokens.length
              + " + "
              + answer.length);
    }
    for (int i = 0; i < length; i++) {
      boolean inPrompt = i < promptTokens.length;
      int id = inPrompt ? promptTokens[i] : answer[i - promptTokens.length];
      if (id < 0 || id >= forward.vocabulary() || (inPrompt && id == model.maskId())) {
        throw new IllegalArgumentException(
            "token at position "
                + i
                + ": expected=in [0, "
                + forward.vocabulary()
                + ") and no mask in the prompt actual="
                + id);
      }
    }
    prompt = promptTokens.length;
    int[] tokens = Arrays.copyOf(promptTokens, length);
    System.arraycopy(answer, 0, tokens, prompt, answer.length);
    trace.clear();
    latest = null;
    tally = new Tally();
    CanvasState state =
        CanvasState.start(
            tokens, prompt, model.maskId(), options.blockLength(), !model.bidirectional());
    begin(length);
    tally.bytesAtStart = Math.max(0, forward.bytesRead());
    run = run(state);
  }

  private void begin(int length) {
    int window =
        switch (options.caching()) {
          case Caching.Dual _ -> options.blockLength() + model.lead();
          case Caching.BlockCausal _ -> options.blockLength() + model.lead();
          default -> length;
        };
    int canvases = 1;
    int caches = 1;
    int slots = length;
    int rows = length;
    switch (options.search()) {
      case Search.FreeDave f -> {
        canvases = f.depth();
        slots = Math.addExact(length, Math.multiplyExact(canvases - 1, window));
        rows = Math.max(length, Math.multiplyExact(canvases, window));
        if (f.maxRows() > 0) {
          rows = Math.max(length, Math.min(rows, f.maxRows()));
        }
      }
      case Search.Soar s -> {
        canvases = s.beams();
        caches = s.beams();
        rows = Math.multiplyExact(length, canvases);
      }
      default -> {}
    }
    int halves = options.guidance() > 0 ? 2 : 1;
    forward.begin(
        caches * halves,
        slots,
        rows * halves,
        Math.min(rows, Math.multiplyExact(options.answerLength(), canvases)) * halves,
        Proposer.edits(model, options, forward.vocabulary()));
  }

  private DecodeRun run(CanvasState state) {
    Proposer proposer = new Proposer(forward, model, options);
    Steps steps = new Steps();
    boolean everyMask = options.search() instanceof Search.Guided;
    int scopeFrom = 0;
    int scopeTo = 0;
    List<ExitPolicy> exits = new ArrayList<>();
    Exit.EndFill endFill = null;
    Progress progress = Progress.of(options, Math.max(1, state.masks));
    for (Exit exit : options.exits()) {
      switch (exit) {
        case Exit.EndFill f -> endFill = f;
        case Exit.Prophet p -> {
          int from = Math.min(state.length(), prompt + p.regionFrom());
          int to =
              p.regionLength() < 0
                  ? state.length()
                  : (int) Math.min(state.length(), (long) from + p.regionLength());
          everyMask |= model.bidirectional();
          scopeTo = Math.max(scopeTo, to);
          scopeFrom = scopeFrom == 0 ? from : Math.min(scopeFrom, from);
          exits.add(new ProphetExit(p, progress, from, to));
        }
        case Exit.Sched s -> {
          everyMask |= model.bidirectional();
          if (s.wholeAnswer()) {
            scopeFrom = prompt;
            scopeTo = state.length();
          }
          exits.add(new SchedExit(s, progress));
        }
      }
    }
    TransferPolicy transfer =
        options.search() instanceof Search.Nap nap
            ? new NapPolicy(nap, prompt)
            : TransferPolicy.of(options);
    Evaluator.Scope scope = new Evaluator.Scope(everyMask, transfer.edits(), scopeFrom, scopeTo);
    Evaluator evaluator = new Evaluator(forward, model, options, proposer, scope, tally);
    CachePolicy policy = CachePolicy.of(options.caching(), model, prompt);
    return switch (options.search()) {
      case Search.None _ ->
          chain(state, new CachedSource(evaluator, policy, 0), transfer, exits, endFill, steps);
      case Search.Nap _ ->
          chain(state, new CachedSource(evaluator, policy, 0), transfer, exits, endFill, steps);
      case Search.FreeDave f ->
          chain(
              state,
              new DraftingSource(evaluator, policy, transfer, f, tally, System::nanoTime),
              transfer,
              exits,
              endFill,
              steps);
      case Search.Soar s ->
          new SoarRun(
              s,
              state,
              policy,
              evaluator,
              !(options.caching() instanceof Caching.None),
              exits,
              endFill,
              model,
              steps,
              tally);
      case Search.Guided g -> guided(state, new CachedSource(evaluator, policy, 0), g, steps);
    };
  }

  private DecodeRun chain(
      CanvasState state,
      EvaluationSource source,
      TransferPolicy transfer,
      List<ExitPolicy> exits,
      Exit.EndFill endFill,
      Steps steps) {
    return new ChainRun(state, source, transfer, exits, endFill, model, steps, tally);
  }

  private DecodeRun guided(
      CanvasState state, CachedSource source, Search.Guided options, Steps steps) {
    if (prompt == 0) {
      throw new IllegalArgumentException(
          "guided diffusion needs a prompt: expected=1 or more" + " tokens actual=0");
    }
    if (state.masks != state.length() - state.firstMask()) {
      throw new IllegalArgumentException(
          "guided diffusion needs its masks at the end of the canvas: expected="
              + (state.length() - state.firstMask())
              + " masks from position "
              + state.firstMask()
              + " actual="
              + state.masks);
    }
    if (state.length() > guide.capacity() + 1) {
      throw new IllegalArgumentException(
          "the guide's context: expected=at least "
              + (state.length() - 1)
              + " actual="
              + guide.capacity());
    }
    return new GuidedRun(state, source, guide, options, model, steps, tally);
  }

  /**
   * Does one step.
   *
   * @return false if the answer had been complete before
   * @throws SamplingException if the model's logits are unusable
   */
  public boolean next() {
    if (run == null) {
      throw new IllegalStateException("start(...) has not been called");
    }
    DecodeTrace.Step step = run.step();
    if (step == null) {
      return false;
    }
    latest = step;
    if (!(run instanceof SoarRun soar)) {
      trace.add(step);
    } else if (soar.finished()) {
      soar.history().forEach(trace::add);
    }
    if (run.finished() && run.state().masks > 0) {
      throw new AssertionError("masks left at the end: " + run.state().masks);
    }
    return true;
  }

  /** Whether the answer is complete. */
  public boolean finished() {
    return run != null && run.finished();
  }

  /**
   * What the latest step made final. With a beam these are the tokens that all canvases have come
   * to agree on; with editing a position may come again.
   */
  public DecodeTrace.Step latest() {
    if (latest == null) {
      throw new IllegalStateException("no step yet");
    }
    return latest;
  }

  /** The answer region so far; masks where nothing is committed. A copy. */
  public int[] answer() {
    int[] tokens = canvas();
    return Arrays.copyOfRange(tokens, prompt, tokens.length);
  }

  /** The part of {@link #answer()} that is the answer: with NAP the summary. A copy. */
  public int[] output() {
    int[] answer = answer();
    return options.search() instanceof Search.Nap nap && nap.summaryLength() > 0
        ? Arrays.copyOfRange(answer, answer.length - nap.summaryLength(), answer.length)
        : answer;
  }

  /** Prompt and answer so far; a copy. */
  public int[] canvas() {
    if (run == null) {
      throw new IllegalStateException("start(...) has not been called");
    }
    return run.state().tokens.clone();
  }

  /** Every step so far; with a beam, complete only at the end. */
  public DecodeTrace trace() {
    return trace;
  }

  /** What the run has cost so far. */
  public DecodeCounters counters() {
    return tally.snapshot(forward.bytesRead());
  }

  /** The run, for tests. */
  DecodeRun current() {
    return run;
  }
}
