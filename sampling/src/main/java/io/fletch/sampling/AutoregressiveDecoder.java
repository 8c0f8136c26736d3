package io.fletch.sampling;

import java.util.Objects;

/**
 * The plain decoding loop: a prompt in, one token out per step. It knows nothing of text. Each step
 * runs the model on the tokens that its cache is missing (specs/autoregressive.md P2), so a caller
 * may have kept any prefix in the cache. The token of the latest step is not in the cache yet.
 *
 * <pre>{@code
 * decoder.start(prompt, prompt.length);
 * while (decoder.next()) {
 *   use(decoder.token());
 * }
 * }</pre>
 *
 * After warm-up {@link #next()} allocates nothing. Belongs to one thread at a time.
 */
public final class AutoregressiveDecoder {
  /** Why a decoder has ended. */
  public enum Finish {
    /** It has not. */
    NONE,
    /** A stop token was generated. */
    STOP_TOKEN,
    /** As many tokens as asked for. */
    MAX_TOKENS,
    /** The model's context is full. */
    CONTEXT
  }

  private final CausalForward model;
  private final Sampler sampler;
  private final AutoregressiveOptions options;
  private final TokenMask mask;
  private final TokenHistory history;
  private final LogProbabilities logprobs;
  private final float[] logits;
  private int prompt = -1;
  private int token = -1;
  private Finish finish = Finish.NONE;

  private AutoregressiveDecoder(
      CausalForward model, Sampler sampler, AutoregressiveOptions options, TokenMask mask) {
    this.model = Objects.requireNonNull(model, "model");
    this.sampler = Objects.requireNonNull(sampler, "sampler");
    this.options = Objects.requireNonNull(options, "options");
    this.mask = mask;
    if (model.vocabulary() != sampler.vocabulary()) {
      throw new IllegalArgumentException(
          "vocabulary of the sampler: expected="
              + model.vocabulary()
              + " actual="
              + sampler.vocabulary());
    }
    history = new TokenHistory(model.capacity() + 1);
    logprobs = options.logprobs() < 0 ? null : new LogProbabilities(options.logprobs());
    boolean needsLogits = mask != null || logprobs != null || !sampler.isArgmax();
    logits = needsLogits ? new float[model.vocabulary()] : null;
  }

  /** A decoder without a grammar. */
  public static AutoregressiveDecoder of(
      CausalForward model, Sampler sampler, AutoregressiveOptions options) {
    return new AutoregressiveDecoder(model, sampler, options, null);
  }

  /** A decoder under a grammar, which is in the state behind the prompt. */
  public static AutoregressiveDecoder of(
      CausalForward model, Sampler sampler, AutoregressiveOptions options, TokenMask mask) {
    return new AutoregressiveDecoder(model, sampler, options, Objects.requireNonNull(mask, "mask"));
  }

  /**
   * Takes the first {@code count} ids as prompt. The model's cache must hold a proper prefix of it
   * (nothing, or what an earlier turn left and the caller has cut to the common part); the rest is
   * run now.
   *
   * @throws IllegalArgumentException if the prompt is empty, not longer than the cache's content,
   *     or longer than the context
   */
  public void start(int[] ids, int count) {
    int kept = model.length();
    if (count <= kept || count > ids.length || count > model.capacity()) {
      throw new IllegalArgumentException(
          "prompt length: expected=in ["
              + (kept + 1)
              + ", "
              + Math.min(ids.length, model.capacity())
              + "] actual="
              + count);
    }
    for (int i = 0; i < count; i++) {
      if (ids[i] < 0 || ids[i] >= model.vocabulary()) {
        throw new IllegalArgumentException(
            "prompt token " + i + ": expected=in [0, " + model.vocabulary() + ") actual=" + ids[i]);
      }
    }
    history.truncate(0);
    for (int i = 0; i < count; i++) {
      history.add(ids[i]);
    }
    prompt = count;
    token = -1;
    finish = Finish.NONE;
    model.append(ids, kept, count - kept, CausalForward.Logits.LAST);
  }

  /**
   * Generates one token.
   *
   * @return false if the decoder had ended before; {@link #finish()} says why
   * @throws SamplingException if the logits are not numbers or no token may follow
   */
  public boolean next() {
    if (prompt < 0) {
      throw new IllegalStateException("start(...) has not been called");
    }
    if (finish != Finish.NONE) {
      return false;
    }
    int missing = history.length() - model.length();
    if (missing > 0) {
      if (history.length() > model.capacity()) {
        finish = Finish.CONTEXT;
        return false;
      }
      model.append(history.array(), model.length(), missing, CausalForward.Logits.LAST);
    }
    token = sample(model.logitRows() - 1);
    history.add(token);
    if (options.stops(token)) {
      finish = Finish.STOP_TOKEN;
    } else if (options.maxTokens() > 0 && generated() >= options.maxTokens()) {
      finish = Finish.MAX_TOKENS;
    }
    return true;
  }

  private int sample(int row) {
    if (logits == null) {
      int best = model.argmax(row);
      if (best < 0 || best >= model.vocabulary()) {
        throw new SamplingException(
            "logits have no maximum at position " + history.length() + ": argmax=" + best);
      }
      return best;
    }
    model.logits(row, logits);
    if (logprobs != null) {
      logprobs.set(logits, model.vocabulary());
    }
    return mask == null ? sampler.sample(logits, history) : sampler.sample(logits, history, mask);
  }

  /** The token of the latest step. */
  public int token() {
    if (token < 0) {
      throw new IllegalStateException("no token yet: next() has not been called");
    }
    return token;
  }

  /** Tokens so far: the prompt and what was generated. */
  public TokenHistory history() {
    return history;
  }

  /** Tokens of the prompt. */
  public int promptLength() {
    return prompt;
  }

  /** Tokens generated, a stop token included. */
  public int generated() {
    return history.length() - prompt;
  }

  /** Why it ended; {@link Finish#NONE} while it has not. */
  public Finish finish() {
    return finish;
  }

  /**
   * Log-probabilities of the row that the latest token was drawn from; valid until the next step.
   *
   * @throws IllegalStateException if the options do not ask for them
   */
  public LogProbabilities logProbabilities() {
    if (logprobs == null) {
      throw new IllegalStateException("log-probabilities were not asked for: logprobs=-1");
    }
    return logprobs;
  }
}
