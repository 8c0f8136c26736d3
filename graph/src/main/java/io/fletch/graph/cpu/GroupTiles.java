package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;
import java.util.function.IntFunction;

/**
 * Runs code that multiplies groups of interleaved rows of weights by a few rows of activations:
 * cuts activations into tiles and weights into what stays in the cache meanwhile, and stores the
 * incomplete last group by way of scratch. The code is {@code void (long weights, long x, long y,
 * long yStrideBytes, long groups)} and stores whole groups. Thread-safe.
 */
final class GroupTiles {
  /** Weights that stay in the level-2 cache while several tiles of activations pass over them. */
  private static final long CACHED_WEIGHTS = 256 << 10;

  private final int lanes;
  private final long groupBytes;
  private final long xStride;
  private final int maxTokens;
  private final X86Functions code;

  /**
   * Emits nothing yet.
   *
   * @param lanes rows of a group
   * @param xStride bytes from one row of activations to the next
   * @param maxTokens the most rows of activations that the code takes
   * @param emit the code for so many of them; asked once for each, or a few times
   */
  GroupTiles(
      int lanes, long groupBytes, long xStride, int maxTokens, IntFunction<MemorySegment> emit) {
    this.lanes = lanes;
    this.groupBytes = groupBytes;
    this.xStride = xStride;
    this.maxTokens = maxTokens;
    code = new X86Functions(maxTokens + 1, emit);
  }

  /** Rows of a tile when {@code rows} are cut into {@code tiles}: they differ by at most one. */
  static int tokens(int rows, int tiles, int tile) {
    return rows / tiles + (tile < rows % tiles ? 1 : 0);
  }

  /**
   * Rows of a tile. Of two tiles the first one, which waits for weights from memory, computes more:
   * three quarters of the rows if it can. The second one reads them from the cache.
   */
  private int size(int rows, int tiles, int tile) {
    if (tiles != 2) {
      return tokens(rows, tiles, tile);
    }
    int first = Math.min(maxTokens, (3 * rows + 3) / 4);
    return tile == 0 ? first : rows - first;
  }

  /**
   * All tiles of a range of rows of weights. The caller has checked the ranges.
   *
   * @param w address of the first group
   * @param x address of the first of {@code rows} rows of activations
   * @param yByte where in y the first row of the range goes for the first row of activations
   * @param outs rows of weights; not a multiple of the lanes only at the end of the matrix
   */
  void run(long w, long x, int rows, MemorySegment y, long yByte, long yStrideBytes, long outs) {
    long groups = outs / lanes;
    int tiles = (rows + maxTokens - 1) / maxTokens;
    long step = tiles == 1 ? groups : Math.max(1, CACHED_WEIGHTS / groupBytes);
    for (long g = 0; g < groups; g += step) {
      long n = Math.min(step, groups - g);
      long wg = w + g * groupBytes;
      long yg = y.address() + yByte + 4 * g * lanes;
      for (int tile = 0, row = 0; tile < tiles; tile++) {
        int tokens = size(rows, tiles, tile);
        X86Code.call(
            code.get(tokens), wg, x + row * xStride, yg + row * yStrideBytes, yStrideBytes, n);
        row += tokens;
      }
    }
    int rest = (int) (outs - groups * lanes);
    if (rest > 0) {
      // The last group is stored whole, so it goes elsewhere first.
      MemorySegment scratch = X86Scratch.get().floats(maxTokens * lanes);
      long wg = w + groups * groupBytes;
      for (int tile = 0, row = 0; tile < tiles; tile++) {
        int tokens = size(rows, tiles, tile);
        X86Code.call(code.get(tokens), wg, x + row * xStride, scratch.address(), 4L * lanes, 1);
        for (int t = 0; t < tokens; t++) {
          long at = yByte + 4 * groups * lanes + (row + t) * yStrideBytes;
          MemorySegment.copy(scratch, 4L * t * lanes, y, at, 4L * rest);
        }
        row += tokens;
      }
    }
  }
}
