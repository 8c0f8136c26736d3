package io.fletch.graph.cpu;

import io.fletch.graph.LowRankAdapter.Term;
import io.fletch.graph.Value;
import java.util.Arrays;
import java.util.List;

/**
 * Which low-rank terms the rows of a forward have, as the stages want it: pieces of rows that share
 * a list of terms, once per term. Derived by the thread that calls forward, read by the workers.
 */
final class Adaptation {
  /** Rows of a piece: enough to read a factor once for many, few enough to share out prompts. */
  private static final int PIECE = 32;

  private final Value.Rows kind;
  private int[] first = new int[8];
  private int[] count = new int[8];
  private int[] offset = new int[8];
  private float[] scale = new float[8];
  private CpuAdapter[] adapter = new CpuAdapter[8];
  private int pieces;
  private int width;

  Adaptation(Value.Rows kind) {
    this.kind = kind;
  }

  /** Starts a forward. */
  void begin(Frame f) {
    pieces = 0;
    width = 0;
    int rows = f.batch.adapted() ? f.rows(kind) : 0;
    for (int r = 0; r < rows; ) {
      List<Term> terms = f.batch.terms(f.batchRow(kind, r));
      int end = r + 1;
      while (end < rows && end - r < PIECE && f.batch.terms(f.batchRow(kind, end)) == terms) {
        end++;
      }
      add(r, end - r, terms);
      r = end;
    }
  }

  private void add(int from, int rows, List<Term> terms) {
    int at = 0;
    for (int i = 0; i < terms.size(); i++) {
      Term t = terms.get(i);
      CpuAdapter a = (CpuAdapter) t.adapter();
      if (t.scale() != 0) {
        if (pieces == first.length) {
          grow();
        }
        first[pieces] = from;
        count[pieces] = rows;
        offset[pieces] = at;
        scale[pieces] = t.scale();
        adapter[pieces++] = a;
      }
      at += a.width();
    }
    width = Math.max(width, at);
  }

  private void grow() {
    int n = 2 * first.length;
    first = Arrays.copyOf(first, n);
    count = Arrays.copyOf(count, n);
    offset = Arrays.copyOf(offset, n);
    scale = Arrays.copyOf(scale, n);
    adapter = Arrays.copyOf(adapter, n);
  }

  /** Ends a forward: no adapter is held on to. */
  void end() {
    Arrays.fill(adapter, 0, pieces, null);
    pieces = 0;
  }

  int pieces() {
    return pieces;
  }

  int first(int piece) {
    return first[piece];
  }

  int count(int piece) {
    return count[piece];
  }

  /** Where the term's numbers begin within those of a row and product, in floats. */
  int offset(int piece) {
    return offset[piece];
  }

  float scale(int piece) {
    return scale[piece];
  }

  CpuAdapter adapter(int piece) {
    return adapter[piece];
  }

  /** Floats of the numbers of a row for one product. */
  int width() {
    return width;
  }
}
