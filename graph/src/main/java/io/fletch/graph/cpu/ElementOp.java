package io.fletch.graph.cpu;

import io.fletch.graph.Activation;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.Value;
import java.lang.foreign.MemorySegment;
import java.util.List;

/**
 * An element-wise op on a range of a row: a step of a row stage, or done right after a product on
 * the range that was just computed. Immutable; run by any worker.
 */
abstract sealed class ElementOp {
  final int gate;
  final boolean readWhenSkipped;
  final Place out;

  ElementOp(int gate, boolean readWhenSkipped, Place out) {
    this.gate = gate;
    this.readWhenSkipped = readWhenSkipped;
    this.out = out;
  }

  abstract void run(Frame f, int row, long from, int n);

  /** A skipped row is zero where somebody reads it. */
  void skip(Frame f, int row, long from, int n) {
    if (readWhenSkipped) {
      zero(f, out, row, from, n);
    }
  }

  /** Zeroes a range of a row. */
  static void zero(Frame f, Place place, int row, long from, int n) {
    Segments.zero(place.segment(f), place.at(row) + from, n);
  }

  static final class Gated extends ElementOp {
    private final Activation activation;
    private final Place half;
    private final Place up;

    Gated(
        Activation activation, Place half, Place up, Place out, int gate, boolean readWhenSkipped) {
      super(gate, readWhenSkipped, out);
      this.activation = activation;
      this.half = half;
      this.up = up;
    }

    @Override
    void run(Frame f, int row, long from, int n) {
      f.kernels.activate(
          activation,
          half.segment(f),
          half.at(row) + from,
          up.segment(f),
          up.at(row) + from,
          n,
          out.segment(f),
          out.at(row) + from);
    }

    @Override
    public String toString() {
      return "activate";
    }
  }

  static final class Plain extends ElementOp {
    private final Activation activation;
    private final Place in;

    Plain(Activation activation, Place in, Place out, int gate, boolean readWhenSkipped) {
      super(gate, readWhenSkipped, out);
      this.activation = activation;
      this.in = in;
    }

    @Override
    void run(Frame f, int row, long from, int n) {
      f.kernels.activate(
          activation, in.segment(f), in.at(row) + from, n, out.segment(f), out.at(row) + from);
    }

    @Override
    public String toString() {
      return "activate";
    }
  }

  static final class Add extends ElementOp {
    private final Place residual;
    private final Place branch;
    private final float scale;

    Add(Place residual, Place branch, float scale, Place out, int gate, boolean readWhenSkipped) {
      super(gate, readWhenSkipped, out);
      this.residual = residual;
      this.branch = branch;
      this.scale = scale;
    }

    @Override
    void run(Frame f, int row, long from, int n) {
      f.kernels.add(
          residual.segment(f),
          residual.at(row) + from,
          branch.segment(f),
          branch.at(row) + from,
          scale,
          n,
          out.segment(f),
          out.at(row) + from);
    }

    /** A skipped row keeps the residual, which it does by itself when added in place. */
    @Override
    void skip(Frame f, int row, long from, int n) {
      if (readWhenSkipped && !residual.equals(out)) {
        MemorySegment.copy(
            residual.segment(f),
            (residual.at(row) + from) * Float.BYTES,
            out.segment(f),
            (out.at(row) + from) * Float.BYTES,
            (long) n * Float.BYTES);
      }
    }

    @Override
    public String toString() {
      return "add";
    }
  }

  /**
   * The second factors of a row's low-rank terms; the first ones were applied by a stage before.
   */
  static final class Adapt extends ElementOp {
    private final Value.Rows kind;
    private final int target;
    private final int product;
    private final Place base;
    private final MemorySegment bias;
    private final boolean hasBias;

    /**
     * The op.
     *
     * @param target the product's index among those that the executable adapts
     * @param product its index in the stage of the first factors
     * @param bias that of the product, {@link MemorySegment#NULL} for none
     */
    Adapt(
        Value.Rows kind,
        int target,
        int product,
        Place base,
        MemorySegment bias,
        Place out,
        int gate,
        boolean readWhenSkipped) {
      super(gate, readWhenSkipped, out);
      this.bias = bias;
      hasBias = bias.byteSize() > 0;
      this.kind = kind;
      this.target = target;
      this.product = product;
      this.base = base;
    }

    @Override
    void run(Frame f, int row, long from, int n) {
      MemorySegment y = out.segment(f);
      long to = out.at(row) + from;
      if (!base.equals(out)) {
        MemorySegment.copy(
            base.segment(f),
            (base.at(row) + from) * Float.BYTES,
            y,
            to * Float.BYTES,
            (long) n * Float.BYTES);
      }
      List<LowRankAdapter.Term> terms = f.batch.terms(f.batchRow(kind, row));
      if (terms.isEmpty()) {
        return;
      }
      gain(terms, y, to, from, n);
      long h = f.innerAt(kind, row, product);
      for (int i = 0; i < terms.size(); i++) {
        LowRankAdapter.Term t = terms.get(i);
        CpuAdapter a = (CpuAdapter) t.adapter();
        CpuAdapter.Part part = a.part(target);
        if (part != null && t.scale() != 0) {
          f.kernels.accumulate(part.b(), from, n, f.inner, h, y, to);
        }
        h += a.width();
      }
    }

    /** What is a multiple of the product itself, before anything is added to it. */
    private void gain(List<LowRankAdapter.Term> terms, MemorySegment y, long to, long from, int n) {
      boolean any = false;
      for (int t = 0; t < terms.size(); t++) {
        CpuAdapter.Part part = ((CpuAdapter) terms.get(t).adapter()).part(target);
        any |= part != null && part.hasGain() && terms.get(t).scale() != 0;
      }
      for (int i = 0; any && i < n; i++) {
        float sum = 0;
        for (int t = 0; t < terms.size(); t++) {
          CpuAdapter.Part part = ((CpuAdapter) terms.get(t).adapter()).part(target);
          if (part != null && part.hasGain() && terms.get(t).scale() != 0) {
            sum = Math.fma(terms.get(t).scale(), Segments.f32(part.gain(), from + i), sum);
          }
        }
        float whole = Segments.f32(y, to + i);
        float product = hasBias ? whole - Segments.f32(bias, from + i) : whole;
        Segments.f32(y, to + i, Math.fma(sum, product, whole));
      }
    }

    @Override
    public String toString() {
      return "adapt";
    }
  }

  static final class Scaled extends ElementOp {
    private final Place in;
    private final float factor;

    Scaled(Place in, float factor, Place out, int gate) {
      super(gate, false, out);
      this.in = in;
      this.factor = factor;
    }

    @Override
    void run(Frame f, int row, long from, int n) {
      f.kernels.scale(
          in.segment(f), in.at(row) + from, factor, n, out.segment(f), out.at(row) + from);
    }

    @Override
    public String toString() {
      return "scale";
    }
  }

  static final class Affine extends ElementOp {
    private final Place in;
    private final MemorySegment factors;
    private final MemorySegment bias;
    private final boolean hasBias;

    /**
     * The op.
     *
     * @param bias {@link MemorySegment#NULL} for none
     */
    Affine(
        Place in,
        MemorySegment factors,
        MemorySegment bias,
        Place out,
        int gate,
        boolean readWhenSkipped) {
      super(gate, readWhenSkipped, out);
      this.in = in;
      this.factors = factors;
      this.bias = bias;
      hasBias = bias.byteSize() > 0;
    }

    @Override
    void run(Frame f, int row, long from, int n) {
      MemorySegment y = out.segment(f);
      long to = out.at(row) + from;
      f.kernels.multiply(in.segment(f), in.at(row) + from, factors, from, n, y, to);
      if (hasBias) {
        f.kernels.add(y, to, bias, from, 1f, n, y, to);
      }
    }

    @Override
    public String toString() {
      return "affine";
    }
  }

  static final class Capped extends ElementOp {
    private final Place in;
    private final float cap;

    Capped(Place in, float cap, Place out, int gate) {
      super(gate, false, out);
      this.in = in;
      this.cap = cap;
    }

    @Override
    void run(Frame f, int row, long from, int n) {
      f.kernels.softCap(
          in.segment(f), in.at(row) + from, cap, n, out.segment(f), out.at(row) + from);
    }

    @Override
    public String toString() {
      return "soft_cap";
    }
  }
}
