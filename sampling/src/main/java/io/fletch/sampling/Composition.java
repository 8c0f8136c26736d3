package io.fletch.sampling;

import java.util.List;

/**
 * Which techniques work together (specs/diffusion.md 12). Every refusal names both options and the
 * reason.
 */
final class Composition {
  private Composition() {}

  static void check(
      int answerLength,
      int blockLength,
      Transfer transfer,
      Caching caching,
      Search search,
      List<Exit> exits,
      float temperature,
      float guidance) {
    boolean early =
        exits.stream().anyMatch(e -> e instanceof Exit.Prophet || e instanceof Exit.Sched);
    boolean plainTransfer =
        transfer instanceof Transfer.Schedule s && s.order() == Transfer.Order.LOW_CONFIDENCE;
    if (transfer instanceof Transfer.Edit) {
      if (!(search instanceof Search.None)) {
        throw refuse(transfer, search, "edited tokens change after they were committed");
      }
      if (early) {
        throw refuse(transfer, "early exit", "an edited answer is never settled before its end");
      }
      if (!(caching instanceof Caching.BlockCausal)) {
        throw refuse(transfer, caching, "editing needs a block that is frozen after its last edit");
      }
    }
    if (guidance > 0 && caching instanceof Caching.FreeCache) {
      throw refuse("guidance", caching, "the frozen prompt of the unguided half has no meaning");
    }
    switch (search) {
      case Search.Guided g -> {
        if (caching instanceof Caching.Dual) {
          throw refuse(g, caching, "the guide needs proposals for every later position");
        }
        if (caching instanceof Caching.BlockCausal) {
          throw refuse(g, caching, "the guide needs proposals for every later position");
        }
        if (early) {
          throw refuse(g, "early exit", "the guide's acceptance already decides what is filled");
        }
        if (!plainTransfer) {
          throw refuse(g, transfer, "the guide's acceptance replaces the transfer policy");
        }
        if (temperature > 0) {
          throw refuse(g, "temperature", "guided diffusion is defined for greedy proposals only");
        }
      }
      case Search.Soar s -> {
        if (!plainTransfer) {
          throw refuse(s, transfer, "the beam's own rule replaces the transfer policy");
        }
      }
      case Search.Nap n -> {
        if (!plainTransfer) {
          throw refuse(n, transfer, "the streams' own rule replaces the transfer policy");
        }
        if (!(caching instanceof Caching.None) && !(caching instanceof Caching.FreeCache)) {
          throw refuse(n, caching, "streams finish out of order; only the prompt can be frozen");
        }
        if (answerLength != n.length() || blockLength != answerLength) {
          throw new IllegalArgumentException(
              "nap needs answerLength and blockLength: expected="
                  + n.length()
                  + " actual="
                  + answerLength
                  + " and "
                  + blockLength);
        }
      }
      case Search.FreeDave _ -> {}
      case Search.None _ -> {}
    }
    if (exits.stream().anyMatch(Exit.EndFill.class::isInstance) && search instanceof Search.Nap) {
      throw refuse(search, "end fill", "the end of one stream says nothing of the others");
    }
  }

  /** What depends on the model. */
  static void check(DiffusionOptions options, DiffusionModel model) {
    Caching caching = options.caching();
    if (model.bidirectional()) {
      if (caching instanceof Caching.BlockCausal) {
        throw refuse(
            caching, "a bidirectional model", "earlier positions see later ones, nothing is final");
      }
      return;
    }
    if (!(caching instanceof Caching.BlockCausal) && !(caching instanceof Caching.None)) {
      throw refuse(caching, "a block-causal model", "its own cache is exact; use block-causal");
    }
    if (options.blockLength() != model.block()) {
      throw new IllegalArgumentException(
          "blockLength of a block-causal model: expected="
              + model.block()
              + " actual="
              + options.blockLength());
    }
    if (options.search() instanceof Search.Guided || options.search() instanceof Search.Nap) {
      throw refuse(
          options.search(), "a block-causal model", "it proposes tokens of one block at a time");
    }
  }

  static String name(Object option) {
    return switch (option) {
      case Transfer.Schedule _ -> "schedule";
      case Transfer.Dream _ -> "dream";
      case Transfer.Threshold _ -> "threshold";
      case Transfer.Factor _ -> "factor";
      case Transfer.LocalLeap _ -> "localleap";
      case Transfer.Dynamic _ -> "dynamic";
      case Transfer.Edit _ -> "edit";
      case Caching.None _ -> "no cache";
      case Caching.Prefix _ -> "prefix";
      case Caching.Dual _ -> "dual";
      case Caching.FreeCache _ -> "freecache";
      case Caching.BlockCausal _ -> "block-causal";
      case Search.None _ -> "no search";
      case Search.FreeDave _ -> "freedave";
      case Search.Soar _ -> "soar";
      case Search.Guided _ -> "guided";
      case Search.Nap _ -> "nap";
      default -> option.toString();
    };
  }

  private static IllegalArgumentException refuse(Object a, Object b, String reason) {
    return new IllegalArgumentException(
        name(a) + " cannot be combined with " + name(b) + ": " + reason);
  }
}
