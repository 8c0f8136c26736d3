package io.fletch.graph;

import io.fletch.graph.support.PreparedAdapter;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Low-rank terms of both parts of a graph, each in an adapter of its executable. */
final class SplitAdapter extends PreparedAdapter {
  private final Optional<LowRankAdapter> front;
  private final Optional<LowRankAdapter> back;

  SplitAdapter(SplitExecutable owner, String name, Map<Value, LowRankDelta> deltas) {
    super(owner, name, deltas);
    front = part(owner.front(), name, deltas);
    try {
      back = part(owner.back(), name, deltas);
    } catch (RuntimeException | Error e) {
      front.ifPresent(LowRankAdapter::close);
      throw e;
    }
  }

  private static Optional<LowRankAdapter> part(
      Executable of, String name, Map<Value, LowRankDelta> deltas) {
    Map<Value, LowRankDelta> own = new HashMap<>(deltas);
    own.keySet().retainAll(products(of.graph()).keySet());
    return own.isEmpty() ? Optional.empty() : Optional.of(of.newAdapter(name, own));
  }

  /** What adapters of a row add in the first part. */
  static List<Term> front(List<Term> terms) {
    return part(terms, true);
  }

  /** What they add in the second part. */
  static List<Term> back(List<Term> terms) {
    return part(terms, false);
  }

  private static List<Term> part(List<Term> terms, boolean first) {
    List<Term> own = new ArrayList<>();
    for (Term t : terms) {
      SplitAdapter a = (SplitAdapter) t.adapter();
      (first ? a.front : a.back).ifPresent(x -> own.add(new Term(x, t.scale())));
    }
    return List.copyOf(own);
  }

  @Override
  public long bytes() {
    return front.map(LowRankAdapter::bytes).orElse(0L) + back.map(LowRankAdapter::bytes).orElse(0L);
  }

  @Override
  public void close() {
    if (end()) {
      try {
        front.ifPresent(LowRankAdapter::close);
      } finally {
        back.ifPresent(LowRankAdapter::close);
      }
    }
  }
}
