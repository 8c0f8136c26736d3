package io.fletch.quant;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;

/**
 * A linear map {@code y = W x} as an expression over tensors (specs weights 3.5). The graph lowers
 * it to kernels; model code never asks how a weight is encoded. Low rank plus sparse (LOST), low
 * rank (WeLore), block-diagonal times sparse (ARMOR) and adapters (LoRA) are values of it.
 *
 * <p>Immutable; the tensors are borrowed from their file or store. Shapes are checked when a value
 * is made, so that an expression that exists can be computed.
 */
public sealed interface LinearOp {
  /** Length of {@code x}. */
  long in();

  /** Length of {@code y}. */
  long out();

  /** Bytes of weights read for one product. */
  long bytes();

  /** All tensors, outermost first; one that is used twice comes twice. */
  List<Tensor> tensors();

  /** One stored matrix {@code [out, in]} of any type. */
  record Dense(Tensor weight) implements LinearOp {
    /** Checks the rank. */
    public Dense {
      Objects.requireNonNull(weight, "weight");
      if (weight.rank() != 2) {
        throw new IllegalArgumentException("a dense linear map needs rank 2: " + weight);
      }
    }

    @Override
    public long in() {
      return weight.cols();
    }

    @Override
    public long out() {
      return weight.rows();
    }

    @Override
    public long bytes() {
      return weight.bytes();
    }

    @Override
    public List<Tensor> tensors() {
      return List.of(weight);
    }
  }

  /** A matrix of which only some elements are stored. */
  record Sparse(SparseMatrix matrix) implements LinearOp {
    /** Refuses null. */
    public Sparse {
      Objects.requireNonNull(matrix, "matrix");
    }

    @Override
    public long in() {
      return matrix.in();
    }

    @Override
    public long out() {
      return matrix.out();
    }

    @Override
    public long bytes() {
      return matrix.bytes();
    }

    @Override
    public List<Tensor> tensors() {
      return matrix.tensors();
    }
  }

  /** What a low-rank map does with its inner vector. */
  enum Inner {
    /** Nothing: the map is linear. */
    IDENTITY,
    /** {@code h * sigmoid(h)} between the factors, as some pre-trained factorisations have it. */
    SILU
  }

  /** {@code y = U f(V x)}. */
  record LowRank(LinearOp u, LinearOp v, Inner inner) implements LinearOp {
    /** Checks that the factors fit. */
    public LowRank {
      Objects.requireNonNull(inner, "inner");
      if (u.in() != v.out()) {
        throw new IllegalArgumentException(
            "rank of the factors: expected=" + v.out() + " actual=" + u.in());
      }
    }

    /** Elements of the inner vector. */
    public long rank() {
      return v.out();
    }

    @Override
    public long in() {
      return v.in();
    }

    @Override
    public long out() {
      return u.out();
    }

    @Override
    public long bytes() {
      return u.bytes() + v.bytes();
    }

    @Override
    public List<Tensor> tensors() {
      return concat(List.of(u, v));
    }
  }

  /** A summand and its factor. */
  record Term(float coefficient, LinearOp op) {
    /** Refuses what is not a number. */
    public Term {
      Objects.requireNonNull(op, "op");
      if (!Float.isFinite(coefficient)) {
        throw new IllegalArgumentException("coefficient: expected=finite actual=" + coefficient);
      }
    }
  }

  /** {@code y = sum c_i W_i x}, added from the first to the last. */
  record Sum(List<Term> terms) implements LinearOp {
    /** Checks that all terms have one shape. */
    public Sum {
      terms = List.copyOf(terms);
      if (terms.isEmpty()) {
        throw new IllegalArgumentException("terms of a sum: expected>=1 actual=0");
      }
      LinearOp first = terms.getFirst().op();
      for (Term t : terms) {
        if (t.op().in() != first.in() || t.op().out() != first.out()) {
          throw new IllegalArgumentException(
              "shape of a term: expected=["
                  + first.out()
                  + ", "
                  + first.in()
                  + "] actual=["
                  + t.op().out()
                  + ", "
                  + t.op().in()
                  + "]");
        }
      }
    }

    @Override
    public long in() {
      return terms.getFirst().op().in();
    }

    @Override
    public long out() {
      return terms.getFirst().op().out();
    }

    @Override
    public long bytes() {
      return terms.stream().mapToLong(t -> t.op().bytes()).sum();
    }

    @Override
    public List<Tensor> tensors() {
      return concat(terms.stream().map(Term::op).toList());
    }
  }

  /** {@code y = W_n ( ... W_2 (W_1 x))}: the first of the list is applied first. */
  record Chain(List<LinearOp> ops) implements LinearOp {
    /** Checks that each op takes what the one before it gives. */
    public Chain {
      ops = List.copyOf(ops);
      if (ops.isEmpty()) {
        throw new IllegalArgumentException("ops of a chain: expected>=1 actual=0");
      }
      for (int i = 1; i < ops.size(); i++) {
        if (ops.get(i).in() != ops.get(i - 1).out()) {
          throw new IllegalArgumentException(
              "input of op "
                  + i
                  + " of a chain: expected="
                  + ops.get(i - 1).out()
                  + " actual="
                  + ops.get(i).in());
        }
      }
    }

    @Override
    public long in() {
      return ops.getFirst().in();
    }

    @Override
    public long out() {
      return ops.getLast().out();
    }

    @Override
    public long bytes() {
      return ops.stream().mapToLong(LinearOp::bytes).sum();
    }

    @Override
    public List<Tensor> tensors() {
      return concat(ops);
    }
  }

  /** Block {@code i} of {@code y} is {@code B_i} times block {@code i} of {@code x}. */
  record BlockDiagonal(Tensor blocks) implements LinearOp {
    /** Checks the rank: {@code [blocks, out of a block, in of a block]}. */
    public BlockDiagonal {
      if (blocks.rank() != 3) {
        throw new IllegalArgumentException("a block-diagonal map needs rank 3: " + blocks);
      }
    }

    @Override
    public long in() {
      return Math.multiplyExact(blocks.dim(0), blocks.dim(2));
    }

    @Override
    public long out() {
      return Math.multiplyExact(blocks.dim(0), blocks.dim(1));
    }

    @Override
    public long bytes() {
      return blocks.bytes();
    }

    @Override
    public List<Tensor> tensors() {
      return List.of(blocks);
    }
  }

  /**
   * {@code y = W x[columns]}: a map that reads some elements of its input, which a matrix with
   * columns of zeros is.
   *
   * @param weight takes the chosen elements
   * @param columns I32, ascending, one per input of {@code weight}
   * @param in elements of {@code x}
   */
  record Columns(LinearOp weight, Tensor columns, long in) implements LinearOp {
    /** Checks that the columns ascend and lie within the input. */
    public Columns {
      if (columns.type() != TensorType.I32
          || columns.rank() != 1
          || columns.elements() != weight.in()) {
        throw new IllegalArgumentException(
            "columns: expected=I32 [" + weight.in() + "] actual=" + columns);
      }
      long last = -1;
      for (long i = 0; i < columns.elements(); i++) {
        int c = columns.segment().get(ByteCursor.INT, 4 * i);
        if (c <= last || c >= in) {
          throw new IllegalArgumentException(
              columns.name() + "[" + i + "]: expected in (" + last + ", " + in + ") actual=" + c);
        }
        last = c;
      }
    }

    /** A copy of the column numbers. */
    public int[] indices() {
      int[] all = new int[Math.toIntExact(columns.elements())];
      for (int i = 0; i < all.length; i++) {
        all[i] = columns.segment().get(ByteCursor.INT, 4L * i);
      }
      return all;
    }

    @Override
    public long out() {
      return weight.out();
    }

    @Override
    public long bytes() {
      return weight.bytes() + columns.bytes();
    }

    @Override
    public List<Tensor> tensors() {
      List<Tensor> all = new ArrayList<>(weight.tensors());
      all.add(columns);
      return List.copyOf(all);
    }
  }

  private static List<Tensor> concat(List<LinearOp> ops) {
    List<Tensor> all = new ArrayList<>();
    ops.forEach(op -> all.addAll(op.tensors()));
    return List.copyOf(all);
  }

  /** A stored matrix as it is. */
  static LinearOp dense(Tensor weight) {
    return new Dense(weight);
  }

  /** {@code U V}. */
  static LinearOp lowRank(Tensor u, Tensor v) {
    return new LowRank(dense(u), dense(v), Inner.IDENTITY);
  }

  /** Elements that are stored, however small their type. */
  static long storedElements(LinearOp op) {
    Set<Tensor> seen = new HashSet<>(op.tensors());
    return seen.stream().mapToLong(Tensor::elements).sum();
  }
}
