package io.fletch.quant;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Function;

/**
 * How linear maps lie in weight files: names of tensors after the stem of a layer, {@code P}.
 *
 * <pre>
 *   P.weight                                   dense
 *   P.sp.mask P.sp.rowptr P.sp.val             bitmap ({@link SparseMatrix.Bitmap})
 *   P.sp.mask P.sp.rowptr P.sp.scale P.sp.q8   {@link SparseMatrix.BitmapCodes}; or P.sp.q4
 *   P.sp.idx P.sp.val                          2:4 ({@link SparseMatrix.TwoOfFour})
 *   P.sp.block_row_ptr P.sp.block_col P.sp.blocks   {@link SparseMatrix.Block}
 *   P.sp.cols P.sp.val                         {@link LinearOp.Columns} over a dense matrix
 *   P.U.* P.V.*                                {@link LinearOp.LowRank}; both are stems themselves
 *   P.B.diag_blocks P.A.diag_blocks            block-diagonal maps before and after the rest
 *   P.coefficients                             F32, factors of the parts, 1 if absent
 * </pre>
 *
 * <p>Where several of dense, sparse and low rank are there, the map is their sum in that order,
 * with the coefficients in that order (specs weights 3.4 and 3.5). With {@code diag_blocks} it is a
 * chain (ARMOR). Stateless.
 */
public final class LinearOpTensors {
  private LinearOpTensors() {}

  /**
   * The map of a layer.
   *
   * @param tensors gives a tensor by name
   * @param stem name of the layer, such as {@code blk.0.attn_q}
   * @param in length of the input
   * @return empty if there is none of the tensors
   * @throws WeightFileException if tensors of the map are missing or do not fit
   */
  public static Optional<LinearOp> find(
      Function<String, Optional<Tensor>> tensors, String stem, long in) {
    try {
      return chain(tensors, stem, in);
    } catch (IllegalArgumentException e) {
      throw new WeightFileException(stem + ": " + e.getMessage(), e);
    }
  }

  private static Optional<LinearOp> chain(
      Function<String, Optional<Tensor>> tensors, String stem, long in) {
    Optional<LinearOp> before =
        tensors.apply(stem + ".B.diag_blocks").map(LinearOp.BlockDiagonal::new);
    Optional<LinearOp> after =
        tensors.apply(stem + ".A.diag_blocks").map(LinearOp.BlockDiagonal::new);
    Optional<LinearOp> middle = sum(tensors, stem, before.map(LinearOp::out).orElse(in));
    if (before.isEmpty() && after.isEmpty() || middle.isEmpty()) {
      return middle;
    }
    List<LinearOp> all = new ArrayList<>();
    before.ifPresent(all::add);
    all.add(middle.get());
    after.ifPresent(all::add);
    return Optional.of(new LinearOp.Chain(all));
  }

  private static Optional<LinearOp> sum(
      Function<String, Optional<Tensor>> tensors, String stem, long in) {
    List<LinearOp> parts = new ArrayList<>();
    tensors.apply(stem + ".weight").map(LinearOp::dense).ifPresent(parts::add);
    sparse(tensors, stem, in).ifPresent(parts::add);
    Optional<LinearOp> v = factor(tensors, stem + ".V", in);
    if (v.isPresent()) {
      LinearOp u =
          factor(tensors, stem + ".U", v.get().out())
              .orElseThrow(() -> missing(stem + ".U.weight"));
      parts.add(new LinearOp.LowRank(u, v.get(), LinearOp.Inner.IDENTITY));
    }
    Optional<Tensor> factors = tensors.apply(stem + ".coefficients");
    if (parts.isEmpty()) {
      return Optional.empty();
    }
    if (factors.isPresent() && factors.get().elements() != parts.size()) {
      throw new WeightFileException(
          factors.get().name()
              + ": elements: expected="
              + parts.size()
              + " actual="
              + factors.get().elements());
    }
    if (parts.size() == 1 && factors.isEmpty()) {
      return Optional.of(parts.getFirst());
    }
    List<LinearOp.Term> terms = new ArrayList<>();
    for (int i = 0; i < parts.size(); i++) {
      float c = factors.isPresent() ? Dequantizer.element(factors.get(), i) : 1;
      terms.add(new LinearOp.Term(c, parts.get(i)));
    }
    return Optional.of(new LinearOp.Sum(terms));
  }

  /** Factors have no factors of their own, so that names cannot nest without end. */
  private static Optional<LinearOp> factor(
      Function<String, Optional<Tensor>> tensors, String stem, long in) {
    Optional<LinearOp> dense = tensors.apply(stem + ".weight").map(LinearOp::dense);
    return dense.isPresent() ? dense : sparse(tensors, stem, in);
  }

  private static Optional<LinearOp> sparse(
      Function<String, Optional<Tensor>> tensors, String stem, long in) {
    String at = stem + ".sp.";
    Optional<Tensor> mask = tensors.apply(at + "mask");
    Optional<Tensor> scales = tensors.apply(at + "scale");
    if (mask.isPresent() && scales.isPresent()) {
      Optional<Tensor> four = tensors.apply(at + "q4");
      Tensor codes = four.isPresent() ? four.get() : need(tensors, at + "q8");
      return Optional.of(
          new LinearOp.Sparse(
              new SparseMatrix.BitmapCodes(
                  in,
                  four.isPresent() ? 4 : 8,
                  mask.get(),
                  need(tensors, at + "rowptr"),
                  scales.get(),
                  codes)));
    }
    if (mask.isPresent()) {
      return Optional.of(
          new LinearOp.Sparse(
              new SparseMatrix.Bitmap(
                  in, mask.get(), need(tensors, at + "rowptr"), need(tensors, at + "val"))));
    }
    Optional<Tensor> index = tensors.apply(at + "idx");
    if (index.isPresent()) {
      return Optional.of(
          new LinearOp.Sparse(new SparseMatrix.TwoOfFour(index.get(), need(tensors, at + "val"))));
    }
    Optional<Tensor> blocks = tensors.apply(at + "blocks");
    if (blocks.isPresent()) {
      return Optional.of(
          new LinearOp.Sparse(
              new SparseMatrix.Block(
                  in,
                  need(tensors, at + "block_row_ptr"),
                  need(tensors, at + "block_col"),
                  blocks.get())));
    }
    return tensors
        .apply(at + "cols")
        .map(cols -> new LinearOp.Columns(LinearOp.dense(need(tensors, at + "val")), cols, in));
  }

  private static Tensor need(Function<String, Optional<Tensor>> tensors, String name) {
    return tensors.apply(name).orElseThrow(() -> missing(name));
  }

  private static WeightFileException missing(String name) {
    return new WeightFileException("tensor " + name + ": expected=present actual=absent");
  }

  /**
   * The tensors of a map, by the names that {@link #find} reads it back from.
   *
   * @throws IllegalArgumentException if files have no names for a map of this form
   */
  public static Map<String, Tensor> of(LinearOp op, String stem) {
    Map<String, Tensor> all = new LinkedHashMap<>();
    put(op, stem, all);
    return all;
  }

  private static void put(LinearOp op, String stem, Map<String, Tensor> all) {
    String at = stem + ".sp.";
    switch (op) {
      case LinearOp.Dense d -> once(all, stem + ".weight", d.weight());
      case LinearOp.Sparse s -> {
        switch (s.matrix()) {
          case SparseMatrix.Bitmap m -> {
            once(all, at + "mask", m.mask());
            once(all, at + "rowptr", m.rowStart());
            once(all, at + "val", m.values());
          }
          case SparseMatrix.BitmapCodes m -> {
            once(all, at + "mask", m.mask());
            once(all, at + "rowptr", m.rowStart());
            once(all, at + "scale", m.scales());
            once(all, at + "q" + m.bits(), m.codes());
          }
          case SparseMatrix.TwoOfFour m -> {
            once(all, at + "idx", m.index());
            once(all, at + "val", m.values());
          }
          case SparseMatrix.Block m -> {
            once(all, at + "block_row_ptr", m.rowStart());
            once(all, at + "block_col", m.column());
            once(all, at + "blocks", m.values());
          }
        }
      }
      case LinearOp.Columns c when c.weight() instanceof LinearOp.Dense d -> {
        once(all, at + "cols", c.columns());
        once(all, at + "val", d.weight());
      }
      case LinearOp.LowRank l when l.inner() == LinearOp.Inner.IDENTITY -> {
        put(l.u(), stem + ".U", all);
        put(l.v(), stem + ".V", all);
      }
      case LinearOp.Chain c
          when c.ops().size() == 3
              && c.ops().get(0) instanceof LinearOp.BlockDiagonal b
              && c.ops().get(2) instanceof LinearOp.BlockDiagonal a -> {
        once(all, stem + ".B.diag_blocks", b.blocks());
        put(c.ops().get(1), stem, all);
        once(all, stem + ".A.diag_blocks", a.blocks());
      }
      case LinearOp.Sum s when s.terms().stream().allMatch(t -> t.coefficient() == 1) ->
          s.terms().forEach(t -> put(t.op(), stem, all));
      default ->
          throw new IllegalArgumentException(
              stem + ": no names in files for a map of this form: " + op);
    }
  }

  private static void once(Map<String, Tensor> all, String name, Tensor t) {
    if (all.putIfAbsent(name, t) != null) {
      throw new IllegalArgumentException(name + ": two parts of a sum of one kind");
    }
  }
}
