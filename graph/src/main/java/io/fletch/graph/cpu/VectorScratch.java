package io.fletch.graph.cpu;

/**
 * Working memory of the Vector API kernels, one per thread. Heap arrays, because C2 spends far
 * fewer nodes of its inlining budget on an array access than on a segment access. Arrays grow to
 * the largest need of the thread, then nothing is allocated.
 */
final class VectorScratch {
  private static final ThreadLocal<VectorScratch> CURRENT =
      ThreadLocal.withInitial(VectorScratch::new);

  final WeightBlocks blocks = new WeightBlocks();
  final float[] lanes = new float[ActivationLayout.LANES];
  byte[] bytes = {};
  short[] shorts = {};
  int[] ints = {};
  int[] rowCodes = {};
  final int[] weightCodes = new int[Kernels.ATTENTION_CHUNK];
  final float[] weights = new float[Kernels.ATTENTION_CHUNK];
  float[] x = {};
  float[] w = {};
  float[] scales = {};
  float[] sums = {};
  float[] acc = {};
  float[] mins = {};

  private VectorScratch() {}

  static VectorScratch get() {
    return CURRENT.get();
  }

  byte[] bytes(int n) {
    return bytes.length < n ? bytes = new byte[n] : bytes;
  }

  short[] shorts(int n) {
    return shorts.length < n ? shorts = new short[n] : shorts;
  }

  int[] ints(int n) {
    return ints.length < n ? ints = new int[n] : ints;
  }

  int[] rowCodes(int n) {
    return rowCodes.length < n ? rowCodes = new int[n] : rowCodes;
  }

  float[] x(int n) {
    return x.length < n ? x = new float[n] : x;
  }

  float[] w(int n) {
    return w.length < n ? w = new float[n] : w;
  }

  float[] scales(int n) {
    return scales.length < n ? scales = new float[n] : scales;
  }

  float[] sums(int n) {
    return sums.length < n ? sums = new float[n] : sums;
  }

  float[] acc(int n) {
    return acc.length < n ? acc = new float[n] : acc;
  }

  float[] mins(int n) {
    return mins.length < n ? mins = new float[n] : mins;
  }
}
