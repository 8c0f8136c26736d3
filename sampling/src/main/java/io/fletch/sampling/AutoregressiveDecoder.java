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
 * With a {@link TokenRouting} the decoder's model is the small one: it proposes every token and its
 * cache is always complete, while the large model's lags until a token is routed to it. Draws are
 * keyed by position, so a threshold of 0 gives the tokens of the large model alone and one of
 * infinity those of the small one.
 *
 * <p>After warm-up {@link #next()} allocates nothing. Belongs to one thread at a time.
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

  /** Null without a large model. */
  private final TokenRouting routing;

  /** Null unless the router reads hidden states. */
  private float[] hidden;

  /** The latest scores, a ring; null unless routing holds on. */
  private final double[] scores;

  private long judged;
  private long routed;
  private boolean latestIsRouted;
  private int prompt = -1;

  /**
   * The cache holds the history without the {@code dropped} tokens behind the first {@code kept}.
   */
  private int kept;

  private int dropped;
  private int token = -1;
  private Finish finish = Finish.NONE;

  /** The largest logits, where no others matter; null otherwise. */
  private final int[] topIds;

  private final float[] topLogits;

  private AutoregressiveDecoder(
      CausalForward model,
      Sampler sampler,
      AutoregressiveOptions options,
      TokenMask mask,
      TokenRouting routing) {
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
    logprobs =
        options.logprobs() < 0
            ? null
            : new LogProbabilities(Math.min(options.logprobs(), model.vocabulary()));
    this.routing = routing;
    if (routing != null) {
      if (routing.large().vocabulary() != model.vocabulary()) {
        throw new IllegalArgumentException(
            "vocabulary of the large model: expected="
                + model.vocabulary()
                + " actual="
                + routing.large().vocabulary());
      }
      if (sampler.options().extras().mirostat().isPresent()) {
        throw new IllegalArgumentException(
            "token routing cannot be combined with mirostat: its bound belongs to one model");
      }
    }
    scores = routing == null || routing.hold() == 0 ? null : new double[routing.hold()];
    int width = routing == null ? 0 : routing.router().hiddenWidth();
    if (width > 0) {
      if (width != model.hiddenWidth()) {
        throw new IllegalArgumentException(
            "hidden width of the small model: expected="
                + width
                + " actual="
                + model.hiddenWidth());
      }
      hidden = new float[width];
      model.keepHidden();
    }
    boolean needsLogits =
        routing != null || mask != null || logprobs != null || !sampler.isArgmax();
    logits = needsLogits ? new float[model.vocabulary()] : null;
    boolean few =
        routing == null
            && mask == null
            && logprobs == null
            && sampler.leading() > 0
            && sampler.leading() <= model.vocabulary() / 4;
    topIds = few ? new int[sampler.leading()] : null;
    topLogits = few ? new float[sampler.leading()] : null;
  }

  /** A decoder without a grammar. */
  public static AutoregressiveDecoder of(
      CausalForward model, Sampler sampler, AutoregressiveOptions options) {
    return new AutoregressiveDecoder(model, sampler, options, null, null);
  }

  /** A decoder under a grammar, which is in the state behind the prompt. */
  public static AutoregressiveDecoder of(
      CausalForward model, Sampler sampler, AutoregressiveOptions options, TokenMask mask) {
    return new AutoregressiveDecoder(
        model, sampler, options, Objects.requireNonNull(mask, "mask"), null);
  }

  /**
   * A decoder that routes tokens to a large model.
   *
   * @param small proposes every token
   * @param mask null without a grammar
   * @throws IllegalArgumentException if the vocabularies differ
   */
  public static AutoregressiveDecoder routed(
      CausalForward small,
      TokenRouting routing,
      Sampler sampler,
      AutoregressiveOptions options,
      TokenMask mask) {
    return new AutoregressiveDecoder(
        small, sampler, options, mask, Objects.requireNonNull(routing, "routing"));
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
    if (routing != null) {
      CausalForward large = routing.large();
      if (count > large.capacity()) {
        throw new IllegalArgumentException(
            "prompt length: expected=at most the large model's context "
                + large.capacity()
                + " actual="
                + count);
      }
      // Its last token must run again, for its logits.
      large.truncate(Math.min(large.length(), count - 1));
      routed = 0;
      judged = 0;
      latestIsRouted = false;
    }
    history.truncate(0);
    dropped = 0;
    for (int i = 0; i < count; i++) {
      history.add(ids[i]);
    }
    prompt = count;
    token = -1;
    finish = Finish.NONE;
    model.expectArgmax(0);
    model.expectRead(
        logits == null ? 0 : topIds == null ? CausalForward.WHOLE_ROWS : topIds.length);
    model.append(ids, kept, count - kept, CausalForward.Logits.LAST);
    // The last token is not appended any more.
    int most = options.maxTokens() > 0 ? options.maxTokens() - 1 : Integer.MAX_VALUE;
    model.expectArgmax(logits == null ? most : 0);
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
    int missing = history.length() - dropped - model.length();
    if (missing > 0) {
      if (isFull()) {
        finish = Finish.CONTEXT;
        return false;
      }
      // What was dropped lies before the end of the cache.
      model.append(history.array(), model.length() + dropped, missing, CausalForward.Logits.LAST);
    }
    token = routing == null ? sample(model.logitRows() - 1) : route(model.logitRows() - 1);
    history.add(token);
    if (options.stops(token)) {
      finish = Finish.STOP_TOKEN;
    } else if (options.maxTokens() > 0 && generated() >= options.maxTokens()) {
      finish = Finish.MAX_TOKENS;
    }
    return true;
  }

  /** Whether the latest token does not fit into the context, so that the next step would end. */
  public boolean isFull() {
    return finish == Finish.NONE && history.length() - dropped > context();
  }

  /**
   * Makes room: drops the {@code count} tokens behind the first {@code keep} of the context, and
   * everything behind them from the model's cache, whose keys belong to other positions. {@link
   * #catchUp} or the next step runs what is left of it again.
   *
   * @throws IllegalArgumentException if the context does not hold so many and one more
   * @throws IllegalStateException with token routing, whose models may be at different tokens
   */
  public void drop(int keep, int count) {
    int length = history.length() - dropped;
    if (keep < 0 || count < 1 || keep + count >= length) {
      throw new IllegalArgumentException(
          "dropped tokens: expected=[keep, keep + count) within [0, "
              + (length - 1)
              + ") actual: keep="
              + keep
              + " count="
              + count);
    }
    if (routing != null) {
      throw new IllegalStateException("token routing excludes dropping tokens");
    }
    if (dropped > 0 && keep != kept) {
      throw new IllegalArgumentException("kept tokens: expected=" + kept + " actual=" + keep);
    }
    kept = keep;
    model.truncate(Math.min(model.length(), keep));
    dropped += count;
  }

  /**
   * Runs up to {@code most} of the tokens that the cache lacks, without logits.
   *
   * @return whether the next step has more than its own token to run
   */
  public boolean catchUp(int most) {
    int missing = history.length() - dropped - model.length() - 1;
    int n = Math.min(missing, most);
    if (n > 0) {
      model.append(history.array(), model.length() + dropped, n, CausalForward.Logits.NONE);
    }
    return missing > n;
  }

  /** Tokens of prompt and answer that were dropped. */
  public int dropped() {
    return dropped;
  }

  /** Tokens that every model of the decoder can hold. */
  private int context() {
    return routing == null
        ? model.capacity()
        : Math.min(model.capacity(), routing.large().capacity());
  }

  /** Proposes, judges, and draws from the large model where the router says so. */
  private int route(int row) {
    model.logits(row, logits);
    int candidate = sampler.propose(logits, history, mask);
    if (hidden != null) {
      model.hidden(row, hidden);
    }
    double score = routing.router().score(logits, model.vocabulary(), candidate, hidden);
    CausalForward large = routing.large();
    note(score);
    latestIsRouted = score >= routing.threshold() || holds();
    if (latestIsRouted) {
      int length = large.length();
      large.append(history.array(), length, history.length() - length, CausalForward.Logits.LAST);
      large.logits(large.logitRows() - 1, logits);
      candidate = sampler.propose(logits, history, mask);
      routed++;
    }
    if (logprobs != null) {
      logprobs.set(logits, model.vocabulary());
    }
    if (mask != null) {
      mask.commit(candidate);
    }
    return candidate;
  }

  private void note(double score) {
    if (scores != null) {
      scores[(int) (judged % scores.length)] = score;
      judged++;
    }
  }

  /** Whether the large model, which gave the token before, goes on (hysteresis). */
  private boolean holds() {
    if (scores == null || !latestIsRouted) {
      return false;
    }
    int n = (int) Math.min(judged, scores.length);
    double sum = 0;
    for (int i = 0; i < n; i++) {
      sum += scores[i];
    }
    return sum / n >= routing.threshold();
  }

  /** Tokens since {@link #start} that the large model gave. */
  public long routed() {
    return routed;
  }

  /** Whether the large model gave the latest token. */
  public boolean isRouted() {
    return latestIsRouted;
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
    if (topIds != null && model.top(row, topIds, topLogits)) {
      return sampler.sample(topIds, topLogits, history);
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
