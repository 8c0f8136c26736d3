package io.fletch.graph;

import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * Names the unit gate an op obeys: one byte per (layer, unit, row) that kernels of the unit read
 * first (DESIGN 3, specs autoregressive P1). {@link #RUN} computes; {@link #SKIP} leaves the
 * residual row as it is; {@link #SUBSTITUTE} computes a cheap stand-in for the unit instead, where
 * the graph has one. All-RUN is the same code path as dense and bit-identical.
 *
 * <p>Bytes are set before a forward ({@link Batch#gate}) or by deciding ops within it ({@link
 * Op.SkipSimilar}, {@link Op.RouteUnit}).
 *
 * @param layer 0-based block index
 * @param unit which half of the block
 * @param branch whether the op belongs to the unit or to what stands in for it
 */
public record Gate(int layer, Unit unit, Branch branch) {
  /** Gate byte: compute the unit for this row. */
  public static final byte RUN = 0;

  /** Gate byte: the unit contributes nothing to this row. */
  public static final byte SKIP = 1;

  /** Gate byte: what stands in for the unit contributes to this row. */
  public static final byte SUBSTITUTE = 2;

  /** The two gated units of a block. */
  public enum Unit {
    ATTENTION,
    FFN
  }

  /** The two ways in which a unit can contribute. */
  public enum Branch {
    /** The unit itself. */
    UNIT(RUN),
    /** Its stand-in. */
    STAND_IN(SUBSTITUTE);

    private final byte runsAt;

    Branch(byte runsAt) {
      this.runsAt = runsAt;
    }

    /** The only gate byte at which ops of this branch compute. */
    public byte runsAt() {
      return runsAt;
    }
  }

  /** The gate of the unit itself. */
  public Gate(int layer, Unit unit) {
    this(layer, unit, Branch.UNIT);
  }

  /** The gate of what stands in for the unit. */
  public Gate standIn() {
    return new Gate(layer, unit, Branch.STAND_IN);
  }

  /** The gates whose bytes an op may change. */
  public static List<Gate> decidedBy(Op op) {
    return switch (op) {
      case Op.SkipSimilar o -> o.targets();
      case Op.RouteUnit o -> List.of(o.target());
      default -> List.of();
    };
  }

  /** The gates of units whose bytes a graph reads or may change, each once, in order. */
  public static List<Gate> ofUnits(Graph graph) {
    return graph.ops().stream()
        .flatMap(op -> Stream.concat(of(op).stream(), decidedBy(op).stream()))
        .filter(g -> g.branch() == Branch.UNIT)
        .distinct()
        .toList();
  }

  /** The gate that an op is declared with. */
  public static Optional<Gate> of(Op op) {
    return switch (op) {
      case Op.Linear o -> o.gate();
      case Op.Attention o -> o.gate();
      case Op.Activate o -> o.gate();
      case Op.Add o -> o.gate();
      case Op.Affine o -> o.gate();
      case Op.Replace o -> Optional.of(o.gate());
      case Op.Adapt o -> o.gate();
      case Op.Embedding o -> Optional.empty();
      case Op.Input o -> Optional.empty();
      case Op.RmsNorm o -> Optional.empty();
      case Op.Rope o -> Optional.empty();
      case Op.KvStore o -> Optional.empty();
      case Op.Scale o -> Optional.empty();
      case Op.KeepLargest o -> Optional.empty();
      case Op.SoftCap o -> Optional.empty();
      case Op.Slice o -> Optional.empty();
      case Op.Gather o -> Optional.empty();
      case Op.SelectRows o -> Optional.empty();
      case Op.LayerNorm o -> Optional.empty();
      case Op.Route o -> Optional.empty();
      case Op.ExpertLinear o -> Optional.empty();
      case Op.Mix o -> Optional.empty();
      case Op.SkipSimilar o -> Optional.of(o.unit());
      case Op.RouteUnit o -> Optional.empty();
    };
  }
}
