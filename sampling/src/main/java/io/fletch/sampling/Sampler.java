package io.fletch.sampling;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.function.IntPredicate;

/**
 * Draws a token from a row of logits: a chain of {@link SamplerStep}s and a counter-based draw. The
 * order is that of llama.cpp: penalties, bias, DRY, the application's own steps, grammar mask,
 * top-n-sigma, top-k, typical-p, top-p, min-p, XTC, temperature, draw; with Mirostat the
 * temperature comes first and replaces the other filters. The result is a function of (logits,
 * history, options, mask), with Mirostat also of the surprise of the tokens drawn so far: equal
 * inputs give equal tokens on every machine that computes equal logits. After construction nothing
 * is allocated, apart from DRY's memory for a longer history. Belongs to one decoder; not
 * thread-safe.
 */
public final class Sampler {
  private final SamplingOptions options;
  private final TokenCandidates candidates;
  private final List<SamplerStep> edits = new ArrayList<>();
  private final List<SamplerStep> filters = new ArrayList<>();
  private final boolean argmaxOnly;
  private final int leading;

  /** Null without Mirostat. */
  private MirostatStep mirostat;

  private final long[] bits;

  private Sampler(
      SamplingOptions options, int vocabulary, List<SamplerStep> more, IntPredicate breaks) {
    this.options = Objects.requireNonNull(options, "options");
    check(options, vocabulary);
    candidates = new TokenCandidates(vocabulary);
    bits = new long[(vocabulary + 63) >> 6];
    boolean penalties =
        options.penaltyWindow() != 0
            && (options.repetitionPenalty() != 1
                || options.frequencyPenalty() != 0
                || options.presencePenalty() != 0);
    if (penalties) {
      edits.add(
          SamplerStep.penalties(
              vocabulary,
              options.repetitionPenalty(),
              options.frequencyPenalty(),
              options.presencePenalty(),
              options.penaltyWindow()));
    }
    if (!options.logitBias().isEmpty()) {
      edits.add(SamplerStep.bias(edits(options.logitBias())));
    }
    SamplerExtras extras = options.extras();
    extras.dry().ifPresent(dry -> edits.add(new DryStep(vocabulary, dry, breaks)));
    edits.addAll(more);
    if (options.temperature() > 0) {
      if (extras.mirostat().isPresent()) {
        addTemperature();
        mirostat = new MirostatStep(extras.mirostat().get());
        filters.add(mirostat);
      } else {
        addFilters();
        addTemperature();
      }
    }
    argmaxOnly = options.temperature() == 0 && edits.isEmpty() && filters.isEmpty();
    boolean topFirst =
        options.temperature() > 0
            && edits.isEmpty()
            && extras.mirostat().isEmpty()
            && extras.topNSigma() == 0;
    leading = topFirst ? options.topK() : 0;
  }

  private void addFilters() {
    SamplerExtras extras = options.extras();
    if (extras.topNSigma() > 0) {
      filters.add((candidates, history) -> candidates.keepSigma(extras.topNSigma()));
    }
    if (options.topK() > 0) {
      filters.add(SamplerStep.topK(options.topK()));
    }
    if (extras.typicalP() < 1) {
      filters.add((candidates, history) -> candidates.keepTypical(extras.typicalP()));
    }
    if (options.topP() < 1) {
      filters.add(SamplerStep.topP(options.topP()));
    }
    if (options.minP() > 0) {
      filters.add(SamplerStep.minP(options.minP()));
    }
    extras.xtc().ifPresent(xtc -> filters.add((c, h) -> excludeTop(xtc, c, h)));
  }

  private void excludeTop(SamplerExtras.Xtc xtc, TokenCandidates c, TokenHistory history) {
    double u =
        CounterRandom.uniform(options.seed(), CounterRandom.EXCLUDE_TOP, history.length(), 0, 0);
    if (u < xtc.probability()) {
      c.excludeTop(xtc.threshold());
    }
  }

  private void addTemperature() {
    float t = options.temperature();
    Optional<SamplerExtras.DynamicTemperature> dynamic = options.extras().dynamicTemperature();
    if (dynamic.isPresent()) {
      float range = dynamic.get().range();
      float exponent = dynamic.get().exponent();
      double low = Math.max(0, t - range);
      filters.add((c, history) -> c.scaleByEntropy(low, t + range, exponent));
    } else if (t != 1) {
      filters.add(SamplerStep.temperature(t));
    }
  }

  /** Mirostat 2: the bound follows the surprise of what was drawn. */
  private static final class MirostatStep implements SamplerStep {
    private final SamplerExtras.Mirostat options;
    private double bound;
    private int next = -1;

    MirostatStep(SamplerExtras.Mirostat options) {
      this.options = options;
    }

    @Override
    public void apply(TokenCandidates candidates, TokenHistory history) {
      if (history.length() != next) {
        // Another text: what was learnt about the one before does not count.
        bound = 2 * options.tau();
        next = history.length();
      }
      candidates.keepSurprise(bound);
    }

    void drawn(double surprise) {
      bound -= options.eta() * (surprise - options.tau());
      next++;
    }
  }

  /**
   * Checks options for a vocabulary, as making a sampler does.
   *
   * @throws IllegalArgumentException if a bias is for a token that is not in it
   */
  public static void check(SamplingOptions options, int vocabulary) {
    for (int id : options.logitBias().keySet()) {
      if (id >= vocabulary) {
        throw new IllegalArgumentException(
            "logit bias: token expected=below " + vocabulary + " actual=" + id);
      }
    }
  }

  private static LogitEdits edits(Map<Integer, Float> bias) {
    int[] ids = bias.keySet().stream().mapToInt(Integer::intValue).sorted().toArray();
    float[] addends = new float[ids.length];
    for (int i = 0; i < ids.length; i++) {
      addends[i] = bias.get(ids[i]);
    }
    return LogitEdits.of(ids, addends);
  }

  /** The chain that the options describe. */
  public static Sampler of(SamplingOptions options, int vocabulary) {
    return of(options, vocabulary, List.of());
  }

  /** The chain that the options describe, with further steps in front of its filters. */
  public static Sampler of(SamplingOptions options, int vocabulary, List<SamplerStep> more) {
    return of(options, vocabulary, more, token -> false);
  }

  /**
   * The chain that the options describe, with further steps in front of its filters.
   *
   * @param breaks whether DRY's repetitions do not run across a token: its text contains one of the
   *     {@link SamplerExtras.Dry#breakers}
   */
  public static Sampler of(
      SamplingOptions options, int vocabulary, List<SamplerStep> more, IntPredicate breaks) {
    return new Sampler(options, vocabulary, more, breaks);
  }

  /** The options. */
  public SamplingOptions options() {
    return options;
  }

  /** Number of logits of a row. */
  public int vocabulary() {
    return candidates.vocabulary();
  }

  /**
   * Whether the result is the token with the largest logit and nothing else matters, so that a
   * decoder need not fetch the logits.
   */
  public boolean isArgmax() {
    return argmaxOnly;
  }

  /**
   * How many of the largest logits decide, as the chain begins with keeping these; 0 if others
   * matter too. A decoder need fetch no more.
   */
  public int leading() {
    return leading;
  }

  /**
   * Draws from the {@link #leading} largest logits what {@link #sample(float[], TokenHistory)}
   * would from all.
   *
   * @param ids ascending; of equal logits the lowest ids
   */
  int sample(int[] ids, float[] logits, TokenHistory history) {
    candidates.load(ids, logits);
    run(filters, history);
    return learn(draw(history, 0));
  }

  /**
   * Draws without a grammar.
   *
   * @param logits at least the vocabulary's length; not changed
   * @param history tokens so far; its length keys the draw
   * @throws SamplingException if a logit is NaN or positive infinity, or no token is left
   */
  public int sample(float[] logits, TokenHistory history) {
    prepare(logits, history, null);
    return learn(draw(history, 0));
  }

  /**
   * The token that {@link #sample} would give, without any trace: neither is it committed to the
   * grammar nor does Mirostat learn from it.
   *
   * @param mask null without a grammar
   */
  int propose(float[] logits, TokenHistory history, TokenMask mask) {
    if (mask == null) {
      prepare(logits, history, null);
      return candidates.id(draw(history, 0));
    }
    return candidates.id(drawUnder(logits, history, mask));
  }

  /**
   * Draws under a grammar and commits the token to it: a token that fails the exact check is
   * forbidden and the chain runs again.
   *
   * @throws SamplingException also if the grammar has no way on
   */
  public int sample(float[] logits, TokenHistory history, TokenMask mask) {
    int index = drawUnder(logits, history, mask);
    mask.commit(candidates.id(index));
    return learn(index);
  }

  /** Index of a token that the grammar's exact check accepts. */
  private int drawUnder(float[] logits, TokenHistory history, TokenMask mask) {
    long[] allowed = mask.allowed();
    if (allowed.length < bits.length) {
      throw new IllegalArgumentException(
          "mask words: expected=" + bits.length + " actual=" + allowed.length);
    }
    System.arraycopy(allowed, 0, bits, 0, bits.length);
    for (int attempt = 0; ; attempt++) {
      prepare(logits, history, bits);
      int index = draw(history, attempt);
      int token = candidates.id(index);
      if (mask.check(token)) {
        return index;
      }
      bits[token >> 6] &= ~(1L << token);
    }
  }

  /** The token at an index; Mirostat learns its surprise. */
  private int learn(int index) {
    if (mirostat != null) {
      mirostat.drawn(candidates.surprise(index));
    }
    return candidates.id(index);
  }

  private void prepare(float[] logits, TokenHistory history, long[] mask) {
    candidates.load(logits);
    run(edits, history);
    if (mask != null) {
      candidates.retain(mask);
    }
    run(filters, history);
  }

  private void run(List<SamplerStep> steps, TokenHistory history) {
    for (int i = 0; i < steps.size(); i++) {
      steps.get(i).apply(candidates, history);
    }
  }

  private int draw(TokenHistory history, int attempt) {
    int index =
        options.temperature() == 0
            ? candidates.best()
            : candidates.draw(
                CounterRandom.uniform(
                    options.seed(), CounterRandom.AUTOREGRESSIVE, history.length(), attempt, 0));
    if (index < 0) {
      throw new SamplingException(
          "no token may follow at position "
              + history.length()
              + ": candidates="
              + candidates.size()
              + " of "
              + candidates.vocabulary()
              + ", all forbidden by logits, bias or grammar");
    }
    return index;
  }
}
