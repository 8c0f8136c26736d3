package io.fletch.sampling;

import java.util.ArrayList;
import java.util.List;

/**
 * Published settings by name (specs/diffusion.md 16). A preset fits itself to the model: Dream's
 * schedule where logits are shifted, the exact cache where the model is block-causal.
 */
public final class DiffusionPresets {
  private static final List<String> NAMES =
      List.of("reference", "fast", "fast-lossless", "fastest", "early-exit", "quality", "guided");

  private DiffusionPresets() {}

  /** All names. */
  public static List<String> names() {
    return NAMES;
  }

  /**
   * The preset for a model and an answer length.
   *
   * <ul>
   *   <li>{@code reference}: one token per step, temperature 0, no approximation
   *   <li>{@code fast}: threshold 0.9, prefix cache, end fill
   *   <li>{@code fast-lossless}: FreeDave around the reference
   *   <li>{@code fastest}: LocalLeap, dual cache, end fill
   *   <li>{@code early-exit}: the reference with SchED exp-16
   *   <li>{@code quality}: SOAR with two canvases
   *   <li>{@code guided}: FreeCache and a guide with the top2-relative-50 rule
   * </ul>
   *
   * @throws IllegalArgumentException for an unknown name, or a preset that the model does not allow
   */
  public static DiffusionOptions of(String name, DiffusionModel model, int answerLength) {
    DiffusionOptions reference = reference(model, answerLength);
    DiffusionOptions blocks = reference.withLength(answerLength, block(model, answerLength));
    boolean exact = !model.bidirectional();
    DiffusionOptions options =
        switch (name) {
          case "reference" -> reference;
          case "fast" ->
              blocks
                  .withTransfer(
                      exact ? new Transfer.Dynamic(0, 0.9f) : new Transfer.Threshold(0.9f))
                  .withCaching(exact ? new Caching.BlockCausal(true) : new Caching.Prefix())
                  .withExit(new Exit.EndFill(false));
          case "fast-lossless" ->
              reference
                  .withCaching(exact ? new Caching.BlockCausal(true) : new Caching.None())
                  .withSearch(new Search.FreeDave(exact || model.shift() ? 8 : 4, 0, false, false));
          case "fastest" ->
              blocks
                  .withTransfer(new Transfer.LocalLeap(0.9f, model.shift() ? 0.8f : 0.75f, 4))
                  .withCaching(exact ? new Caching.BlockCausal(true) : new Caching.Dual())
                  .withExit(new Exit.EndFill(false));
          case "early-exit" -> reference.withExit(Exit.Sched.exponential(16));
          case "quality" ->
              blocks
                  .withTransfer(new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE))
                  .withSearch(
                      model.shift()
                          ? new Search.Soar(2, 0.9f, 1, 5, 2, true)
                          : new Search.Soar(2, 0.95f, 1, 5, 1, false));
          case "guided" ->
              blocks
                  .withTransfer(new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE))
                  .withCaching(new Caching.FreeCache(0, 0))
                  .withSearch(new Search.Guided(Search.GuideRule.TOP_RELATIVE, 2, 0.5f, 32));
          default ->
              throw new IllegalArgumentException(
                  "unknown preset: expected=one of " + NAMES + " actual=" + name);
        };
    Composition.check(options, model);
    return options;
  }

  private static DiffusionOptions reference(DiffusionModel model, int answerLength) {
    if (!model.bidirectional()) {
      return DiffusionOptions.reference(answerLength, block(model, answerLength))
          .withCaching(new Caching.BlockCausal(false));
    }
    return model.shift()
        ? DiffusionOptions.reference(answerLength, answerLength)
            .withTransfer(new Transfer.Dream(0, Transfer.DreamAlgorithm.ENTROPY, 0, 1e-3f))
        : DiffusionOptions.reference(answerLength, block(model, answerLength));
  }

  /** 32, or the largest divisor below it. */
  private static int block(DiffusionModel model, int answerLength) {
    Checks.atLeast("answerLength", answerLength, 1);
    int block = model.bidirectional() ? Math.min(32, answerLength) : model.block();
    while (model.bidirectional() && answerLength % block != 0) {
      block--;
    }
    return block;
  }

  /**
   * Techniques worth comparing on a model, as {@link DiffusionTechnique} strings; every one is
   * legal for it and needs no guide.
   */
  public static List<String> comparison(DiffusionModel model) {
    List<String> all = new ArrayList<>(List.of("reference", "fast-lossless"));
    if (model.bidirectional()) {
      all.addAll(
          List.of(
              "reference+prefix",
              "reference+dual",
              "reference+freecache",
              "reference+freecache(refresh=8)",
              "reference+freedave(depth=4)+freecache"));
    } else {
      all.add("reference+block-causal(fused=true)");
    }
    all.addAll(
        List.of(
            "reference+threshold(tau=0.9)",
            "reference+localleap",
            "reference+prophet",
            "early-exit",
            "fast",
            "fastest",
            "quality"));
    return List.copyOf(all);
  }
}
