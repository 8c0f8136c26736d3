package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Value;
import io.fletch.graph.support.PreparedAdapter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Map;

/**
 * Low-rank terms as the kernels want them: the first factor as stored, for dot products with the
 * input; the second transposed, so that a range of outputs is a sum of {@code rank} ranges. Both
 * keep their type. Immutable until it is closed.
 */
final class CpuAdapter extends PreparedAdapter {
  /** Columns of the transposed factor are a multiple of this, so that kernels may read past it. */
  private static final int PADDING = 16;

  private static final int ALIGNMENT = 64;

  /**
   * One delta.
   *
   * @param down the kernel of the first factor
   * @param a the first factor {@code [rank, in]}
   * @param b the second factor
   * @param gain float32 per output; {@link MemorySegment#NULL} for none
   */
  record Part(
      float factor, Kernels.Matmul down, MemorySegment a, LowRankFactor b, MemorySegment gain) {
    int rank() {
      return b.rank();
    }

    boolean hasGain() {
      return gain.byteSize() > 0;
    }
  }

  private final CpuExecutable executable;
  private final NativeMemory memory;
  private final Part[] parts;
  private long used;

  /**
   * Copies the factors.
   *
   * @param targets the products that the executable can adapt; the index of one is what stages know
   *     it by
   */
  CpuAdapter(
      CpuExecutable owner,
      String name,
      Map<Value, LowRankDelta> deltas,
      List<Value> targets,
      Kernels kernels) {
    super(owner, name, deltas);
    executable = owner;
    parts = new Part[targets.size()];
    long bytes = 0;
    for (LowRankDelta d : deltas.values()) {
      bytes += aligned(d.a().bytes()) + aligned(d.rank() * stride(d.b()));
      bytes += aligned(d.gain().map(Tensor::bytes).orElse(0L));
    }
    memory = NativeMemory.allocate(Math.max(1, bytes));
    for (Map.Entry<Value, LowRankDelta> e : deltas.entrySet()) {
      parts[targets.indexOf(e.getKey())] = part(e.getValue(), kernels);
    }
  }

  private static long aligned(long bytes) {
    return (bytes + ALIGNMENT - 1) & -ALIGNMENT;
  }

  private static long stride(Tensor b) {
    return b.type().bytes((b.rows() + PADDING - 1) & -PADDING);
  }

  private MemorySegment take(long bytes) {
    MemorySegment s = memory.segment().asSlice(used, bytes);
    used += aligned(bytes);
    return s;
  }

  private Part part(LowRankDelta d, Kernels kernels) {
    Kernels.Matmul down = kernels.matmulMapped(d.a().type(), Math.toIntExact(d.a().cols()));
    if (down.packs() || down.activation() != Kernels.ActivationFormat.F32) {
      throw new IllegalStateException("no kernel for the first factor: " + down.name());
    }
    MemorySegment a = take(d.a().bytes());
    MemorySegment.copy(d.a().segment(), 0, a, 0, d.a().bytes());
    int rank = d.rank();
    long stride = stride(d.b());
    MemorySegment from = d.b().segment();
    MemorySegment b = take(rank * stride);
    boolean wide = d.b().type() == TensorType.F32;
    for (long o = 0; o < d.b().rows(); o++) {
      for (int k = 0; k < rank; k++) {
        if (wide) {
          b.set(Segments.INT, k * stride + 4 * o, from.get(Segments.INT, 4 * (o * rank + k)));
        } else {
          b.set(Segments.SHORT, k * stride + 2 * o, from.get(Segments.SHORT, 2 * (o * rank + k)));
        }
      }
    }
    MemorySegment gain = MemorySegment.NULL;
    if (d.gain().isPresent()) {
      Tensor t = d.gain().get();
      gain = take(t.bytes());
      MemorySegment.copy(t.segment(), 0, gain, 0, t.bytes());
    }
    LowRankFactor second = new LowRankFactor(d.b().type(), b, stride, rank);
    return new Part(d.factor(), down, a, second, gain);
  }

  /** What is added to a product; null for nothing. */
  Part part(int target) {
    return target < parts.length ? parts[target] : null;
  }

  /** Floats between the factors that a row's term takes for one product. */
  int width() {
    return (rank() + PADDING - 1) & -PADDING;
  }

  @Override
  public long bytes() {
    return used;
  }

  @Override
  public void close() {
    executable.afterForward(() -> {
      if (end()) {
        memory.close();
      }
    });
  }
}
