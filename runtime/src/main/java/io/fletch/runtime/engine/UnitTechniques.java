package io.fletch.runtime.engine;

import io.fletch.FfnSkip;
import io.fletch.FletchException;
import io.fletch.UnitDrop;
import io.fletch.UnitForecasts;
import io.fletch.UnitPolicy;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.SkipPass;
import io.fletch.graph.StandIn;
import io.fletch.graph.StandInPass;
import io.fletch.quant.WeightFile;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/**
 * The policies that a model was opened with, and the file of forecasters that its graph reads.
 * Closed by the model, after its executable.
 */
final class UnitTechniques implements AutoCloseable {
  private final List<UnitPolicy> policies;
  private final Optional<FfnSkip> skip;
  private final Optional<UnitForecasts> forecasts;
  private final Optional<WeightFile> file;
  private final Graph plain;
  private final Graph graph;

  private UnitTechniques(Graph plain, List<UnitPolicy> policies, String identity) {
    this.plain = plain;
    this.policies = List.copyOf(policies);
    skip = only(policies, FfnSkip.class);
    forecasts = only(policies, UnitForecasts.class);
    only(policies, UnitDrop.class).ifPresent(this::check);
    file = forecasts.map(f -> WeightFile.open(f.file()));
    try {
      Graph changed = plain;
      if (file.isPresent()) {
        List<StandIn> standIns =
            UnitFiles.forecasts(forecasts.orElseThrow().file(), file.get(), identity);
        skip.ifPresent(s -> checkApart(s, standIns));
        changed = StandInPass.apply(changed, standIns);
      }
      if (skip.isPresent()) {
        FfnSkip s = skip.get();
        if (!s.model().isEmpty()) {
          UnitFiles.checkModel("FFN skipping", s.model(), identity);
        }
        changed = SkipPass.apply(changed, s.from(), s.to());
      }
      graph = changed;
    } catch (IllegalArgumentException e) {
      close();
      throw new FletchException(e.getMessage(), e);
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  /**
   * Adds policies to a graph.
   *
   * @param identity hash of the model
   * @throws FletchException if they are not for this model, or exclude each other
   */
  static UnitTechniques of(Graph plain, List<UnitPolicy> policies, String identity) {
    return new UnitTechniques(plain, policies, identity);
  }

  private static <T> Optional<T> only(List<UnitPolicy> policies, Class<T> kind) {
    List<T> found = policies.stream().filter(kind::isInstance).map(kind::cast).toList();
    if (found.size() > 1) {
      throw new FletchException("given twice: " + kind.getSimpleName());
    }
    return found.stream().findFirst();
  }

  private static void checkApart(FfnSkip skip, List<StandIn> standIns) {
    for (StandIn s : standIns) {
      if (s.unit().unit() == Gate.Unit.FFN
          && skip.from() <= s.unit().layer()
          && s.unit().layer() < skip.to()) {
        throw new FletchException(
            "feed-forward unit of layer "
                + s.unit().layer()
                + ": skipping and forecasts may not both decide about it");
      }
    }
  }

  private void check(UnitDrop drop) {
    Set<Gate> units = new HashSet<>(StandInPass.units(plain));
    for (int layer : drop.layers()) {
      Gate gate = new Gate(layer, Gate.Unit.valueOf(drop.unit().name()));
      if (!units.contains(gate)) {
        throw new FletchException("no such unit: layer=" + layer + " unit=" + drop.unit());
      }
    }
  }

  /** The graph with its decisions. */
  Graph graph() {
    return graph;
  }

  /** What was given. */
  List<UnitPolicy> policies() {
    return policies;
  }

  /**
   * What an answer uses.
   *
   * @param wanted other policies of the same kinds, or nothing for those of the model
   * @throws FletchException if the graph does not have what they need
   */
  List<UnitPolicy> forAnswer(Optional<List<UnitPolicy>> wanted) {
    if (wanted.isEmpty()) {
      return policies;
    }
    for (UnitPolicy p : wanted.get()) {
      boolean fits =
          switch (p) {
            case FfnSkip s ->
                skip.isPresent()
                    && skip.get().from() == s.from()
                    && skip.get().to() == s.to()
                    && (s.model().isEmpty() || s.model().equals(skip.get().model()));
            case UnitForecasts f ->
                forecasts.isPresent() && forecasts.get().file().equals(f.file());
            case UnitDrop d -> {
              check(d);
              yield true;
            }
          };
      if (!fits) {
        throw new FletchException("the model was not opened for this policy: " + p);
      }
    }
    only(wanted.get(), FfnSkip.class);
    only(wanted.get(), UnitForecasts.class);
    only(wanted.get(), UnitDrop.class);
    return List.copyOf(wanted.get());
  }

  @Override
  public void close() {
    file.ifPresent(WeightFile::close);
  }
}
