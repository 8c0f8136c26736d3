package io.fletch.graph.cpu;

import io.fletch.graph.Value;
import java.lang.foreign.MemorySegment;
import java.util.List;

/**
 * The first factors of the low-rank terms for the products of the next stage: {@code h = scale A
 * x}, a task per piece of rows, term and product. No tasks where no row has terms.
 */
final class AdapterStage extends WorkerPool.Stage<Frame> {
  /**
   * A product that rows may have terms for.
   *
   * @param target the product's index among those that the executable adapts
   * @param input rows of float32
   * @param in elements of a row
   */
  record Product(int target, Place input, int in) {}

  private final Value.Rows kind;
  private final Product[] products;
  private final String name;

  AdapterStage(Value.Rows kind, List<Product> products, String name) {
    this.kind = kind;
    this.products = products.toArray(Product[]::new);
    this.name = "adapters of " + name;
  }

  @Override
  int tasks(Frame f) {
    return f.adaptation(kind).pieces() * products.length;
  }

  @Override
  void run(Frame f, int task, int worker) {
    Adaptation adaptation = f.adaptation(kind);
    int piece = task / products.length;
    int index = task % products.length;
    Product p = products[index];
    CpuAdapter.Part part = adaptation.adapter(piece).part(p.target());
    if (part == null) {
      return;
    }
    int first = adaptation.first(piece);
    int rows = adaptation.count(piece);
    float scale = adaptation.scale(piece) * part.factor();
    MemorySegment h = f.inner;
    long at = f.innerAt(kind, first, index) + adaptation.offset(piece);
    long stride = f.innerStride(kind);
    MemorySegment x = p.input().segment(f);
    long rowBytes = f.kernels.activationBytes(Kernels.ActivationFormat.F32, p.in());
    // Rows of a part of a wider value are further apart than the kernel takes them to be.
    int together = p.input().stride() * Float.BYTES == rowBytes ? rows : 1;
    for (int r = 0; r < rows; r += together) {
      part.down()
          .run(
              part.a(),
              part.rank(),
              0,
              part.rank(),
              x,
              p.input().at(first + r) * Float.BYTES,
              together,
              h,
              at + r * stride,
              stride);
    }
    for (int r = 0; r < rows; r++) {
      long row = at + r * stride;
      f.kernels.scale(h, row, scale, part.rank(), h, row);
    }
  }

  @Override
  public String toString() {
    return name;
  }
}
