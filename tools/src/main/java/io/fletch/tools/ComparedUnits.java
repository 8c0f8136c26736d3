package io.fletch.tools;

import io.fletch.FfnSkip;
import io.fletch.GenerationOptions;
import io.fletch.UnitDrop;
import io.fletch.UnitForecasts;
import io.fletch.UnitPolicy;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * Units that rest: {@code ffn-skip} and {@code lff} as the options of the command line say, {@code
 * lff-greedy} without forecasts, and {@code random} and {@code drop}, which choose feed-forward
 * units without a reason and are there to compare with; {@code drop(layers=3,5)} says which.
 */
final class ComparedUnits implements ComparedTechniques {
  private static final List<String> NAMES =
      List.of("ffn-skip", "lff", "lff-greedy", "random", "drop");

  @Override
  public List<String> names(Setting setting) {
    List<String> names = new ArrayList<>();
    for (UnitPolicy p : UnitFlags.policies(setting.arguments())) {
      switch (p) {
        case FfnSkip s -> {
          names.add("ffn-skip");
          names.add("random(share=0.25)");
        }
        case UnitForecasts f -> {
          names.add("lff");
          names.add("lff-greedy");
        }
        case UnitDrop d -> names.add("drop");
      }
    }
    return names;
  }

  @Override
  public Optional<Way> way(String text, Setting setting, GenerationOptions greedy) {
    Named named = Named.parse(text);
    if (!NAMES.contains(named.name())) {
      return Optional.empty();
    }
    UnitPolicy policy =
        switch (named.name()) {
          case "ffn-skip" -> {
            FfnSkip s = given(setting, FfnSkip.class, "--ffn-skip");
            yield s.withThreshold((float) named.number("threshold", s.threshold()));
          }
          case "lff", "lff-greedy" -> {
            UnitForecasts f = given(setting, UnitForecasts.class, "--lff");
            yield f.withThreshold((float) named.number("threshold", f.threshold()))
                .withApproximate(named.name().equals("lff"));
          }
          case "random" -> random(setting, named.number("share", 0.25));
          case String _ -> {
            if (named.key().equals(Optional.of("layers"))) {
              yield UnitFlags.drop(named.value(), 0, "--technique drop(layers=...)");
            }
            UnitDrop d = given(setting, UnitDrop.class, "--drop-ffn");
            yield new UnitDrop(
                d.layers(), d.unit(), named.number("share", d.share()), d.seed(), d.prompts());
          }
        };
    return Optional.of(new Way(setting.model(), greedy.withUnits(List.of(policy))));
  }

  /** Any feed-forward unit of a generated token, with the same probability. */
  private static UnitDrop random(Setting setting, double share) {
    List<Integer> layers = new ArrayList<>();
    for (int l = 0; l < setting.model().info().layers(); l++) {
      layers.add(l);
    }
    return new UnitDrop(layers, UnitDrop.Unit.FFN, share, 0, false);
  }

  private static <T extends UnitPolicy> T given(Setting setting, Class<T> kind, String option) {
    return UnitFlags.policies(setting.arguments()).stream()
        .filter(kind::isInstance)
        .map(kind::cast)
        .findFirst()
        .orElseThrow(() -> new UsageException("the technique needs " + option));
  }
}
