package io.fletch.graph;

import java.util.List;

/**
 * Inputs and outputs of {@link Executable#forward}: spans of rows of one or more sequences, the
 * rows whose logits are wanted, unit gates, and the logits. Reused from step to step; after warm-up
 * filling and running it allocates nothing. Used by one thread at a time.
 *
 * <p>Each backend has its own implementation, made by {@link Executable#newBatch}.
 */
public interface Batch extends AutoCloseable {
  /** Rows that fit. */
  int maxRows();

  /** Logit rows that fit. */
  int maxLogitRows();

  /** Empties inputs and outputs and sets all gates to {@link Gate#RUN}. */
  void clear();

  /**
   * Adds a span; {@code tokens[offset .. offset + span.rows())} are its token ids. A row's result
   * does not depend on which other rows are in the batch.
   *
   * @return index of its first row in the batch
   * @throws IllegalArgumentException if the batch is full or a token id is outside the vocabulary,
   *     or if the graph has learned positions and the span goes beyond them
   */
  int add(Span span, int[] tokens, int offset);

  /**
   * The allocation-free form of {@code add(Span.append(kv, count), ...)}: appends causally at the
   * end of the cache (without committing).
   */
  int append(KvCache kv, int[] tokens, int offset, int count);

  /**
   * Asks for logits of a row; returns the index of its logit row, in the order of first calls.
   *
   * @throws IllegalArgumentException if {@link #maxLogitRows} rows were asked for already
   */
  int wantLogits(int row);

  /**
   * Gives a row its numbers, {@link Graph#inputWidth} of them, for {@link Op.Input}; a row that was
   * given none has zeros.
   */
  void input(int row, float[] values);

  /**
   * Gives a row its adapters: what they add to products is added for this row alone. A row that was
   * given none has none, and neither has one whose scales are all 0.
   *
   * @param terms adapters of this batch's executable, added up in this order; rows of a sequence
   *     best share one list
   * @throws IllegalArgumentException if an adapter was made by another executable
   * @throws IllegalStateException if an adapter is closed
   */
  void adapt(int row, List<LowRankAdapter.Term> terms);

  /** Sets the gate byte of (gate, row) with which a forward begins. */
  void gate(int layer, Gate.Unit unit, int row, byte value);

  /**
   * Lets the graph's {@link Op.SkipSimilar} ops decide for a row. Rows for which nobody asked are
   * never skipped.
   *
   * @param threshold cosine from which on units rest; positive infinity only records the scores
   * @param run most units that rest after one decision, at least 0
   * @param budget most units that rest in the whole forward, at least 0
   */
  void skipSimilar(int row, float threshold, int run, int budget);

  /**
   * Lets the graph's {@link Op.RouteUnit} ops decide for a row. Rows for which nobody asked run all
   * units.
   *
   * @param threshold score below which a unit does not run; negative infinity only records the
   *     scores
   * @param otherwise what happens then: {@link Gate#SKIP} or {@link Gate#SUBSTITUTE}
   */
  void routeUnits(int row, float threshold, byte otherwise);

  /** After forward: the gate byte of (gate, row) with which the unit was or was not computed. */
  byte decided(int layer, Gate.Unit unit, int row);

  /**
   * After forward: what a deciding op saw.
   *
   * @param decision index in {@link Graph#decisions()}
   * @return its score, not a number where it had nothing to decide for the row
   */
  float score(int decision, int row);

  /**
   * Says that {@link #top} will be asked for with these arguments after the next forward, so that a
   * device may choose along with it. Forgotten when the batch is cleared.
   *
   * @param logitRow as {@link #wantLogits} gave it
   * @param defined ids below this count
   * @param count how many, at least 1
   */
  void wantTop(int logitRow, int defined, int count);

  /**
   * After forward: bytes of weights that products did not read because what they would have been
   * multiplied by was zero. Counted where a forward has one row; 0 on backends that read
   * everything.
   */
  default long skippedBytes() {
    return 0;
  }

  /** Rows added. */
  int rows();

  /** Logit rows asked for. */
  int logitRows();

  /** The spans added, in order; for inspection, may allocate. */
  List<Span> spans();

  /** After forward: copies a logit row into {@code dst[0 .. width of the graph's logits)}. */
  void logits(int logitRow, float[] dst);

  /**
   * After forward: copies what the output matrix was applied to, the row of {@link Graph#hidden},
   * into {@code dst[0 .. width)}.
   *
   * @throws IllegalStateException if the graph does not give it out
   */
  void hidden(int logitRow, float[] dst);

  /** After forward: the token with the largest logit, the lowest id on ties. */
  int argmax(int logitRow);

  /**
   * After forward: finds the largest logits of a row where the backend can without copying the row.
   * Of equal ones those with the lowest ids are chosen.
   *
   * @param defined ids below this count
   * @param ids takes the ids, ascending; its length is how many are wanted
   * @param logits takes their logits
   * @return false if the backend cannot choose so many, or all that count are wanted, or one of
   *     them is NaN or positive infinity; the arrays are undefined then
   */
  default boolean top(int logitRow, int defined, int[] ids, float[] logits) {
    return false;
  }

  /** After forward: reduces a logit row to its statistics, one pass, into {@code into}. */
  void statistics(int logitRow, RowStatistics into);

  @Override
  void close();

  /** What decode schedules need of a logit row (specs diffusion 1); a reusable holder. */
  final class RowStatistics {
    /** Token with the largest logit, lowest id on ties. */
    public int argmax;

    /** Largest logit. */
    public float top1;

    /** Second largest logit (equal to {@link #top1} on a tie). */
    public float top2;

    /** log of the sum of exp of all logits. */
    public double logSumExp;

    /** Entropy of the softmax in nats. */
    public double entropy;

    /** Probability of {@link #argmax}. */
    public double probability() {
      return Math.exp(top1 - logSumExp);
    }
  }
}
