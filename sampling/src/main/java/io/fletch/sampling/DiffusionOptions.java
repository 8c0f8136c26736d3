package io.fletch.sampling;

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.function.Consumer;

/**
 * How a diffusion model decodes: one transfer policy, one cache policy, at most one search around
 * the steps, any number of exits. Combinations that cannot work together are refused when the
 * record is built, with the reason ({@link Composition}).
 *
 * @param answerLength masks behind the prompt (N); with {@link Search.Nap} its length
 * @param blockLength positions that are finished before the next are begun (B); divides {@code
 *     answerLength}
 * @param transfer which masks a step commits
 * @param caching which keys and values are kept
 * @param search what is wrapped around the steps
 * @param exits when to stop early
 * @param temperature of the proposals; 0 for the most likely
 * @param topP Dream's nucleus filter; 1 for all
 * @param topK Dream's top-k filter; 0 for all
 * @param guidance classifier-free guidance scale; 0 for none, else every forward runs twice the
 *     rows
 * @param end how ending tokens are treated
 * @param endPenalty subtracted from the logits of ending and fill tokens
 * @param suppressMask whether the mask token's logit is taken out; without it a position whose most
 *     likely token is the mask waits
 * @param seed of the keyed noise
 */
public record DiffusionOptions(
    int answerLength,
    int blockLength,
    Transfer transfer,
    Caching caching,
    Search search,
    List<Exit> exits,
    float temperature,
    float topP,
    int topK,
    float guidance,
    End end,
    float endPenalty,
    boolean suppressMask,
    long seed) {
  /** How ending tokens are treated (specs/diffusion.md 3.1). */
  public enum End {
    /** As any other token. */
    PLAIN,
    /** Never proposed ({@code logits_eos_inf}). */
    FORBIDDEN,
    /** Proposed, but committed last ({@code confidence_eos_eot_inf}). */
    LAST
  }

  /** Copies and checks. */
  public DiffusionOptions {
    Objects.requireNonNull(transfer, "transfer");
    Objects.requireNonNull(caching, "caching");
    Objects.requireNonNull(search, "search");
    Objects.requireNonNull(end, "end");
    exits = List.copyOf(exits);
    Checks.atLeast("answerLength", answerLength, 1);
    Checks.range("blockLength", blockLength, 1, answerLength);
    Checks.range("temperature", temperature, 0, 1e6);
    Checks.range("topP", topP, Float.MIN_NORMAL, 1);
    Checks.atLeast("topK", topK, 0);
    Checks.range("guidance", guidance, 0, 1e6);
    Checks.range("endPenalty", endPenalty, -1e6, 1e6);
    if (answerLength % blockLength != 0) {
      throw new IllegalArgumentException(
          "blockLength: expected=a divisor of answerLength "
              + answerLength
              + " actual="
              + blockLength);
    }
    int steps =
        switch (transfer) {
          case Transfer.Schedule s -> s.steps();
          case Transfer.Dream d -> d.steps();
          case Transfer.Dynamic d -> d.steps();
          default -> 0;
        };
    int blocks = answerLength / blockLength;
    if (steps % blocks != 0) {
      throw new IllegalArgumentException(
          "steps: expected=a multiple of the " + blocks + " blocks actual=" + steps);
    }
    Composition.check(
        answerLength, blockLength, transfer, caching, search, exits, temperature, guidance);
  }

  /** LLaDA's reference: low confidence, one token per step, temperature 0, no cache. */
  public static DiffusionOptions reference(int answerLength, int blockLength) {
    return new DiffusionOptions(
        answerLength,
        blockLength,
        new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE),
        new Caching.None(),
        new Search.None(),
        List.of(),
        0,
        1,
        0,
        0,
        End.PLAIN,
        0,
        true,
        0);
  }

  /** Steps per full block of a scheduled transfer. */
  int stepsPerBlock(int steps) {
    return steps == 0 ? blockLength : steps / (answerLength / blockLength);
  }

  /** With another answer and block length. */
  public DiffusionOptions withLength(int answer, int block) {
    return edit(with -> {
      with.answerLength = answer;
      with.blockLength = block;
    });
  }

  /** With another transfer policy. */
  public DiffusionOptions withTransfer(Transfer value) {
    return edit(with -> with.transfer = value);
  }

  /** With another cache policy. */
  public DiffusionOptions withCaching(Caching value) {
    return edit(with -> with.caching = value);
  }

  /** With another search. */
  public DiffusionOptions withSearch(Search value) {
    return edit(with -> with.search = value);
  }

  /** With other exits. */
  public DiffusionOptions withExits(List<Exit> value) {
    return edit(with -> with.exits = value);
  }

  /** With one exit more. */
  public DiffusionOptions withExit(Exit value) {
    List<Exit> more = new ArrayList<>(exits);
    more.add(value);
    return withExits(more);
  }

  /** With another temperature. */
  public DiffusionOptions withTemperature(float value) {
    return edit(with -> with.temperature = value);
  }

  /** With other filters of the proposal's distribution. */
  public DiffusionOptions withFilters(float nucleus, int top) {
    return edit(with -> {
      with.topP = nucleus;
      with.topK = top;
    });
  }

  /** With classifier-free guidance. */
  public DiffusionOptions withGuidance(float value) {
    return edit(with -> with.guidance = value);
  }

  /** With another treatment of ending tokens. */
  public DiffusionOptions withEnd(End value, float penalty) {
    return edit(with -> {
      with.end = value;
      with.endPenalty = penalty;
    });
  }

  /** With or without taking out the mask token's logit. */
  public DiffusionOptions withSuppressMask(boolean value) {
    return edit(with -> with.suppressMask = value);
  }

  /** With another seed. */
  public DiffusionOptions withSeed(long value) {
    return edit(with -> with.seed = value);
  }

  /** The components as variables, so that a {@code with} method names only what it changes. */
  private static final class Edit {
    private int answerLength;
    private int blockLength;
    private Transfer transfer;
    private Caching caching;
    private Search search;
    private List<Exit> exits;
    private float temperature;
    private float topP;
    private int topK;
    private float guidance;
    private End end;
    private float endPenalty;
    private boolean suppressMask;
    private long seed;

    Edit(DiffusionOptions from) {
      answerLength = from.answerLength;
      blockLength = from.blockLength;
      transfer = from.transfer;
      caching = from.caching;
      search = from.search;
      exits = from.exits;
      temperature = from.temperature;
      topP = from.topP;
      topK = from.topK;
      guidance = from.guidance;
      end = from.end;
      endPenalty = from.endPenalty;
      suppressMask = from.suppressMask;
      seed = from.seed;
    }

    DiffusionOptions build() {
      return new DiffusionOptions(
          answerLength,
          blockLength,
          transfer,
          caching,
          search,
          exits,
          temperature,
          topP,
          topK,
          guidance,
          end,
          endPenalty,
          suppressMask,
          seed);
    }
  }

  private DiffusionOptions edit(Consumer<Edit> change) {
    Edit with = new Edit(this);
    change.accept(with);
    return with.build();
  }
}
