package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * A random two-layer transformer with one head, caches and the visibility rules of {@link
 * CanvasWindow}: what the schedules are tested on where the context matters. Keys are summed in
 * order of position, so a row's result does not depend on which window of the canvas it ran in.
 * Reading a slot that no row has written fails. With {@code attends} false the attention is left
 * out, and a row depends on its own token and position only.
 */
final class TinyCanvasModel implements CanvasForward {
  private static final int WIDTH = 8;
  private static final int LAYERS = 2;

  final List<List<CanvasWindow>> runs = new ArrayList<>();
  private final int vocabulary;
  private final int context;
  private final boolean attends;
  private final float[][] embedding;
  private final float[][] positional;
  private final float[][][][] weights = new float[LAYERS][4][][];
  private final float[][] head;
  private float[][][][] keys;
  private float[][][][] values;
  private int[][] writtenPosition;
  private int maxRows;
  private int maxHeads;
  private int slots;
  private LogitEdits edits = LogitEdits.none();
  private List<List<float[]>> logits = List.of();

  TinyCanvasModel(int vocabulary, int context, long seed, boolean attends) {
    this(vocabulary, context, seed, attends, 2);
  }

  TinyCanvasModel(int vocabulary, int context, long seed, boolean attends, float sharpness) {
    this.vocabulary = vocabulary;
    this.context = context;
    this.attends = attends;
    embedding = matrix(seed, 1, vocabulary, WIDTH, 1);
    positional = matrix(seed, 2, context, WIDTH, 1.5f);
    for (int l = 0; l < LAYERS; l++) {
      for (int m = 0; m < 4; m++) {
        weights[l][m] = matrix(seed, 10 + 10 * l + m, WIDTH, WIDTH, 0.9f);
      }
    }
    head = matrix(seed, 3, vocabulary, WIDTH, sharpness);
  }

  private static float[][] matrix(long seed, int which, int rows, int columns, float scale) {
    float[][] m = new float[rows][columns];
    for (int i = 0; i < rows; i++) {
      for (int j = 0; j < columns; j++) {
        m[i][j] = (float) (scale * (2 * CounterRandom.uniform(seed, 77, which, i, j) - 1));
      }
    }
    return m;
  }

  @Override
  public int vocabulary() {
    return vocabulary;
  }

  @Override
  public int context() {
    return context;
  }

  @Override
  public void begin(int caches, int slotCount, int rows, int headRows, LogitEdits logitEdits) {
    keys = new float[caches][slotCount][LAYERS][];
    values = new float[caches][slotCount][LAYERS][];
    writtenPosition = new int[caches][slotCount];
    for (int[] w : writtenPosition) {
      Arrays.fill(w, -1);
    }
    slots = slotCount;
    maxRows = rows;
    maxHeads = headRows;
    edits = logitEdits;
    runs.clear();
  }

  @Override
  public void run(List<CanvasWindow> windows) {
    runs.add(List.copyOf(windows));
    int rows = 0;
    int heads = 0;
    for (CanvasWindow w : windows) {
      rows += w.rows();
      heads += w.heads().length;
      if (w.slot() + w.rows() > slots || w.position() + w.rows() > context) {
        throw new IllegalArgumentException("window outside the cache: " + w);
      }
    }
    if (rows > maxRows || heads > maxHeads) {
      throw new IllegalArgumentException(
          "too many rows: " + rows + " of " + maxRows + ", heads " + heads + " of " + maxHeads);
    }
    float[][][] x = new float[windows.size()][][];
    for (int i = 0; i < x.length; i++) {
      CanvasWindow w = windows.get(i);
      x[i] = new float[w.rows()][WIDTH];
      for (int r = 0; r < w.rows(); r++) {
        for (int j = 0; j < WIDTH; j++) {
          x[i][r][j] = embedding[w.tokens()[r]][j] + positional[w.position() + r][j];
        }
        writtenPosition[w.cache()][w.slot() + r] = w.position() + r;
      }
    }
    for (int l = 0; l < LAYERS; l++) {
      for (int i = 0; i < x.length; i++) {
        CanvasWindow w = windows.get(i);
        for (int r = 0; r < w.rows(); r++) {
          keys[w.cache()][w.slot() + r][l] = times(weights[l][1], x[i][r]);
          values[w.cache()][w.slot() + r][l] = times(weights[l][2], x[i][r]);
        }
      }
      for (int i = 0; i < x.length; i++) {
        for (int r = 0; r < x[i].length; r++) {
          x[i][r] = layer(l, windows.get(i), r, x[i][r]);
        }
      }
    }
    logits = new ArrayList<>();
    for (int i = 0; i < x.length; i++) {
      List<float[]> out = new ArrayList<>();
      for (int h : windows.get(i).heads()) {
        out.add(times(head, x[i][h]));
      }
      logits.add(out);
    }
  }

  private float[] layer(int l, CanvasWindow w, int row, float[] x) {
    float[] sum = x.clone();
    if (attends) {
      float[] q = times(weights[l][0], x);
      double[] total = new double[WIDTH + 1];
      attend(l, w, 0, w.prefix(), q, total);
      int end = w.rows();
      if (w.own() == CanvasWindow.Own.BLOCK_CAUSAL) {
        int position = w.position() + row;
        end = Math.min(end, (position / w.block() + 1) * w.block() - w.position());
      }
      attend(l, w, w.slot(), w.slot() + end, q, total);
      attend(l, w, w.suffixFrom(), w.suffixTo(), q, total);
      for (int j = 0; j < WIDTH; j++) {
        sum[j] += (float) (1.5 * total[j] / total[WIDTH]);
      }
    }
    float[] up = times(weights[l][3], sum);
    for (int j = 0; j < WIDTH; j++) {
      sum[j] = (float) Math.tanh(sum[j] + Math.max(0, up[j]));
    }
    return sum;
  }

  private void attend(int l, CanvasWindow w, int from, int to, float[] q, double[] total) {
    for (int s = from; s < to; s++) {
      float[] k = keys[w.cache()][s][l];
      if (k == null) {
        throw new AssertionError("slot " + s + " is seen but was never written: " + w);
      }
      double dot = 0;
      for (int j = 0; j < WIDTH; j++) {
        dot += q[j] * k[j];
      }
      double e = Math.exp(dot);
      float[] v = values[w.cache()][s][l];
      for (int j = 0; j < WIDTH; j++) {
        total[j] += e * v[j];
      }
      total[WIDTH] += e;
    }
  }

  private static float[] times(float[][] m, float[] x) {
    float[] y = new float[m.length];
    for (int i = 0; i < m.length; i++) {
      float sum = 0;
      for (int j = 0; j < x.length; j++) {
        sum += m[i][j] * x[j];
      }
      y[i] = sum;
    }
    return y;
  }

  @Override
  public void statistics(int window, int headIndex, RowStatistics into) {
    float[] row = logits.get(window).get(headIndex).clone();
    edits.apply(row, 0, vocabulary);
    into.set(row, 0, vocabulary);
  }

  @Override
  public void logits(int window, int headIndex, float[] target) {
    System.arraycopy(logits.get(window).get(headIndex), 0, target, 0, vocabulary);
  }

  @Override
  public void copy(int fromCache, int fromSlot, int toCache, int toSlot, int count) {
    for (int i = 0; i < count; i++) {
      if (writtenPosition[fromCache][fromSlot + i] < 0) {
        continue; // a fork copies whole caches, also slots that were not written yet
      }
      keys[toCache][toSlot + i] = keys[fromCache][fromSlot + i].clone();
      values[toCache][toSlot + i] = values[fromCache][fromSlot + i].clone();
      writtenPosition[toCache][toSlot + i] = writtenPosition[fromCache][fromSlot + i];
    }
  }

  /** Keys and values of the first slots of cache 0, flattened. */
  float[] frozen(int count) {
    float[] out = new float[count * LAYERS * WIDTH * 2];
    int n = 0;
    for (int s = 0; s < count; s++) {
      for (int l = 0; l < LAYERS; l++) {
        System.arraycopy(keys[0][s][l], 0, out, n, WIDTH);
        System.arraycopy(values[0][s][l], 0, out, n + WIDTH, WIDTH);
        n += 2 * WIDTH;
      }
    }
    return out;
  }
}
