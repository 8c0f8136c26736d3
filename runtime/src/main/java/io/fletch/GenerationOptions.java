package io.fletch;

import io.fletch.sampling.DiffusionOptions;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplerStep;
import io.fletch.sampling.SamplingOptions;
import io.fletch.sampling.support.Ranges;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.function.Consumer;

/**
 * How an answer is generated.
 *
 * @param sampling temperature, filters, penalties and the seed, which is fixed unless you choose
 *     one: the same prompt then gets the same answer; greedy by {@code SamplingOptions.greedy()}
 * @param maxTokens most tokens of the answer; 0 for what the context still holds
 * @param stopStrings texts that end the answer (and are not part of it)
 * @param stopTokens ids that end the answer, besides the model's own; ids of the model
 * @param ignoreEnd go on after end-of-generation tokens
 * @param logprobs number of alternatives to report per token, no more than the vocabulary has; 0
 *     for the token's own alone, -1 for none
 * @param diffusion how a diffusion model decodes; empty for low-confidence unmasking in blocks of
 *     16, one token per step, with the temperature, top-k, top-p and seed of {@code sampling}. Not
 *     for autoregressive models. {@code DiffusionTechnique.parse("fast", model.diffusion().get(),
 *     64)} and {@code DiffusionPresets} make them from text
 * @param guide the autoregressive model that judges drafts in guided diffusion ({@code
 *     Search.Guided}); it must have the same tokenizer and stay open. Needed there, refused
 *     elsewhere
 * @param grammar what the answer must be a text of; empty for no constraint. The answer then ends
 *     where the grammar does, or at an end token where its text is complete; one that is cut off by
 *     {@code maxTokens}, a stop string or the context is the beginning of such a text. Not for
 *     diffusion models
 * @param routing a small model that proposes tokens; empty to draw all from the session's own. Not
 *     for diffusion models
 * @param units other policies than those that the model was opened with: with other thresholds, or
 *     none for an answer by all units; empty for the model's
 * @param contextShift goes on where the context is full, by dropping old tokens; {@code maxTokens}
 *     0 is then no limit. Empty to end with {@link Generation.FinishReason#LENGTH}. Not for
 *     diffusion models, and not together with routing or unit policies
 * @param samplerSteps the application's own changes of logits and candidates, applied to every
 *     token in this order: behind penalties, bias and DRY, before the grammar and the filters of
 *     {@code sampling}. Called by the thread that reads the answer; a step with memory of its own
 *     belongs to one answer. Not for diffusion models
 */
public record GenerationOptions(
    SamplingOptions sampling,
    int maxTokens,
    List<String> stopStrings,
    List<Integer> stopTokens,
    boolean ignoreEnd,
    int logprobs,
    Optional<DiffusionOptions> diffusion,
    Optional<Model> guide,
    Optional<Grammar> grammar,
    Optional<Routing> routing,
    Optional<List<UnitPolicy>> units,
    Optional<ContextShift> contextShift,
    List<SamplerStep> samplerSteps) {
  /** Copies and checks. */
  public GenerationOptions {
    Objects.requireNonNull(sampling, "sampling");
    Objects.requireNonNull(diffusion, "diffusion");
    Objects.requireNonNull(guide, "guide");
    Objects.requireNonNull(grammar, "grammar");
    Objects.requireNonNull(routing, "routing");
    Objects.requireNonNull(contextShift, "contextShift");
    units = units.map(List::copyOf);
    stopStrings = List.copyOf(Objects.requireNonNull(stopStrings, "stopStrings"));
    stopTokens = List.copyOf(Objects.requireNonNull(stopTokens, "stopTokens"));
    samplerSteps = List.copyOf(Objects.requireNonNull(samplerSteps, "samplerSteps"));
    for (int id : stopTokens) {
      Ranges.check("stopTokens", id, id >= 0, ">= 0");
    }
    Ranges.check("maxTokens", maxTokens, maxTokens >= 0, ">= 0 (0 for no limit)");
    Ranges.check("logprobs", logprobs, logprobs >= -1, ">= -1 (-1 for none)");
    Ranges.check(
        "stopStrings",
        stopStrings,
        stopStrings.stream().noneMatch(String::isEmpty),
        "no empty text");
  }

  /** Default sampling, no limits. */
  public static GenerationOptions defaults() {
    return new GenerationOptions(
        SamplingOptions.defaults(),
        0,
        List.of(),
        List.of(),
        false,
        -1,
        Optional.empty(),
        Optional.empty(),
        Optional.empty(),
        Optional.empty(),
        Optional.empty(),
        Optional.empty(),
        List.of());
  }

  /** Greedy decoding. */
  public static GenerationOptions greedy() {
    return defaults().withSampling(SamplingOptions.greedy());
  }

  /** With other policies than the model's; an empty list runs all units. */
  public GenerationOptions withUnits(List<UnitPolicy> value) {
    return edit(with -> with.units = Optional.of(value));
  }

  /** With other sampling. */
  public GenerationOptions withSampling(SamplingOptions value) {
    return edit(with -> with.sampling = value);
  }

  /** With another limit. */
  public GenerationOptions withMaxTokens(int value) {
    return edit(with -> with.maxTokens = value);
  }

  /** With stop strings. */
  public GenerationOptions withStopStrings(List<String> value) {
    return edit(with -> with.stopStrings = value);
  }

  /** With stop tokens. */
  public GenerationOptions withStopTokens(List<Integer> value) {
    return edit(with -> with.stopTokens = value);
  }

  /** With or without stopping at the model's own end tokens. */
  public GenerationOptions withIgnoreEnd(boolean value) {
    return edit(with -> with.ignoreEnd = value);
  }

  /** With log-probabilities of that many alternatives. */
  public GenerationOptions withLogprobs(int value) {
    return edit(with -> with.logprobs = value);
  }

  /** With another way to decode a diffusion model. */
  public GenerationOptions withDiffusion(DiffusionOptions value) {
    return edit(with -> with.diffusion = Optional.of(value));
  }

  /** With a guide for guided diffusion. */
  public GenerationOptions withGuide(Model value) {
    return edit(with -> with.guide = Optional.of(value));
  }

  /** With a grammar for the answer. */
  public GenerationOptions withGrammar(Grammar value) {
    return edit(with -> with.grammar = Optional.of(value));
  }

  /** With a small model that proposes the tokens. */
  public GenerationOptions withRouting(Routing value) {
    return edit(with -> with.routing = Optional.of(value));
  }

  /** Going on where the context is full. */
  public GenerationOptions withContextShift(ContextShift value) {
    return edit(with -> with.contextShift = Optional.of(value));
  }

  /** With the application's own steps between logits and filters; they replace earlier ones. */
  public GenerationOptions withSamplerSteps(List<SamplerStep> value) {
    return edit(with -> with.samplerSteps = value);
  }

  /** The components as variables, so that a {@code with} method names only what it changes. */
  private static final class Edit {
    private SamplingOptions sampling;
    private int maxTokens;
    private List<String> stopStrings;
    private List<Integer> stopTokens;
    private boolean ignoreEnd;
    private int logprobs;
    private Optional<DiffusionOptions> diffusion;
    private Optional<Model> guide;
    private Optional<Grammar> grammar;
    private Optional<Routing> routing;
    private Optional<List<UnitPolicy>> units;
    private Optional<ContextShift> contextShift;
    private List<SamplerStep> samplerSteps;

    Edit(GenerationOptions from) {
      sampling = from.sampling;
      maxTokens = from.maxTokens;
      stopStrings = from.stopStrings;
      stopTokens = from.stopTokens;
      ignoreEnd = from.ignoreEnd;
      logprobs = from.logprobs;
      diffusion = from.diffusion;
      guide = from.guide;
      grammar = from.grammar;
      routing = from.routing;
      units = from.units;
      contextShift = from.contextShift;
      samplerSteps = from.samplerSteps;
    }

    GenerationOptions build() {
      return new GenerationOptions(
          sampling,
          maxTokens,
          stopStrings,
          stopTokens,
          ignoreEnd,
          logprobs,
          diffusion,
          guide,
          grammar,
          routing,
          units,
          contextShift,
          samplerSteps);
    }
  }

  private GenerationOptions edit(Consumer<Edit> change) {
    Edit with = new Edit(this);
    change.accept(with);
    return with.build();
  }
}
