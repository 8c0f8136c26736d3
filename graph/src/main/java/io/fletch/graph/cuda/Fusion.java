package io.fletch.graph.cuda;

import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.IdentityHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * Pass: which ops run together. Looks only at who reads what, so that a graph of any family fuses
 * where its ops allow it:
 *
 * <ul>
 *   <li>products with packed matrices that share an input are one launch;
 *   <li>what alone reads a product becomes its tail: rotation, storing into the cache, the
 *       activation of the product and its partner, the addition to the residual stream;
 *   <li>whoever makes a value that only products read writes it as their {@link Parts}; a norm
 *       whose result only products read is made by whoever makes its input.
 * </ul>
 *
 * <p>Ops never move past one that decides about gates. The values are the same whether ops run
 * together or one by one.
 */
final class Fusion {
  /** Activations as products read them: parts of {@code value}, made from its norm's input. */
  record Source(Value value, Parts.Kind kind, Optional<Op.RmsNorm> norm) {
    /** What the parts are made from. */
    Value from() {
      return norm.map(Op.RmsNorm::in).orElse(value);
    }

    Parts parts() {
      return new Parts(value.width(), kind);
    }

    /** The norm without its weights. */
    Optional<Parts.Norm> factor() {
      return norm.map(n -> new Parts.Norm(n.eps(), n.outScale()));
    }
  }

  /** What happens to the result of a product. */
  sealed interface Tail {
    /** The ops that it covers. */
    List<Op> ops();
  }

  /** It becomes a value. */
  record Store() implements Tail {
    @Override
    public List<Op> ops() {
      return List.of();
    }
  }

  /** Its heads are rotated; the result becomes a value. */
  record Rotate(Op.Rope rope) implements Tail {
    @Override
    public List<Op> ops() {
      return List.of(rope);
    }
  }

  /** It goes into the cache as keys, rotated or not, or values. */
  record Cache(Op.KvStore store, boolean keys, Optional<Op.Rope> rope) implements Tail {
    @Override
    public List<Op> ops() {
      return rope.<List<Op>>map(r -> List.of(r, store)).orElse(List.of(store));
    }
  }

  /**
   * The activation of it, or of it times another product.
   *
   * @param up the other product
   */
  record Activated(Op.Activate op, Optional<Op.Linear> up, Optional<Source> next) implements Tail {
    @Override
    public List<Op> ops() {
      return up.<List<Op>>map(u -> List.of(u, op)).orElse(List.of(op));
    }
  }

  /** It is added to the residual stream. */
  record Residual(Op.Add add, Optional<Source> next) implements Tail {
    @Override
    public List<Op> ops() {
      return List.of(add);
    }
  }

  /** A product and its tail. */
  record Branch(Op.Linear linear, Tail tail) {}

  /** What runs at one place. */
  sealed interface Node {}

  /** One op by itself. */
  record Plain(Op op) implements Node {}

  /** One half of storing into the cache. */
  record StoreHalf(Op.KvStore op, boolean keys) implements Node {}

  /** Makes parts. */
  record Prepare(Source source) implements Node {}

  /** Products of one input. */
  record Product(Source source, List<Branch> branches) implements Node {}

  /** Attention, whose result becomes parts. */
  record Attend(Op.Attention op, Source next) implements Node {}

  private final Graph graph;
  private final Map<Value, List<Op>> readers = new HashMap<>();

  /** What low-rank terms read as float32, beside the parts that products read. */
  private final Set<Value> adapted = new HashSet<>();

  private final Map<Value, Integer> made = new HashMap<>();
  private final Map<Op, Integer> place = new IdentityHashMap<>();
  private final Set<Op> done = Collections.newSetFromMap(new IdentityHashMap<>());
  private final Map<Op, Set<Boolean>> halves = new IdentityHashMap<>();
  private final Set<Source> prepared = new HashSet<>();
  private final List<Node> nodes = new ArrayList<>();

  private Fusion(Graph graph) {
    this.graph = graph;
    for (int i = 0; i < graph.ops().size(); i++) {
      Op op = graph.ops().get(i);
      place.put(op, i);
      int at = i;
      op.output().ifPresent(v -> made.put(v, at));
      // Products read the same parts whether there are terms beside them or not: fusion changes
      // the last bits of a norm, and rows without terms must not notice those of others.
      List<Value> inputs = op.inputs();
      if (op instanceof Op.Adapt a) {
        adapted.add(a.in());
        inputs = List.of(a.base());
      }
      for (Value v : inputs) {
        readers.computeIfAbsent(v, x -> new ArrayList<>()).add(op);
      }
    }
  }

  /** What runs, in order. */
  static List<Node> of(Graph graph) {
    Fusion f = new Fusion(graph);
    graph.ops().forEach(f::place);
    return List.copyOf(f.nodes);
  }

  /** The values that a node reads, writes or may use on the way, with and without fusion. */
  static Set<Value> touched(Node node) {
    Set<Value> all = new LinkedHashSet<>();
    for (Op op : ops(node)) {
      all.addAll(op.inputs());
      op.output().ifPresent(all::add);
    }
    if (node instanceof Prepare p) {
      all.add(p.source().from());
    }
    return all;
  }

  /** The parts that a node reads or writes. */
  static Set<Source> parts(Node node) {
    Set<Source> all = new LinkedHashSet<>();
    switch (node) {
      case Prepare p -> all.add(p.source());
      case Attend a -> all.add(a.next());
      case Product p -> {
        all.add(p.source());
        p.branches().forEach(b -> next(b.tail()).ifPresent(all::add));
      }
      case Plain p -> {}
      case StoreHalf s -> {}
    }
    return all;
  }

  /** The parts that a tail makes. */
  static Optional<Source> next(Tail tail) {
    return switch (tail) {
      case Activated a -> a.next();
      case Residual r -> r.next();
      case Store s -> Optional.empty();
      case Rotate r -> Optional.empty();
      case Cache c -> Optional.empty();
    };
  }

  private static List<Op> ops(Node node) {
    List<Op> all = new ArrayList<>();
    switch (node) {
      case Plain p -> all.add(p.op());
      case StoreHalf s -> all.add(s.op());
      case Attend a -> all.add(a.op());
      case Product p ->
          p.branches()
              .forEach(b -> {
                all.add(b.linear());
                all.addAll(b.tail().ops());
              });
      case Prepare p -> {}
    }
    return all;
  }

  /** The packed form of a product's matrix, if it has one. */
  static Optional<PackedMatrix> packed(Op op) {
    return op instanceof Op.Linear l ? PackedMatrix.of(l.weight()) : Optional.empty();
  }

  private List<Op> readers(Value v) {
    return readers.getOrDefault(v, List.of());
  }

  private boolean isResult(Value v) {
    return v.equals(graph.logits()) || graph.hidden().equals(Optional.of(v));
  }

  /** The one op that reads a value. */
  private Optional<Op> reader(Value v) {
    return isResult(v) || adapted.contains(v) || readers(v).size() != 1
        ? Optional.empty()
        : Optional.of(readers(v).getFirst());
  }

  /** The kind of parts as which alone a value is read. */
  private Optional<Parts.Kind> readAs(Value v) {
    return adapted.contains(v) ? Optional.empty() : readByProducts(v);
  }

  /** The kind of parts as which alone a value is read but for low-rank terms. */
  private Optional<Parts.Kind> readByProducts(Value v) {
    if (isResult(v) || readers(v).isEmpty()) {
      return Optional.empty();
    }
    Optional<Parts.Kind> kind = packed(readers(v).getFirst()).map(m -> Parts.Kind.of(m.type()));
    for (Op op : readers(v)) {
      if (!packed(op).map(m -> Parts.Kind.of(m.type())).equals(kind)) {
        return Optional.empty();
      }
    }
    return kind;
  }

  /** The parts as which a norm's result is read, by products alone. */
  private Optional<Source> source(Op op) {
    return op instanceof Op.RmsNorm n && n.groups() == 1
        ? readByProducts(n.out()).map(kind -> new Source(n.out(), kind, Optional.of(n)))
        : Optional.empty();
  }

  private boolean decidesBetween(int from, int to) {
    return graph.decisions().stream().mapToInt(place::get).anyMatch(d -> from < d && d < to);
  }

  private void prepare(Source s) {
    if (prepared.add(s)) {
      nodes.add(new Prepare(s));
    }
  }

  private void place(Op op) {
    if (!done.add(op)) {
      return;
    }
    Optional<Source> norm = source(op);
    if (norm.isPresent()) {
      prepare(norm.get());
      if (adapted.contains(norm.get().value())) {
        nodes.add(new Plain(op));
      }
    } else if (packed(op).isPresent()) {
      product((Op.Linear) op);
    } else if (op instanceof Op.Attention a
        && readAs(a.out()).isPresent()
        && a.spec().valueDim() % PackedMatrix.GROUP == 0) {
      Source next = new Source(a.out(), readAs(a.out()).get(), Optional.empty());
      prepared.add(next);
      nodes.add(new Attend(a, next));
    } else if (op instanceof Op.KvStore s && halves.containsKey(s)) {
      for (boolean keys : new boolean[] {true, false}) {
        if (!halves.get(s).contains(keys)) {
          nodes.add(new StoreHalf(s, keys));
        }
      }
    } else {
      nodes.add(new Plain(op));
    }
  }

  private void product(Op.Linear first) {
    int at = place.get(first);
    Parts.Kind kind = Parts.Kind.of(packed(first).orElseThrow().type());
    Value in = first.in();
    Op maker = graph.ops().get(made.get(in));
    Source source =
        source(maker)
            .filter(s -> s.kind() == kind)
            .orElseGet(() -> new Source(in, kind, Optional.empty()));
    prepare(source);
    List<Op.Linear> group = new ArrayList<>();
    for (Op op : readers(in)) {
      boolean same =
          packed(op).filter(m -> Parts.Kind.of(m.type()) == kind).isPresent()
              && (op == first || !done.contains(op))
              && !decidesBetween(at, place.get(op));
      if (same) {
        group.add((Op.Linear) op);
        done.add(op);
      }
    }
    List<Branch> branches = new ArrayList<>();
    Set<Op> partners = Collections.newSetFromMap(new IdentityHashMap<>());
    for (Op.Linear l : group) {
      if (tail(l, at, group) instanceof Activated a) {
        a.up().ifPresent(partners::add);
      }
    }
    for (Op.Linear l : group) {
      if (!partners.contains(l)) {
        Tail tail = tail(l, at, group);
        branches.add(new Branch(l, tail));
        cover(tail);
      }
    }
    nodes.add(new Product(source, List.copyOf(branches)));
  }

  private void cover(Tail tail) {
    next(tail).ifPresent(prepared::add);
    for (Op op : tail.ops()) {
      if (op instanceof Op.KvStore s) {
        halves.computeIfAbsent(s, x -> new HashSet<>()).add(((Cache) tail).keys());
        if (halves.get(s).size() == 2) {
          done.add(s);
        }
      } else {
        done.add(op);
      }
    }
  }

  /** The tail of a product that runs at a place. */
  private Tail tail(Op.Linear l, int at, List<Op.Linear> group) {
    Op reader = reader(l.out()).orElse(null);
    if (reader == null || decidesBetween(at, place.get(reader))) {
      return new Store();
    }
    if (reader instanceof Op.Activate a) {
      return activated(l, a, group);
    }
    if (reader instanceof Op.Rope r && fits(r)) {
      Op next = reader(r.out()).orElse(null);
      boolean keys = next instanceof Op.KvStore s && s.key().equals(r.out());
      return keys && fitsCache(r)
          ? new Cache((Op.KvStore) next, true, Optional.of(r))
          : new Rotate(r);
    }
    if (reader instanceof Op.KvStore s && !s.key().equals(s.value())) {
      return new Cache(s, s.key().equals(l.out()), Optional.empty());
    }
    if (reader instanceof Op.Add a
        && a.branch().equals(l.out())
        && !a.residual().equals(l.out())
        && made.get(a.residual()) < at) {
      return new Residual(a, after(a.out()));
    }
    return new Store();
  }

  private Tail activated(Op.Linear l, Op.Activate a, List<Op.Linear> group) {
    Optional<Source> next =
        readAs(a.out()).map(kind -> new Source(a.out(), kind, Optional.empty()));
    if (a.gateHalf().isEmpty()) {
      return new Activated(a, Optional.empty(), next);
    }
    Op maker = graph.ops().get(made.get(a.up()));
    boolean pair =
        a.gateHalf().get().equals(l.out())
            && maker instanceof Op.Linear up
            && up != l
            && group.contains(up)
            && reader(up.out()).isPresent()
            && packed(up).map(PackedMatrix::name).equals(packed(l).map(PackedMatrix::name));
    return pair ? new Activated(a, Optional.of((Op.Linear) maker), next) : new Store();
  }

  /** Parts that can be made with a value: of the norm that reads it, or of itself. */
  private Optional<Source> after(Value v) {
    for (Op op : readers(v)) {
      Optional<Source> norm = source(op);
      if (norm.isPresent()) {
        return norm;
      }
    }
    return readAs(v).map(kind -> new Source(v, kind, Optional.empty()));
  }

  /** Whether the elements of a pair are finished by the same warp. */
  private static boolean fits(Op.Rope r) {
    int pairs = r.spec().inverseFrequency().length;
    int head = r.headDim();
    if (2 * pairs != head) {
      return false;
    }
    return r.spec().style() == RopeSpec.Style.NORM
        || head <= PackedMatrix.GROUP && PackedMatrix.GROUP % head == 0
        || pairs % PackedMatrix.TILE == 0;
  }

  /** Whether the same holds for pairs and for blocks of 32 elements. */
  private static boolean fitsCache(Op.Rope r) {
    int pairs = r.spec().inverseFrequency().length;
    return r.spec().style() == RopeSpec.Style.NORM
        || r.headDim() <= PackedMatrix.GROUP
        || pairs % PackedMatrix.GROUP == 0;
  }

  /** The matrix of a product with a packed form, as {@link DeviceWeights} know it. */
  static Object matrix(Op.Linear l) {
    return l.weight() instanceof LinearOp.Sparse s ? s.matrix() : DeviceWeights.dense(l);
  }
}
