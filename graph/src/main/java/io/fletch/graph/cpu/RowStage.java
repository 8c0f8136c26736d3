package io.fletch.graph.cpu;

import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.RouteSpec;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.support.Router;
import io.fletch.quant.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;

/** Steps on each row by itself, a few rows per task. */
final class RowStage extends WorkerPool.Stage<Frame> {
  /** Tasks per worker, so that a slow one does not hold up the rest. */
  private static final int TASKS_PER_WORKER = 4;

  private final Value.Rows kind;
  private final Step[] steps;
  private final int wantedTasks;

  RowStage(Value.Rows kind, List<Step> steps, int threads) {
    this.kind = kind;
    this.steps = steps.toArray(Step[]::new);
    wantedTasks = threads * TASKS_PER_WORKER;
  }

  @Override
  int tasks(Frame f) {
    int n = f.rows(kind);
    int chunk = chunk(n);
    return (n + chunk - 1) / chunk;
  }

  private int chunk(int n) {
    return Math.max(1, n / wantedTasks);
  }

  @Override
  void run(Frame f, int task, int worker) {
    int n = f.rows(kind);
    int chunk = chunk(n);
    int to = Math.min(n, (task + 1) * chunk);
    for (int row = task * chunk; row < to; row++) {
      int batchRow = f.batchRow(kind, row);
      for (Step step : steps) {
        if (f.skips(step.gate, batchRow)) {
          step.skip(f, row);
        } else {
          step.run(f, row, batchRow);
        }
      }
    }
  }

  @Override
  public String toString() {
    return "row steps " + List.of(steps);
  }

  /** What is done for one row. */
  abstract static class Step {
    final String name;
    final int gate;

    Step(String name, int gate) {
      this.name = name;
      this.gate = gate;
    }

    abstract void run(Frame f, int row, int batchRow);

    /** What a row that the gate skips needs; nothing unless somebody reads it. */
    void skip(Frame f, int row) {}

    @Override
    public final String toString() {
      return name;
    }
  }

  /** Cosines and sines of a row's position, shared by all layers. */
  static final class RopeTable extends Step {
    private final RopeSpec spec;
    private final Place out;

    RopeTable(RopeSpec spec, Place out) {
      super("rope_table", Frame.UNGATED);
      this.spec = spec;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      float[] frequency = spec.inverseFrequency();
      int pairs = frequency.length;
      double position = f.batch.position(batchRow);
      MemorySegment s = out.segment(f);
      long at = out.at(row);
      for (int i = 0; i < pairs; i++) {
        double angle = position * frequency[i];
        float cos = (float) (Math.cos(angle) * spec.magnitude());
        float sin = (float) (Math.sin(angle) * spec.magnitude());
        s.set(ValueLayout.JAVA_FLOAT, (at + i) * Float.BYTES, cos);
        s.set(ValueLayout.JAVA_FLOAT, (at + pairs + i) * Float.BYTES, sin);
      }
    }
  }

  /** {@link io.fletch.graph.Op.SkipSimilar}. */
  static final class SkipSimilar extends Step {
    private final int decision;
    private final Place before;
    private final Place after;
    private final int n;
    private final int[] targets;

    /** A decision; targets are indices of gate bytes. */
    SkipSimilar(int decision, Place before, Place after, int n, int[] targets, int gate) {
      super("skip_similar", gate);
      this.decision = decision;
      this.before = before;
      this.after = after;
      this.n = n;
      this.targets = targets;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      if (!f.batch.skips(batchRow)) {
        return;
      }
      MemorySegment x = before.segment(f);
      MemorySegment y = after.segment(f);
      long atX = before.at(row) * Float.BYTES;
      long atY = after.at(row) * Float.BYTES;
      double dot = 0;
      double xx = 0;
      double yy = 0;
      for (int i = 0; i < n; i++) {
        double a = x.get(ValueLayout.JAVA_FLOAT, atX + (long) i * Float.BYTES);
        double b = y.get(ValueLayout.JAVA_FLOAT, atY + (long) i * Float.BYTES);
        dot += a * b;
        xx += a * a;
        yy += b * b;
      }
      f.batch.decideSkip(decision, targets, batchRow, (float) (dot / Math.sqrt(xx * yy)));
    }
  }

  /** {@link io.fletch.graph.Op.RouteUnit}. */
  static final class RouteUnit extends Step {
    private final int decision;
    private final Place scores;
    private final int target;

    /** A decision; the gate is that of the target. */
    RouteUnit(int decision, Place scores, int gate) {
      super("route_unit", gate);
      this.decision = decision;
      this.scores = scores;
      target = gate >> 1;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      if (f.batch.routes(batchRow)) {
        MemorySegment z = scores.segment(f);
        long at = scores.at(row) * Float.BYTES;
        float execute = z.get(ValueLayout.JAVA_FLOAT, at);
        float approximate = z.get(ValueLayout.JAVA_FLOAT, at + Float.BYTES);
        f.batch.decideRoute(decision, target, batchRow, execute - approximate);
      }
    }
  }

  static final class Embed extends Step {
    private final Tensor table;
    private final Op.Embedding.Index index;
    private final float scale;
    private final Place out;

    Embed(Tensor table, Op.Embedding.Index index, float scale, Place out, int gate) {
      super(index == Op.Embedding.Index.TOKEN ? "embedding" : "embedding by " + index, gate);
      this.table = table;
      this.index = index;
      this.scale = scale;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      long from =
          table.rowBytes()
              * switch (index) {
                case TOKEN -> f.batch.token(batchRow);
                case POSITION -> f.batch.position(batchRow);
                case FIRST -> 0;
              };
      f.kernels.dequantize(
          table.type(),
          table.segment(),
          from,
          (int) table.cols(),
          scale,
          out.segment(f),
          out.at(row));
    }
  }

  /** The numbers that come with a row. */
  static final class Input extends Step {
    private final int width;
    private final int from;
    private final int n;
    private final Place out;

    /** Numbers {@code [from, from + n)} of the {@code width} of a row. */
    Input(int width, int from, int n, Place out, int gate) {
      super("input", gate);
      this.width = width;
      this.from = from;
      this.n = n;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      MemorySegment.copy(
          f.batch.inputs(),
          batchRow * width + from,
          out.segment(f),
          ValueLayout.JAVA_FLOAT,
          out.at(row) * Float.BYTES,
          n);
    }
  }

  /** Gives a row to the batch's reader. */
  static final class Keep extends Step {
    private final Place in;
    private final int n;

    Keep(Place in, int n) {
      super("keep", Frame.UNGATED);
      this.in = in;
      this.n = n;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      MemorySegment.copy(
          in.segment(f),
          ValueLayout.JAVA_FLOAT,
          in.at(row) * Float.BYTES,
          f.batch.hidden(),
          row * n,
          n);
    }
  }

  static final class Norm extends Step {
    private final Place in;
    private final MemorySegment weight;
    private final int n;
    private final int groups;
    private final float eps;
    private final float scale;
    private final Place out;

    Norm(
        Place in,
        MemorySegment weight,
        int n,
        int groups,
        float eps,
        float scale,
        Place out,
        int gate) {
      super("rms_norm", gate);
      this.in = in;
      this.weight = weight;
      this.n = n;
      this.groups = groups;
      this.eps = eps;
      this.scale = scale;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      MemorySegment x = in.segment(f);
      MemorySegment y = out.segment(f);
      for (int g = 0; g < groups; g++) {
        long at = (long) g * n;
        f.kernels.rmsNorm(x, in.at(row) + at, weight, n, eps, scale, y, out.at(row) + at);
      }
    }
  }

  static final class MeanNorm extends Step {
    private final Place in;
    private final MemorySegment weight;
    private final MemorySegment bias;
    private final int n;
    private final float eps;
    private final Place out;

    MeanNorm(
        Place in, MemorySegment weight, MemorySegment bias, int n, float eps, Place out, int gate) {
      super("layer_norm", gate);
      this.in = in;
      this.weight = weight;
      this.bias = bias;
      this.n = n;
      this.eps = eps;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      f.kernels.layerNorm(
          in.segment(f), in.at(row), weight, bias, n, eps, out.segment(f), out.at(row));
    }
  }

  /** The choice of experts. */
  static final class Route extends Step {
    private final Place scores;
    private final RouteSpec spec;
    private final MemorySegment bias;
    private final Place out;

    Route(Place scores, RouteSpec spec, MemorySegment bias, Place out, int gate) {
      super("route", gate);
      this.scores = scores;
      this.spec = spec;
      this.bias = bias;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      Router.route(
          spec,
          scores.segment(f),
          scores.at(row) * Float.BYTES,
          bias,
          out.segment(f),
          out.at(row) * Float.BYTES);
    }
  }

  /** The weighted sum of what the experts gave. */
  static final class Mix extends Step {
    private final Place in;
    private final Place routing;
    private final int used;
    private final int n;
    private final Place out;

    Mix(Place in, Place routing, int used, int n, Place out, int gate) {
      super("mix", gate);
      this.in = in;
      this.routing = routing;
      this.used = used;
      this.n = n;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      MemorySegment x = in.segment(f);
      MemorySegment y = out.segment(f);
      long to = out.at(row);
      f.kernels.scale(x, in.at(row), weight(f, row, 0), n, y, to);
      for (int k = 1; k < used; k++) {
        f.kernels.add(y, to, x, in.at(row) + (long) k * n, weight(f, row, k), n, y, to);
      }
    }

    private float weight(Frame f, int row, int k) {
      return routing.segment(f).get(ValueLayout.JAVA_FLOAT, (routing.at(row) + k) * Float.BYTES);
    }
  }

  static final class Rope extends Step {
    private final Place in;
    private final RopeSpec.Style style;
    private final int heads;
    private final int headDim;
    private final int pairs;
    private final Place table;
    private final Place out;

    Rope(Place in, RopeSpec spec, int heads, int headDim, Place table, Place out, int gate) {
      super("rope", gate);
      this.in = in;
      style = spec.style();
      this.heads = heads;
      this.headDim = headDim;
      pairs = spec.inverseFrequency().length;
      this.table = table;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      MemorySegment x = in.segment(f);
      MemorySegment t = table.segment(f);
      MemorySegment y = out.segment(f);
      for (int h = 0; h < heads; h++) {
        long at = (long) h * headDim;
        f.kernels.rope(
            style, x, in.at(row) + at, headDim, t, table.at(batchRow), pairs, y, out.at(row) + at);
      }
    }
  }

  static final class Store extends Step {
    private final Place key;
    private final Place value;
    private final int layer;
    private final int heads;
    private final int keyDim;
    private final int valueDim;

    Store(Place key, Place value, int layer, int heads, int keyDim, int valueDim) {
      super("kv_store", Frame.UNGATED);
      this.key = key;
      this.value = value;
      this.layer = layer;
      this.heads = heads;
      this.keyDim = keyDim;
      this.valueDim = valueDim;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      CpuKvCache kv = (CpuKvCache) f.batch.cache(batchRow);
      int slot = f.batch.slot(batchRow);
      MemorySegment k = key.segment(f);
      MemorySegment v = value.segment(f);
      for (int h = 0; h < heads; h++) {
        long from = key.at(row) + (long) h * keyDim;
        f.kernels.kvStore(kv.type(), k, from, keyDim, kv.segment(), kv.keyOffset(layer, h, slot));
        from = value.at(row) + (long) h * valueDim;
        f.kernels.kvStore(
            kv.type(), v, from, valueDim, kv.segment(), kv.valueOffset(layer, h, slot));
      }
    }
  }

  /** Copies a row or a part of it. */
  static final class Copy extends Step {
    private final Place in;
    private final boolean fromBatchRow;
    private final int n;
    private final Place out;

    /**
     * A copy.
     *
     * @param fromBatchRow the source has batch rows, even where the destination has logit rows
     */
    Copy(String name, Place in, boolean fromBatchRow, int n, Place out, int gate) {
      super(name, gate);
      this.in = in;
      this.fromBatchRow = fromBatchRow;
      this.n = n;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      copy(f, in, fromBatchRow ? batchRow : row, n, out, row);
    }
  }

  /** The branch, or for rows that the gate skips the residual. */
  static final class Replace extends Step {
    private final Place residual;
    private final Place branch;
    private final int n;
    private final Place out;

    Replace(Place residual, Place branch, int n, Place out, int gate) {
      super("replace", gate);
      this.residual = residual;
      this.branch = branch;
      this.n = n;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      copy(f, branch, row, n, out, row);
    }

    @Override
    void skip(Frame f, int row) {
      copy(f, residual, row, n, out, row);
    }
  }

  /** The largest of groups of neighbours. */
  static final class KeepLargest extends Step {
    private final Place in;
    private final int n;
    private final int m;
    private final int width;
    private final Place out;

    KeepLargest(Place in, int n, int m, int width, Place out, int gate) {
      super("keep " + n + " of " + m, gate);
      this.in = in;
      this.n = n;
      this.m = m;
      this.width = width;
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      MemorySegment x = in.segment(f);
      MemorySegment y = out.segment(f);
      long to = out.at(row);
      for (long group = in.at(row); group < in.at(row) + width; group += m) {
        for (int i = 0; i < m; i++) {
          float value = Segments.f32(x, group + i);
          float size = Math.abs(value);
          int larger = 0;
          for (int j = 0; j < m; j++) {
            float other = Math.abs(Segments.f32(x, group + j));
            larger += other > size || other == size && j < i ? 1 : 0;
          }
          Segments.f32(y, to++, larger < n ? value : 0f);
        }
      }
    }
  }

  /** Some elements of a row, or of two together, one by one. */
  static final class Gather extends Step {
    private final Place in;
    private final int width;
    private final Place more;
    private final int[] columns;
    private final Place out;

    /** Elements from {@code width} on are those of {@code more}. */
    Gather(Place in, int width, Place more, Tensor columns, Place out, int gate) {
      super("gather", gate);
      this.in = in;
      this.width = width;
      this.more = more;
      this.columns = columns.segment().toArray(Segments.INT);
      this.out = out;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      MemorySegment x = in.segment(f);
      MemorySegment second = more.segment(f);
      MemorySegment y = out.segment(f);
      long from = in.at(row);
      long behind = more.at(row) - width;
      long to = out.at(row);
      for (int i = 0; i < columns.length; i++) {
        int c = columns[i];
        Segments.f32(
            y, to + i, c < width ? Segments.f32(x, from + c) : Segments.f32(second, behind + c));
      }
    }
  }

  static void copy(Frame f, Place in, int from, int n, Place out, int to) {
    MemorySegment.copy(
        in.segment(f),
        in.at(from) * Float.BYTES,
        out.segment(f),
        out.at(to) * Float.BYTES,
        (long) n * Float.BYTES);
  }

  static final class Quantize extends Step {
    private final Place in;
    private final ActivationFormat format;
    private final int n;
    private final int parts;
    private final long partBytes;
    private final long offset;
    private final long rowBytes;

    /**
     * A conversion. Offsets of the result are bytes of scratch memory.
     *
     * @param n elements of a part
     * @param parts parts of a row, each converted as if it were a row
     */
    Quantize(
        Place in, ActivationFormat format, int n, int parts, long offset, long rowBytes, int gate) {
      super("quantize", gate);
      this.in = in;
      this.format = format;
      this.n = n;
      this.parts = parts;
      partBytes = rowBytes / parts;
      this.offset = offset;
      this.rowBytes = rowBytes;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      long to = offset + row * rowBytes;
      for (int p = 0; p < parts; p++) {
        long from = in.at(row) + (long) p * n;
        f.kernels.quantize(format, in.segment(f), from, n, f.scratch, to + p * partBytes);
      }
    }
  }

  /** An element-wise op on whole rows. */
  static final class Elements extends Step {
    private final ElementOp op;
    private final int n;

    Elements(ElementOp op, int n) {
      super(op.toString(), op.gate);
      this.op = op;
      this.n = n;
    }

    @Override
    void run(Frame f, int row, int batchRow) {
      op.run(f, row, 0, n);
    }

    @Override
    void skip(Frame f, int row) {
      op.skip(f, row, 0, n);
    }
  }
}
