package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.graph.Activation;
import io.fletch.graph.Graph;
import io.fletch.graph.RouteSpec;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * One transformer block as data (specs weights 5.2). With {@code a} = attention, {@code N} = norms:
 *
 * <ul>
 *   <li>{@code PRE}: {@code x = s (alpha x + b N(x) -> a)}
 *   <li>{@code SANDWICH}: as PRE with a second norm on the branch before it is added
 *   <li>{@code POST}: {@code x = N(alpha x + b a(x))}
 *   <li>{@code BRANCH}: {@code x = s (alpha x + b N(a(x)))}
 *   <li>{@code PARALLEL}: both units read the same {@code N(x)}, or norms of their own if there are
 *       two, and {@code x = s (alpha x + b a + c f)}
 * </ul>
 *
 * and the same with the feed-forward unit.
 *
 * @param norms where norms are
 * @param residualAlpha factor on the residual before a branch is added (DeepNorm); 1 for none
 * @param attentionScale factor on the attention branch
 * @param feedForwardScale factor on the feed-forward branch
 * @param postAddScale factor on the residual after each add (GPAS); 1 for none
 * @param normScale factor on the output of the norms before attention and feed-forward (LayerNorm
 *     Scaling)
 * @param attention empty if the layer has no attention
 * @param feedForward empty if the layer has no feed-forward unit
 */
public record BlockSpec(
    Norms norms,
    float residualAlpha,
    float attentionScale,
    float feedForwardScale,
    float postAddScale,
    float normScale,
    Optional<Attention> attention,
    Optional<FeedForward> feedForward) {
  /** Norm placements. */
  public enum Norms {
    PRE,
    POST,
    SANDWICH,
    BRANCH,
    PARALLEL
  }

  /** What is normalised of queries and keys before rotation. */
  public enum QkNorm {
    NONE,
    /** Each head by itself, all with the same weights. */
    HEAD,
    /** All heads together. */
    FULL
  }

  /** Checks for nulls. */
  public BlockSpec {
    Objects.requireNonNull(norms, "norms");
    Objects.requireNonNull(attention, "attention");
    Objects.requireNonNull(feedForward, "feedForward");
  }

  /** A block with unit scales. */
  public static BlockSpec of(
      Norms norms, Optional<Attention> attention, Optional<FeedForward> feedForward) {
    return new BlockSpec(norms, 1, 1, 1, 1, 1, attention, feedForward);
  }

  BlockSpec withUnits(Optional<Attention> newAttention, Optional<FeedForward> newFeedForward) {
    return new BlockSpec(
        norms,
        residualAlpha,
        attentionScale,
        feedForwardScale,
        postAddScale,
        normScale,
        newAttention,
        newFeedForward);
  }

  BlockSpec withForm(
      Norms place, float alpha, float attention, float feedForward, float postAdd, float norm) {
    return new BlockSpec(
        place, alpha, attention, feedForward, postAdd, norm, this.attention, this.feedForward);
  }

  /** Whether all norms come before the units and no factor is other than 1. */
  public boolean isPlain() {
    return norms == Norms.PRE
        && residualAlpha == 1
        && attentionScale == 1
        && feedForwardScale == 1
        && postAddScale == 1
        && normScale == 1;
  }

  /**
   * Attention of a block.
   *
   * @param heads query heads
   * @param kvHeads key and value heads; divides {@code heads}
   * @param keyDim elements of a query and a key head
   * @param valueDim elements of a value head
   * @param scale factor on the scores
   * @param softCap cap of the scores; 0 for none
   * @param window latest positions that a row sees, itself included; 0 for all
   * @param qkNorm RMS norms on queries and keys before rotation
   * @param fusedQkv one matrix for queries, keys and values, in this order of rows
   * @param rope rotary embedding; empty for none
   * @param latent queries, keys and values come out of shorter vectors (multi-head latent
   *     attention); the rotated elements of a head are its last ones, and those of all key heads
   *     the same
   */
  public record Attention(
      int heads,
      int kvHeads,
      int keyDim,
      int valueDim,
      float scale,
      float softCap,
      int window,
      QkNorm qkNorm,
      boolean fusedQkv,
      Optional<RopeParameters> rope,
      Optional<Latent> latent) {
    /** Largest width of a projection. */
    private static final long MAX_WIDTH = 1 << 24;

    /** Checks the ranges. */
    public Attention {
      Objects.requireNonNull(qkNorm, "qkNorm");
      Objects.requireNonNull(rope, "rope");
      Objects.requireNonNull(latent, "latent");
      if (heads < 1 || kvHeads < 1 || heads % kvHeads != 0) {
        throw new FletchException(
            "key/value heads must divide heads: heads=" + heads + " kvHeads=" + kvHeads);
      }
      if (keyDim < 1
          || valueDim < 1
          || (long) heads * keyDim > MAX_WIDTH
          || (long) heads * valueDim > MAX_WIDTH) {
        throw new FletchException(
            "attention width: expected=[1, "
                + MAX_WIDTH
                + "] actual heads="
                + heads
                + " keyDim="
                + keyDim
                + " valueDim="
                + valueDim);
      }
      int rotated = rope.map(RopeParameters::rotated).orElse(0);
      if (rotated > keyDim) {
        throw new FletchException(
            "rotated elements of a head: expected <= keyDim=" + keyDim + " actual=" + rotated);
      }
      if (latent.isPresent()
          && (rotated == 0
              || rotated == keyDim
              || kvHeads != heads
              || fusedQkv
              || qkNorm != QkNorm.NONE)) {
        throw new FletchException(
            "latent attention: expected=as many key as query heads, partly rotated actual: heads="
                + heads
                + " kvHeads="
                + kvHeads
                + " keyDim="
                + keyDim
                + " rotated="
                + rotated);
      }
      if (window < 0 || !(softCap >= 0) || !Float.isFinite(scale)) {
        throw new FletchException(
            "attention: window=" + window + " softCap=" + softCap + " scale=" + scale);
      }
    }

    Attention withHeads(int newHeads, int newKvHeads) {
      return new Attention(
          newHeads,
          newKvHeads,
          keyDim,
          valueDim,
          scale,
          softCap,
          window,
          qkNorm,
          fusedQkv,
          rope,
          latent);
    }

    Attention withRope(Optional<RopeParameters> value) {
      return new Attention(
          heads, kvHeads, keyDim, valueDim, scale, softCap, window, qkNorm, fusedQkv, value,
          latent);
    }
  }

  /**
   * What heads are made from in multi-head latent attention.
   *
   * @param queryRank elements of the vector that queries come out of; 0 for the unit's input
   * @param kvRank elements of the vector that keys and values come out of
   */
  public record Latent(int queryRank, int kvRank) {
    /** Checks the ranges. */
    public Latent {
      if (queryRank < 0 || kvRank < 1) {
        throw new FletchException(
            "latent attention: query rank=" + queryRank + " key/value rank=" + kvRank);
      }
    }
  }

  /**
   * Feed-forward unit of a block.
   *
   * @param width inner width
   * @param activation activation function
   * @param gated {@code act(gate x) * up x} if true, {@code act(up x)} if not
   * @param fusedGateUp one matrix for gate and up, in this order of rows
   * @param experts instead of one unit of that width, several of which each row takes a few
   * @param keep of what the activation gives, the largest alone count (ELAS)
   */
  public record FeedForward(
      int width,
      Activation activation,
      boolean gated,
      boolean fusedGateUp,
      Optional<Experts> experts,
      Optional<Keep> keep) {
    /** All activations count. */
    public FeedForward(
        int width,
        Activation activation,
        boolean gated,
        boolean fusedGateUp,
        Optional<Experts> experts) {
      this(width, activation, gated, fusedGateUp, experts, Optional.empty());
    }

    /** Checks the ranges. */
    public FeedForward {
      Objects.requireNonNull(keep, "keep");
      if (keep.isPresent() && (experts.isPresent() || width % keep.get().of() != 0)) {
        throw new FletchException(
            "fletch.activation_sparsity: expected=a dense unit whose width is a multiple of "
                + keep.get().of()
                + " actual: width="
                + width
                + " experts="
                + experts.isPresent());
      }
      Objects.requireNonNull(activation, "activation");
      if (width < 1) {
        throw new FletchException("feed-forward width: expected >= 1 actual=" + width);
      }
      if (fusedGateUp && !gated) {
        throw new FletchException("a fused gate needs a gated feed-forward unit");
      }
      if (experts.isPresent() && (!gated || fusedGateUp)) {
        throw new FletchException("experts are gated units with matrices of their own");
      }
    }

    /** One unit for all rows. */
    public static FeedForward dense(
        int width, Activation activation, boolean gated, boolean fusedGateUp) {
      return new FeedForward(width, activation, gated, fusedGateUp, Optional.empty());
    }

    FeedForward withExperts(Experts value) {
      return new FeedForward(width, activation, gated, fusedGateUp, Optional.of(value), keep);
    }

    FeedForward withWidth(int value) {
      return new FeedForward(value, activation, gated, fusedGateUp, experts, keep);
    }

    FeedForward with(Activation value, Optional<Keep> largest) {
      return new FeedForward(width, value, gated, fusedGateUp, experts, largest);
    }

    FeedForward withoutGate() {
      return new FeedForward(width, activation, false, false, experts, keep);
    }
  }

  /**
   * The {@code count} elements of largest magnitude of each {@code of} neighbours.
   *
   * @param of at most {@link Graph#MAX_GROUP}
   */
  public record Keep(int count, int of) {
    /** Checks the ranges. */
    public Keep {
      if (count < 1 || count > of || of > Graph.MAX_GROUP) {
        throw new FletchException(
            "fletch.activation_sparsity: expected=N:M with N <= M <= "
                + Graph.MAX_GROUP
                + " actual="
                + count
                + ":"
                + of);
      }
    }
  }

  /**
   * A mixture of experts; {@link FeedForward#width} is that of one expert.
   *
   * @param route how experts are chosen
   * @param bias whether a bias is added to the probabilities for the choice
   * @param sharedWidth width of a unit that all rows run besides; 0 for none
   * @param sharedGate whether the shared unit's result is scaled by a sigmoid of its own
   * @param chain how often experts run one after the other
   * @param fixed of a condensed layer (CD-MoE): the weights of its experts, all of which every row
   *     runs, without a router; it may have none
   */
  public record Experts(
      RouteSpec route,
      boolean bias,
      int sharedWidth,
      boolean sharedGate,
      Chain chain,
      Optional<List<Float>> fixed) {
    /** Checks the ranges. */
    public Experts {
      Objects.requireNonNull(route, "route");
      Objects.requireNonNull(chain, "chain");
      fixed = fixed.map(List::copyOf);
      if (fixed.isPresent() && (!chain.equals(Chain.ONCE) || sharedWidth == 0)) {
        throw new FletchException(
            "a condensed layer: expected=a shared expert, and experts that run once actual="
                + "shared width="
                + sharedWidth
                + " "
                + chain);
      }
      if (sharedWidth < 0 || sharedGate && sharedWidth == 0) {
        throw new FletchException("shared expert: width=" + sharedWidth + " gated=" + sharedGate);
      }
    }

    /** Experts that run once. */
    public static Experts once(RouteSpec route, boolean bias, int sharedWidth, boolean sharedGate) {
      return new Experts(route, bias, sharedWidth, sharedGate, Chain.ONCE, Optional.empty());
    }

    Experts withChain(Chain value) {
      return new Experts(route, bias, sharedWidth, sharedGate, value, fixed);
    }

    Experts withFixed(List<Float> weights) {
      return new Experts(route, bias, sharedWidth, sharedGate, chain, Optional.of(weights));
    }
  }

  /**
   * Experts that run several times (Chain-of-Experts, specs weights 5.1): from {@code u_0 = N(x)},
   * {@code u_(t+1) = experts(u_t)} plus what is carried over; the last one is the unit's result.
   *
   * @param iterations how often
   * @param routers whether each of them has a router of its own
   * @param carry what is added to each result
   * @param outer whether the result is added to the residual stream, which it replaces otherwise
   */
  public record Chain(int iterations, boolean routers, Carry carry, boolean outer) {
    /** Most iterations. */
    public static final int MAX_ITERATIONS = 64;

    /** What is added to the result of an iteration. */
    public enum Carry {
      NONE,
      /** What it started from. */
      INNER,
      /** What the first one started from. */
      FIRST
    }

    /** The usual experts: once, added to the residual stream. */
    public static final Chain ONCE = new Chain(1, false, Carry.NONE, true);

    /** Checks the ranges. */
    public Chain {
      Objects.requireNonNull(carry, "carry");
      if (iterations < 1 || iterations > MAX_ITERATIONS) {
        throw new FletchException(
            "chain of experts: iterations: expected=[1, "
                + MAX_ITERATIONS
                + "] actual="
                + iterations);
      }
    }
  }
}
