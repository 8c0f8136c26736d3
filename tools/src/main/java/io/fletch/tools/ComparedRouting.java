package io.fletch.tools;

import io.fletch.GenerationOptions;
import io.fletch.Routing;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * The small model alone, and token routing between both: {@code r2r} with the router of {@code
 * --router}, and the routers without training, {@code entropy}, {@code logu} and {@code
 * entropy+logu}.
 */
final class ComparedRouting implements ComparedTechniques {
  /** A learned router's scores are probabilities; besides its own threshold these are compared. */
  private static final List<String> LEARNED = List.of("0.05", "0.1", "0.2", "0.4", "0.6", "0.8");

  /** Entropies in nats; the published 0.45 is the default. */
  private static final List<String> ENTROPY = List.of("0.1", "0.25", "0.9");

  /** LogU of ten logits of any size lies below ln 10; the published 2.275 is the default. */
  private static final List<String> LOGU = List.of("1.9", "2.1", "2.2");

  @Override
  public List<String> names(Setting setting) {
    List<String> names = new ArrayList<>();
    if (setting.small() == null) {
      return names;
    }
    names.add("small");
    if (RoutingFlags.trained(setting.arguments())) {
      names.add("r2r");
      LEARNED.forEach(t -> names.add("r2r(threshold=" + t + ")"));
    }
    names.add("entropy");
    ENTROPY.forEach(t -> names.add("entropy(threshold=" + t + ")"));
    names.add("logu");
    LOGU.forEach(t -> names.add("logu(threshold=" + t + ")"));
    names.add("entropy+logu");
    return names;
  }

  @Override
  public Optional<Way> way(String text, Setting setting, GenerationOptions greedy) {
    Named named = Named.parse(text);
    if (!List.of("small", "r2r").contains(named.name())
        && !RoutingFlags.isUntrained(named.name())) {
      return Optional.empty();
    }
    if (setting.small() == null) {
      throw new UsageException("technique " + text + " needs --small");
    }
    if (named.name().equals("small")) {
      if (named.key().isPresent()) {
        throw new UsageException("--technique small has no parameters: " + text);
      }
      return Optional.of(new Way(setting.small(), greedy));
    }
    Routing routing =
        named.name().equals("r2r")
            ? RoutingFlags.routing(setting.arguments(), setting.model(), setting.small())
            : RoutingFlags.held(
                setting.arguments(), RoutingFlags.untrained(named.name(), setting.small()));
    return Optional.of(
        new Way(
            setting.model(),
            greedy.withRouting(
                routing.withThreshold(named.number("threshold", routing.threshold())))));
  }
}
