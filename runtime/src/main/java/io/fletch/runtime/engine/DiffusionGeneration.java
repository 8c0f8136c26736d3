package io.fletch.runtime.engine;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Tokenizer;
import io.fletch.graph.GraphException;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.DecodeTrace;
import io.fletch.sampling.DiffusionDecoder;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Queue;

/**
 * An answer of a diffusion model. Each step's tokens come as chunks of neighbours wherever they are
 * in the answer; text comes with the chunk that closes the gap in front of it, and only up to the
 * token that ends the answer. Where a schedule may still change what it has committed (editing,
 * several streams) tokens and text come at the end.
 */
final class DiffusionGeneration implements Generation {
  private final DiffusionSession session;
  private final DiffusionDecoder decoder;
  private final int[] prompt;
  private final int[] stopTokens;
  private final int limit;
  private final boolean streams;
  private final boolean withLogprobs;
  private final Tokenizer.StreamDecoder stream;
  private final StopStrings stops;
  private final Queue<Chunk> ready = new ArrayDeque<>();

  /** The answer region; -1 where nothing is committed. */
  private final List<Integer> answer = new ArrayList<>();

  private final StringBuilder text = new StringBuilder();
  private volatile boolean cancelled;
  private boolean started;
  private FinishReason reason;
  private Throwable failure;

  /** Tokens of the answer whose text has come out. */
  private int read;

  private boolean ended;
  private DecodeCounters counters = new DecodeCounters(0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0);
  private long prefillNanos;
  private long decodeNanos;

  /**
   * Prepares; nothing runs yet.
   *
   * @param length masks of the canvas
   * @param limit most tokens of the answer
   * @param streams whether committed tokens are final
   */
  DiffusionGeneration(
      DiffusionSession session,
      DiffusionDecoder decoder,
      int[] prompt,
      int[] stopTokens,
      int length,
      int limit,
      boolean streams,
      GenerationOptions options) {
    this.session = session;
    this.decoder = decoder;
    this.prompt = prompt;
    this.stopTokens = stopTokens;
    this.limit = Math.min(limit, length);
    this.streams = streams;
    this.withLogprobs = options.logprobs() >= 0;
    this.stream = session.model().tokenizer().streamDecoder();
    this.stops = new StopStrings(options.stopStrings());
    for (int i = 0; i < length; i++) {
      answer.add(-1);
    }
  }

  @Override
  public boolean hasNext() {
    if (ready.isEmpty() && reason == null) {
      session.guard().enter();
      try {
        while (ready.isEmpty() && reason == null) {
          compute();
        }
      } catch (RuntimeException | Error e) {
        failure = e;
        end(FinishReason.CANCELLED);
        throw e;
      } finally {
        session.guard().exit();
      }
    }
    return !ready.isEmpty();
  }

  @Override
  public Chunk next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the answer is complete");
    }
    return ready.remove();
  }

  private void compute() {
    try {
      advance();
    } catch (GraphException e) {
      throw session.model().failure(e);
    }
  }

  private void advance() {
    if (cancelled) {
      flush(FinishReason.CANCELLED);
      return;
    }
    long start = System.nanoTime();
    DecodeStepEvent event = RecordedExecutable.isRecorded() ? new DecodeStepEvent() : null;
    if (event != null) {
      event.begin();
    }
    boolean isFirst = !started;
    if (isFirst) {
      started = true;
      decoder.start(prompt);
    }
    boolean isStep = decoder.next();
    DecodeCounters previous = counters;
    counters = decoder.counters();
    if (event != null) {
      event.position = prompt.length;
      event.tokens = isStep ? decoder.latest().offsets().size() : 0;
      event.commit();
      DraftVerificationEvent.commit(previous, counters);
    }
    long nanos = System.nanoTime() - start;
    if (isFirst) {
      prefillNanos += nanos;
    } else {
      decodeNanos += nanos;
    }
    if (isStep && streams) {
      take(decoder.latest());
    }
    if (reason == null && decoder.finished()) {
      if (!streams) {
        takeAll(decoder.output());
      }
      if (reason == null) {
        flush(ended ? FinishReason.STOP : FinishReason.LENGTH);
      }
    }
  }

  private void takeAll(int[] output) {
    List<Integer> ids = new ArrayList<>();
    for (int i = 0; i < Math.min(output.length, answer.size()); i++) {
      answer.set(i, output[i]);
      ids.add(output[i]);
    }
    emit(ids, 0, List.of());
  }

  /** Turns a step into chunks of neighbours. */
  private void take(DecodeTrace.Step step) {
    List<Integer> order = new ArrayList<>();
    for (int i = 0; i < step.offsets().size(); i++) {
      answer.set(step.offsets().get(i), step.tokens().get(i));
      order.add(i);
    }
    order.sort((a, b) -> Integer.compare(step.offsets().get(a), step.offsets().get(b)));
    for (int from = 0; from < order.size() && reason == null; ) {
      int first = step.offsets().get(order.get(from));
      List<Integer> ids = new ArrayList<>();
      List<TokenLogprob> logprobs = new ArrayList<>();
      while (from < order.size() && step.offsets().get(order.get(from)) == first + ids.size()) {
        int at = order.get(from++);
        int id = step.tokens().get(at);
        ids.add(id);
        if (withLogprobs) {
          logprobs.add(new TokenLogprob(id, Math.log(step.confidences().get(at)), List.of()));
        }
      }
      emit(ids, first, logprobs);
    }
  }

  private void emit(List<Integer> ids, int position, List<TokenLogprob> logprobs) {
    String out = newText();
    text.append(out);
    ready.add(new Chunk(List.copyOf(ids), position, out, logprobs));
    if (stops.matched()) {
      end(FinishReason.STOP);
    }
  }

  /** Text of the tokens that are committed without a gap and not read yet. */
  private String newText() {
    StringBuilder out = new StringBuilder();
    while (!ended && !stops.matched() && read < limit && answer.get(read) >= 0) {
      int id = answer.get(read++);
      if (Arrays.binarySearch(stopTokens, id) >= 0) {
        ended = true;
      } else {
        out.append(stops.accept(stream.accept(id)));
      }
    }
    return out.toString();
  }

  private void flush(FinishReason why) {
    String out = stops.accept(stream.finish()) + stops.finish();
    if (!out.isEmpty()) {
      text.append(out);
      ready.add(new Chunk(List.of(), read, out, List.of()));
    }
    end(why);
  }

  private void end(FinishReason why) {
    if (reason == null) {
      reason = why;
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
    int count = ended || stops.matched() ? read - 1 : read;
    if (failure != null) {
      throw new IllegalStateException("the answer failed: " + failure.getMessage(), failure);
    }
    return new Result(
        text.toString(),
        List.copyOf(answer.subList(0, Math.max(0, count))),
        reason,
        prompt.length,
        0,
        read,
        0,
        prefillNanos,
        decodeNanos,
        counters);
  }

  @Override
  public void close() {
    session.guard().enter();
    try {
      if (reason == null) {
        flush(FinishReason.CANCELLED);
      }
      ready.clear();
    } catch (GraphException e) {
      throw session.model().failure(e);
    } finally {
      session.guard().exit();
    }
  }
}
