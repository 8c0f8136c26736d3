package io.fletch.ffm.device;

/**
 * How a kernel is launched. Immutable.
 *
 * @param gridX blocks, at least 1 in each direction
 * @param gridY blocks
 * @param gridZ blocks
 * @param blockX threads of a block, at least 1 in each direction, at most 1,024 together
 * @param blockY threads
 * @param blockZ threads
 * @param shared bytes of dynamic shared memory of a block
 * @param cooperative whether all blocks must be resident at once, so that they may wait for each
 *     other
 * @param cluster blocks of a cluster in x direction, or 0 for none (compute capability 9.0 on)
 * @param programmatic whether the kernel may start before its predecessor in the stream ends; it
 *     waits with {@code griddepcontrol.wait} before it reads what that one wrote (9.0 on)
 */
public record LaunchConfig(
    int gridX,
    int gridY,
    int gridZ,
    int blockX,
    int blockY,
    int blockZ,
    int shared,
    boolean cooperative,
    int cluster,
    boolean programmatic) {
  /** Checks what holds for every device. */
  public LaunchConfig {
    if (gridX < 1 || gridY < 1 || gridZ < 1 || gridY > 65_535 || gridZ > 65_535) {
      throw new IllegalArgumentException(
          "grid out of range: actual=" + gridX + "x" + gridY + "x" + gridZ);
    }
    if (blockX < 1
        || blockY < 1
        || blockZ < 1
        || blockZ > 64
        || (long) blockX * blockY > 1024
        || (long) blockX * blockY * blockZ > 1024) {
      throw new IllegalArgumentException(
          "block out of range: expected<=1024 threads actual="
              + blockX
              + "x"
              + blockY
              + "x"
              + blockZ);
    }
    if (shared < 0) {
      throw new IllegalArgumentException("shared memory out of range: actual=" + shared);
    }
    if (cluster < 0 || cluster > 16 || cluster > 0 && gridX % cluster != 0) {
      throw new IllegalArgumentException(
          "cluster out of range: expected=a divisor of " + gridX + " up to 16, actual=" + cluster);
    }
  }

  /** A one-dimensional launch. */
  public static LaunchConfig of(int blocks, int threads) {
    return new LaunchConfig(blocks, 1, 1, threads, 1, 1, 0, false, 0, false);
  }

  /** The same with another grid. */
  public LaunchConfig withGrid(int x, int y, int z) {
    return new LaunchConfig(
        x, y, z, blockX, blockY, blockZ, shared, cooperative, cluster, programmatic);
  }

  /** The same with another block. */
  public LaunchConfig withBlock(int x, int y, int z) {
    return new LaunchConfig(
        gridX, gridY, gridZ, x, y, z, shared, cooperative, cluster, programmatic);
  }

  /** The same with dynamic shared memory. */
  public LaunchConfig withShared(int bytes) {
    return new LaunchConfig(
        gridX, gridY, gridZ, blockX, blockY, blockZ, bytes, cooperative, cluster, programmatic);
  }

  /** The same with all blocks resident. */
  public LaunchConfig withCooperative(boolean on) {
    return new LaunchConfig(
        gridX, gridY, gridZ, blockX, blockY, blockZ, shared, on, cluster, programmatic);
  }

  /** The same in clusters of blocks. */
  public LaunchConfig withCluster(int blocks) {
    return new LaunchConfig(
        gridX, gridY, gridZ, blockX, blockY, blockZ, shared, cooperative, blocks, programmatic);
  }

  /** The same with programmatic dependent launch. */
  public LaunchConfig withProgrammatic(boolean on) {
    return new LaunchConfig(
        gridX, gridY, gridZ, blockX, blockY, blockZ, shared, cooperative, cluster, on);
  }

  @Override
  public String toString() {
    return "grid="
        + gridX
        + "x"
        + gridY
        + "x"
        + gridZ
        + ", block="
        + blockX
        + "x"
        + blockY
        + "x"
        + blockZ
        + ", shared="
        + shared
        + (cooperative ? ", cooperative" : "")
        + (cluster > 0 ? ", cluster=" + cluster : "")
        + (programmatic ? ", programmatic" : "");
  }
}
