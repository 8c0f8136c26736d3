package io.fletch.tests.softgpu;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A block of threads with its shared memory and barriers. */
final class Block {
  /** Where shared memory starts; below it an address is a mistake. */
  static final int SHARED_BASE = 1024;

  Launch launch;
  final Warp[] warps;
  final byte[] shared;

  /** 1 for each byte of shared memory that may be read. */
  final byte[] sharedWritten;

  final Races.Shared races;
  final Map<Integer, TransactionBarrier> transactions = new HashMap<>();
  int number;
  int x;
  int y;
  int z;

  private final Barrier[] barriers = new Barrier[16];

  private static final class Barrier {
    final List<Warp> waiting = new ArrayList<>();
    int arrived;
    int threads;
    boolean all;
    int votes;
    int voters;
    int[] clocks;
  }

  /** An mbarrier object. */
  static final class TransactionBarrier {
    int expected;
    int pending;
    long bytes;
    int phase;
    final List<Runnable> copies = new ArrayList<>();
    final int[] clocks;

    TransactionBarrier(Block block) {
      clocks = new int[block.warps.length];
    }

    void complete() {
      if (pending == 0 && bytes == 0) {
        phase ^= 1;
        pending = expected;
      }
    }

    /** Finishes the copies that complete here. */
    void finishCopies() {
      List<Runnable> now = new ArrayList<>(copies);
      copies.clear();
      now.forEach(Runnable::run);
    }
  }

  /**
   * A block for this launch and for others of its kernel with as many threads and as much memory.
   */
  Block(Launch launch) {
    this.launch = launch;
    int threads = launch.blockX * launch.blockY * launch.blockZ;
    warps = new Warp[(threads + 31) / 32];
    for (int i = 0; i < warps.length; i++) {
      warps[i] = new Warp(launch.kernel, i);
    }
    int bytes = sharedBytes(launch);
    shared = new byte[bytes];
    sharedWritten = new byte[bytes];
    races = new Races.Shared(bytes, warps.length);
  }

  /** Whether the block could be one of a launch. */
  boolean serves(Launch other) {
    int threads = other.blockX * other.blockY * other.blockZ;
    return warps.length == (threads + 31) / 32
        && shared.length == sharedBytes(other)
        && other.races == launch.races;
  }

  private static int sharedBytes(Launch launch) {
    return (launch.kernel.staticShared + 15 & -16) + launch.shared;
  }

  void start(Launch owner, int n) {
    launch = owner;
    number = n;
    x = number % launch.gridX;
    y = number / launch.gridX % launch.gridY;
    z = number / launch.gridX / launch.gridY;
    Arrays.fill(sharedWritten, (byte) 0);
    races.clear();
    Arrays.fill(barriers, null);
    transactions.clear();
    for (Warp w : warps) {
      w.start(this);
    }
  }

  /** Lets every warp have its share; false when the block is through. */
  boolean step(int share) {
    boolean ran = false;
    boolean left = false;
    for (Warp w : warps) {
      if (w.done() || w.blocked()) {
        left |= !w.done();
        continue;
      }
      ran = true;
      w.run(share);
      if (w.done()) {
        launch.instructions.addAndGet(w.executed);
        w.executed = 0;
        for (Barrier b : barriers) {
          if (b != null && !b.waiting.isEmpty()) {
            release(b);
          }
        }
      } else {
        left = true;
      }
    }
    if (left && !ran) {
      for (Warp w : warps) {
        if (w.blocked()) {
          throw w.fault(
              GpuFault.LAUNCH_FAILED,
              Integer.numberOfTrailingZeros(w.live),
              "divergent barrier: the block waits forever, as not all threads arrive");
        }
      }
    }
    return left;
  }

  /** A whole warp arrives; whether it waits. */
  boolean arrive(Warp w, Instruction in) {
    int lane = Integer.numberOfTrailingZeros(w.atBarrierMask);
    long id = (int) w.r[in.barrier + lane];
    if (id < 0 || id > 15) {
      throw w.fault(GpuFault.LAUNCH_FAILED, lane, "barrier number out of range: " + id);
    }
    Barrier b = barriers[(int) id];
    if (b == null) {
      b = new Barrier();
      b.clocks = new int[warps.length];
      barriers[(int) id] = b;
    }
    boolean all = in.barrierThreads < 0;
    int threads = all ? 0 : (int) w.r[in.barrierThreads + lane];
    if (!all && (threads <= 0 || threads % 32 != 0)) {
      throw w.fault(GpuFault.LAUNCH_FAILED, lane, "barrier count is no multiple of 32: " + threads);
    }
    if (b.arrived > 0 && (b.all != all || b.threads != threads)) {
      throw w.fault(GpuFault.LAUNCH_FAILED, lane, "barrier " + id + " with two thread counts");
    }
    b.all = all;
    b.threads = threads;
    w.release(b.clocks);
    b.arrived += 32;
    if (in.reduction != 0) {
      int yes = w.p[in.reducePredicate];
      yes = (in.reduceNegated ? ~yes : yes) & w.atBarrierMask;
      b.votes += Integer.bitCount(yes);
      b.voters += Integer.bitCount(w.atBarrierMask);
    }
    if (in.waits) {
      w.atBarrier = in;
      b.waiting.add(w);
    }
    release(b);
    return w.atBarrier != null;
  }

  private void release(Barrier b) {
    int needed = b.threads;
    if (b.all) {
      needed = 0;
      for (Warp w : warps) {
        needed += w.done() ? 0 : 32;
      }
    }
    if (b.arrived < needed) {
      return;
    }
    List<Warp> go = new ArrayList<>(b.waiting);
    b.waiting.clear();
    b.arrived = 0;
    for (Warp w : go) {
      Instruction in = w.atBarrier;
      w.atBarrier = null;
      w.acquire(b.clocks);
      switch (in.reduction) {
        case 'p' -> {
          for (int l = 0; l < 32; l++) {
            w.r[in.reduceTarget + l] = b.votes;
          }
          w.written[in.reduceTarget >> 5] |= w.atBarrierMask;
        }
        case 'a', 'o' -> {
          boolean yes = in.reduction == 'a' ? b.votes == b.voters : b.votes > 0;
          w.p[in.reduceTarget] =
              w.p[in.reduceTarget] & ~w.atBarrierMask | (yes ? w.atBarrierMask : 0);
          w.predicatesWritten[in.reduceTarget] |= w.atBarrierMask;
        }
        default -> {}
      }
    }
    b.votes = 0;
    b.voters = 0;
    Arrays.fill(b.clocks, 0);
  }
}
