package io.fletch.tests.softgpu;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

/** One run of a kernel over a grid. */
final class Launch {
  private static final int SHARE = 4096;

  /** More would not fit the limits that a real device has. */
  private static final int COOPERATIVE_BLOCKS = 8 * SoftGpu.MULTIPROCESSORS;

  /** Threads that run blocks beside those that launch. */
  private static final ExecutorService HELPERS =
      Executors.newCachedThreadPool(Thread.ofPlatform().daemon().name("gpu-", 0).factory());

  final CompiledKernel kernel;
  final MemoryMap memory;
  final byte[] parameters;
  final int gridX;
  final int gridY;
  final int gridZ;
  final int blockX;
  final int blockY;
  final int blockZ;
  final int shared;
  final boolean cooperative;

  /** Whether the launch may begin before those before it end. */
  final boolean programmatic;

  final Races races;

  /** Of all launches of the device this one, and the first that may still run beside it. */
  int number;

  int chain;
  final AtomicLong instructions = new AtomicLong();

  Launch(
      CompiledKernel kernel,
      MemoryMap memory,
      byte[] parameters,
      int[] grid,
      int[] block,
      int shared,
      boolean cooperative,
      boolean programmatic,
      Races races) {
    this.kernel = kernel;
    this.memory = memory;
    this.parameters = parameters;
    gridX = grid[0];
    gridY = grid[1];
    gridZ = grid[2];
    blockX = block[0];
    blockY = block[1];
    blockZ = block[2];
    this.shared = shared;
    this.cooperative = cooperative;
    this.programmatic = programmatic;
    this.races = races;
  }

  static boolean fits(int blocks) {
    return blocks <= COOPERATIVE_BLOCKS;
  }

  /**
   * Runs all blocks: those of a cooperative launch side by side, others one after the other.
   *
   * @throws GpuFault at the first thing that must not be
   */
  void run(int workers) {
    int blocks = gridX * gridY * gridZ;
    if (cooperative) {
      List<Block> all = new ArrayList<>();
      for (int i = 0; i < blocks; i++) {
        Block b = new Block(this);
        b.start(this, i);
        all.add(b);
      }
      while (!all.isEmpty()) {
        all.removeIf(b -> !b.step(SHARE));
      }
      return;
    }
    if (workers < 2 || blocks < 4) {
      AtomicInteger next = new AtomicInteger();
      work(next, blocks);
      return;
    }
    AtomicInteger next = new AtomicInteger();
    AtomicReference<RuntimeException> failure = new AtomicReference<>();
    Runnable job =
        () -> {
          try {
            work(next, blocks);
          } catch (RuntimeException e) {
            failure.compareAndSet(null, e);
            next.set(blocks);
          }
        };
    Future<?> helper = HELPERS.submit(job);
    job.run();
    boolean interrupted = false;
    while (!helper.isDone()) {
      try {
        helper.get();
      } catch (InterruptedException _) {
        interrupted = true;
      } catch (ExecutionException e) {
        throw new IllegalStateException(e.getCause());
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
    if (failure.get() != null) {
      throw failure.get();
    }
  }

  private void work(AtomicInteger next, int blocks) {
    Block block = kernel.takeBlock(this);
    for (int i = next.getAndIncrement(); i < blocks; i = next.getAndIncrement()) {
      block.start(this, i);
      while (block.step(SHARE)) {
        Thread.onSpinWait();
      }
    }
    kernel.giveBlock(block);
  }
}
