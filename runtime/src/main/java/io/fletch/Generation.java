package io.fletch;

import io.fletch.sampling.DecodeCounters;
import java.util.Iterator;
import java.util.List;

/**
 * An answer being generated: an iterator of {@link Chunk}s, each computed when it is asked for, and
 * a {@link Result} at the end. Used by the session's thread; {@link #cancel()} may be called by any
 * thread, at any time and more than once. It is looked at before every token and between chunks of
 * the prompt, so it takes effect within one forward pass; the answer then ends with {@link
 * FinishReason#CANCELLED}. Closing it early cancels; the session stays usable and keeps what was
 * generated. It owns no native memory of its own.
 *
 * <p>A failure (a grammar that no token of the vocabulary can go on with, a device that is lost)
 * ends it: the call that meets it throws, {@link #hasNext} is false afterwards, and the session can
 * be used again unless the failure says otherwise. Interrupting the thread does not end it; a
 * program that wants this calls {@link #cancel()} when it interrupts.
 */
public interface Generation extends Iterator<Generation.Chunk>, AutoCloseable {
  /**
   * Newly committed tokens.
   *
   * @param ids token ids
   * @param position index of the first of them in the answer; autoregressive models count up,
   *     diffusion models may fill in anywhere, and give ids that stand behind the answer's end too
   * @param text text that is now final (possibly empty while a UTF-8 sequence or a stop string is
   *     undecided)
   * @param logprobs one per id if asked for, else empty
   */
  record Chunk(List<Integer> ids, int position, String text, List<TokenLogprob> logprobs) {}

  /**
   * Log-probability of a token.
   *
   * @param id the token
   * @param logprob natural logarithm of its probability under the model (before temperature)
   * @param top the most likely alternatives, best first
   */
  record TokenLogprob(int id, double logprob, List<Alternative> top) {}

  /** An alternative token with its log-probability. */
  record Alternative(int id, double logprob) {}

  /** Why a generation ended. */
  enum FinishReason {
    /** The model ended it, or a stop token or string was met. */
    STOP,
    /** Token limit or end of the context. */
    LENGTH,
    /** Cancelled. */
    CANCELLED
  }

  /**
   * What came out.
   *
   * @param text the whole answer
   * @param ids its tokens, without the one that ended it
   * @param finishReason why it ended
   * @param promptTokens tokens of the prompt that were used, reused ones included
   * @param reusedTokens prompt tokens whose keys and values were in the cache already
   * @param completionTokens tokens generated, an ending token included
   * @param droppedTokens tokens of prompt and answer that {@link ContextShift} dropped
   * @param prefillNanos time for the prompt
   * @param decodeNanos time for the answer after its first token
   * @param counters what it cost: forwards, rows, bytes, drafts
   */
  record Result(
      String text,
      List<Integer> ids,
      FinishReason finishReason,
      int promptTokens,
      int reusedTokens,
      int completionTokens,
      int droppedTokens,
      long prefillNanos,
      long decodeNanos,
      DecodeCounters counters) {
    /** Forward passes over the model's weights. */
    public long forwards() {
      return counters.forwards();
    }
  }

  /** Asks for the end; takes effect before the next step. Any thread. */
  void cancel();

  /**
   * Generates what is left and returns the result.
   *
   * @throws IllegalStateException if {@link #hasNext} or {@link #next} has thrown what made the
   *     generation fail, which is the cause
   */
  Result result();

  @Override
  void close();
}
