package io.fletch.runtime.engine;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Routing;
import io.fletch.Tokenizer;
import io.fletch.graph.GraphException;
import io.fletch.sampling.AutoregressiveDecoder;
import io.fletch.sampling.AutoregressiveOptions;
import io.fletch.sampling.CausalForward.Logits;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.GrammarTokens;
import io.fletch.sampling.LogProbabilities;
import io.fletch.sampling.Sampler;
import io.fletch.sampling.TokenRouting;
import io.fletch.sampling.UnitUse;
import io.fletch.sampling.WeightUse;
import java.util.ArrayList;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;

/**
 * An answer of an autoregressive model: prefill in chunks, then one token per chunk of the
 * iterator. The prompt runs when the first chunk is asked for. Cancellation is looked at before
 * every decode step and between prefill chunks.
 */
final class AutoregressiveGeneration implements Generation {
  private final AutoregressiveSession session;
  private final GraphForward forward;

  /** What runs the prompt and every token: the small model where tokens are routed. */
  private final GraphForward main;

  private final int[] prompt;
  private final int reused;
  private final GenerationOptions options;
  private final Shift shift;
  private final int dropped;
  private final AutoregressiveDecoder decoder;
  private final GrammarTokens.Mask mask;
  private final Tokenizer.StreamDecoder stream;
  private final StopStrings stops;
  private final DecodeCounters before;
  private final DecodeCounters smallBefore;
  private final long sparedBefore;
  private final long smallSparedBefore;
  private final List<Integer> ids = new ArrayList<>();
  private final StringBuilder text = new StringBuilder();
  private volatile boolean cancelled;
  private boolean started;
  private boolean flushed;
  private FinishReason reason;
  private Throwable failure;
  private DecodeCounters counters = new DecodeCounters(0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0);
  private int completionTokens;
  private long prefillNanos;
  private long decodeNanos;
  private Optional<Chunk> ahead = Optional.empty();

  /**
   * Prepares; nothing runs yet.
   *
   * @param small proposes tokens; null to draw all from {@code forward}
   * @param prompt ids, checked; the cache holds the first {@code reused} of them and nothing else
   * @param maxTokens at least 1, and no more than the context holds; with a shift any number, 0 for
   *     no limit
   * @param stopTokens ids that end the answer
   * @param shift makes room where the context is full; null to end there
   * @param dropped tokens that the prompt has lost to fit
   */
  AutoregressiveGeneration(
      AutoregressiveSession session,
      GraphForward forward,
      GraphForward small,
      int[] prompt,
      int reused,
      int maxTokens,
      int[] stopTokens,
      GenerationOptions options,
      Shift shift,
      int dropped) {
    this.session = session;
    this.forward = forward;
    this.main = small == null ? forward : small;
    this.prompt = prompt;
    this.reused = reused;
    this.options = options;
    this.shift = shift;
    this.dropped = dropped;
    Sampler sampler =
        Sampler.of(
            options.sampling(),
            forward.vocabulary(),
            options.samplerSteps(),
            session.model().breakers(options.sampling()));
    AutoregressiveOptions limits =
        new AutoregressiveOptions(maxTokens, stopTokens, options.logprobs());
    mask =
        options
            .grammar()
            .map(g -> session.model().grammar(g, options.ignoreEnd()).newMask())
            .orElse(null);
    if (small != null) {
      Routing routing = options.routing().orElseThrow();
      decoder =
          AutoregressiveDecoder.routed(
              small,
              new TokenRouting(
                  forward, routing.router().copy(), routing.threshold(), routing.hold()),
              sampler,
              limits,
              mask);
    } else if (mask != null) {
      decoder = AutoregressiveDecoder.of(forward, sampler, limits, mask);
    } else {
      decoder = AutoregressiveDecoder.of(forward, sampler, limits);
    }
    this.stream = session.model().tokenizer().streamDecoder();
    this.stops = new StopStrings(options.stopStrings());
    this.before = forward.counters();
    this.smallBefore = main.counters();
    this.sparedBefore = forward.sparedParameters();
    this.smallSparedBefore = main.sparedParameters();
  }

  @Override
  public boolean hasNext() {
    if (ahead.isEmpty() && !flushed) {
      session.guard().enter();
      try {
        ahead = compute();
      } catch (RuntimeException | Error e) {
        failure = e;
        end(FinishReason.CANCELLED);
        flushed = true;
        session.finished(this);
        throw e;
      } finally {
        session.guard().exit();
      }
    }
    return ahead.isPresent();
  }

  @Override
  public Chunk next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the answer is complete");
    }
    Chunk out = ahead.get();
    ahead = Optional.empty();
    return out;
  }

  private Optional<Chunk> compute() {
    try {
      return advance();
    } catch (GraphException e) {
      throw session.model().failure(e);
    }
  }

  private Optional<Chunk> advance() {
    while (reason == null) {
      if (cancelled || !started && !prefill()) {
        end(FinishReason.CANCELLED);
        break;
      }
      if (mask != null && mask.isFinished()) {
        end(FinishReason.STOP);
        break;
      }
      long start = System.nanoTime();
      boolean isFirst = completionTokens == 0;
      if (shift != null && !shift()) {
        end(FinishReason.CANCELLED);
        break;
      }
      Optional<Chunk> chunk = step();
      long nanos = System.nanoTime() - start;
      if (isFirst) {
        prefillNanos += nanos;
      } else {
        decodeNanos += nanos;
      }
      if (chunk.isPresent()) {
        return chunk;
      }
    }
    return flush();
  }

  /** Runs the prompt; false if cancelled on the way. What has run stays in the cache. */
  private boolean prefill() {
    started = true;
    long start = System.nanoTime();
    PrefillEvent event = RecordedExecutable.isRecorded() ? new PrefillEvent() : null;
    if (event != null) {
      event.begin();
    }
    boolean isWhole = true;
    while (prompt.length - main.length() > main.chunk()) {
      if (cancelled) {
        isWhole = false;
        break;
      }
      main.append(prompt, main.length(), main.chunk(), Logits.NONE);
    }
    if (isWhole) {
      decoder.start(prompt, prompt.length);
      if (main == forward) {
        session.model().prefixes().put(forward, prompt);
      }
    }
    prefillNanos = System.nanoTime() - start;
    if (event != null) {
      event.promptTokens = prompt.length;
      event.reusedTokens = reused;
      event.commit();
    }
    return isWhole;
  }

  /** Makes room where there is none; false if cancelled on the way. */
  private boolean shift() {
    if (decoder.isFull()) {
      decoder.drop(shift.keep(), shift.discard(forward.capacity()));
      // Like a prompt: in chunks, between which the answer can be cancelled.
      while (decoder.catchUp(forward.chunk())) {
        if (cancelled) {
          return false;
        }
      }
    }
    return true;
  }

  /** One token; empty if it gave no chunk (it ended the answer). */
  private Optional<Chunk> step() {
    boolean isToken = RecordedExecutable.isRecorded() ? recordedStep() : decoder.next();
    if (!isToken) {
      end(FinishReason.LENGTH);
      return Optional.empty();
    }
    completionTokens++;
    if (decoder.finish() == AutoregressiveDecoder.Finish.STOP_TOKEN) {
      end(FinishReason.STOP);
      return Optional.empty();
    }
    int id = decoder.token();
    String out = stops.accept(stream.accept(id));
    List<TokenLogprob> logprobs = options.logprobs() < 0 ? List.of() : List.of(logprob(id));
    if (stops.matched()) {
      end(FinishReason.STOP);
      return out.isEmpty() ? Optional.empty() : Optional.of(chunk(List.of(), out, List.of()));
    }
    ids.add(id);
    if (mask != null && mask.isFinished()) {
      end(FinishReason.STOP);
      out += rest();
    } else if (decoder.finish() == AutoregressiveDecoder.Finish.MAX_TOKENS) {
      end(FinishReason.LENGTH);
      out += rest();
    }
    return Optional.of(new Chunk(List.of(id), ids.size() - 1, append(out), logprobs));
  }

  private boolean recordedStep() {
    DecodeCounters previous = cost();
    DecodeStepEvent event = new DecodeStepEvent();
    event.begin();
    boolean isToken = decoder.next();
    event.position = decoder.history().length() - (isToken ? 1 : 0);
    event.tokens = isToken ? 1 : 0;
    event.commit();
    DraftVerificationEvent.commit(previous, cost());
    return isToken;
  }

  private Chunk chunk(List<Integer> newIds, String out, List<TokenLogprob> logprobs) {
    return new Chunk(newIds, ids.size() - newIds.size(), append(out), logprobs);
  }

  private String append(String out) {
    text.append(out);
    return out;
  }

  /** Text that was withheld as undecided. */
  private String rest() {
    String out = stops.accept(stream.finish()) + stops.finish();
    flushed = true;
    return out;
  }

  private Optional<Chunk> flush() {
    if (flushed) {
      return Optional.empty();
    }
    String out = rest();
    return out.isEmpty() ? Optional.empty() : Optional.of(chunk(List.of(), out, List.of()));
  }

  private TokenLogprob logprob(int id) {
    LogProbabilities values = decoder.logProbabilities();
    List<Alternative> top = new ArrayList<>();
    for (int i = 0; i < values.alternatives(); i++) {
      top.add(new Alternative(values.alternative(i), values.alternativeLogProbability(i)));
    }
    return new TokenLogprob(id, values.of(id), top);
  }

  private DecodeCounters cost() {
    DecodeCounters now = forward.counters();
    DecodeCounters proposed = main.counters();
    boolean isRouted = main != forward;
    long routed = decoder.routed();
    long bytes = now.weights().bytes() - before.weights().bytes();
    // Without routing main is the same forward as before.
    long smallBytes = isRouted ? proposed.weights().bytes() - smallBefore.weights().bytes() : 0;
    long activated =
        completionTokens * main.parameters()
            + (isRouted ? routed * forward.parameters() : 0)
            - (forward.sparedParameters() - sparedBefore)
            - (isRouted ? main.sparedParameters() - smallSparedBefore : 0);
    UnitUse units = now.units().minus(before.units());
    if (isRouted) {
      units = units.plus(proposed.units().minus(smallBefore.units()));
    }
    WeightUse judged = isRouted ? options.routing().orElseThrow().router().cost() : WeightUse.NONE;
    WeightUse weights =
        new WeightUse(
            completionTokens,
            bytes + smallBytes + completionTokens * judged.bytes(),
            activated + completionTokens * judged.activated());
    if (isRouted) {
      return new DecodeCounters(
          now.forwards() - before.forwards(),
          now.rows() - before.rows(),
          now.headRows() - before.headRows() + proposed.headRows() - smallBefore.headRows(),
          now.bytesRead() - before.bytesRead() + proposed.bytesRead() - smallBefore.bytesRead(),
          completionTokens,
          completionTokens,
          0,
          completionTokens,
          completionTokens - routed,
          -1,
          proposed.forwards() - smallBefore.forwards(),
          proposed.rows() - smallBefore.rows(),
          weights,
          units);
    }
    return new DecodeCounters(
        now.forwards() - before.forwards(),
        now.rows() - before.rows(),
        now.headRows() - before.headRows(),
        now.bytesRead() - before.bytesRead(),
        completionTokens,
        completionTokens,
        0,
        0,
        0,
        -1,
        0,
        0,
        weights,
        units);
  }

  private void end(FinishReason why) {
    if (reason == null) {
      reason = why;
      forward.leave();
      main.leave();
      counters = cost();
      session.finished(this);
    }
  }

  @Override
  public void cancel() {
    cancelled = true;
  }

  @Override
  public Result result() {
    while (hasNext()) {
      next();
    }
    if (failure != null) {
      throw new IllegalStateException("the answer failed: " + failure.getMessage(), failure);
    }
    return new Result(
        text.toString(),
        List.copyOf(ids),
        reason,
        prompt.length,
        reused,
        completionTokens,
        dropped + decoder.dropped(),
        prefillNanos,
        decodeNanos,
        counters);
  }

  @Override
  public void close() {
    session.guard().enter();
    try {
      end(FinishReason.CANCELLED);
      if (!flushed) {
        append(rest());
      }
    } catch (GraphException e) {
      throw session.model().failure(e);
    } finally {
      session.guard().exit();
    }
  }
}
