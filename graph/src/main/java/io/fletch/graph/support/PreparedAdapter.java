package io.fletch.graph.support;

import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * What the adapters of all backends share: who made them, for which products, and whether they are
 * open. A backend extends it with the matrices in its memory.
 */
public abstract class PreparedAdapter implements LowRankAdapter {
  private final Executable owner;
  private final String name;
  private final int rank;
  private volatile boolean closed;

  /**
   * Checks that every delta fits its product.
   *
   * @throws IllegalArgumentException if a value is not defined by a product of the graph, or the
   *     shapes differ
   */
  protected PreparedAdapter(Executable owner, String name, Map<Value, LowRankDelta> deltas) {
    this.owner = owner;
    this.name = name;
    Map<Value, Op.Linear> products = products(owner.graph());
    int most = 0;
    for (Map.Entry<Value, LowRankDelta> e : deltas.entrySet()) {
      Op.Linear product = products.get(e.getKey());
      if (product == null) {
        throw new IllegalArgumentException(
            name + ": " + e.getKey().name() + ": expected=a product of the graph actual=none");
      }
      LowRankDelta d = e.getValue();
      if (d.a().cols() != product.in().width() || d.b().rows() != product.out().width()) {
        throw new IllegalArgumentException(
            name
                + ": "
                + e.getKey().name()
                + ": shape expected=["
                + product.out().width()
                + ", "
                + product.in().width()
                + "] actual=["
                + d.b().rows()
                + ", "
                + d.a().cols()
                + "]");
      }
      most = Math.max(most, d.rank());
    }
    rank = most;
  }

  /** The products of a graph that can be adapted, by the value they define, in order. */
  public static Map<Value, Op.Linear> products(Graph graph) {
    Map<Value, Op.Linear> all = new LinkedHashMap<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l) {
        all.put(l.out(), l);
      }
    }
    return all;
  }

  @Override
  public final String name() {
    return name;
  }

  /** The largest rank of its deltas. */
  public final int rank() {
    return rank;
  }

  /**
   * Refuses an adapter that an executable cannot use now.
   *
   * @throws IllegalArgumentException if another one made it
   * @throws IllegalStateException if it is closed
   */
  static void check(LowRankAdapter adapter, Executable user) {
    if (!(adapter instanceof PreparedAdapter p) || p.owner != user) {
      throw new IllegalArgumentException(
          "the adapter was made by another executable: " + adapter.name());
    }
    if (p.closed) {
      throw new IllegalStateException("the adapter is closed: " + p.name);
    }
  }

  /** Marks it as closed; whether it was open. */
  protected final synchronized boolean end() {
    boolean first = !closed;
    closed = true;
    return first;
  }
}
