package io.fletch.tests.softgpu;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.List;

/** 32 lanes of a block: their registers, and where each of them is. */
final class Warp {
  private static final int SPINS = 4096;

  final CompiledKernel kernel;
  final int index;
  final long[] r;
  final int[] written;
  final int[] p;
  final int[] predicatesWritten;
  Block block;

  int live;
  boolean yield;

  /** Lanes that waited for the launches before. */
  int waited;

  /** Moves on at barriers, for {@link Races}. */
  int clock;

  /** Of each warp of the block the clock up to which all comes before what this one does. */
  int[] seen = {};

  /** What instructions of all lanes put their results and matrices together in. */
  final long[] out = new long[32];

  final double[] matrixA = new double[16 * 32];
  final double[] matrixB = new double[8 * 32];
  final double[] matrixC = new double[16 * 8];

  final Races.Page[] pages = new Races.Page[64];
  final long[] pageNumbers = new long[64];

  /** Range of global memory that the last access was in. */
  long low;

  long high;

  private final int[] pcs = new int[32];
  private int pc;
  private boolean converged;
  private int waiting;
  private int preferred;
  private int spins;
  private Instruction current;
  private int currentMask;

  /** Set while the warp waits at a barrier. */
  Instruction atBarrier;

  int atBarrierMask;
  long executed;

  /** Copies that were started and not waited for, by group; the last list is open. */
  @SuppressWarnings({"unchecked", "rawtypes"})
  final Deque<List<Runnable>>[] copies = new Deque[32];

  Warp(CompiledKernel kernel, int index) {
    this.kernel = kernel;
    this.index = index;
    r = new long[kernel.slots * 32];
    written = new int[kernel.slots];
    p = new int[kernel.predicates];
    predicatesWritten = new int[kernel.predicates];
  }

  void start(Block owner) {
    block = owner;
    Launch launch = owner.launch;
    Arrays.fill(written, 0);
    Arrays.fill(predicatesWritten, 0);
    int threads = launch.blockX * launch.blockY * launch.blockZ;
    int lanes = Math.min(32, threads - 32 * index);
    live = lanes == 32 ? -1 : (1 << lanes) - 1;
    pc = 0;
    converged = true;
    waiting = 0;
    spins = 0;
    preferred = 0;
    atBarrier = null;
    waited = 0;
    clock = 1;
    seen = new int[owner.warps.length];
    low = 0;
    high = 0;
    Arrays.fill(copies, null);
    for (int i = 0; i < kernel.constants.length; i++) {
      int slot = kernel.constantSlots[i];
      Arrays.fill(r, slot * 32, slot * 32 + 32, kernel.constants[i]);
      written[slot] = -1;
    }
    kernel.specials.forEach((name, slot) -> {
      written[slot] = -1;
      if (name.startsWith("%tid.") || name.startsWith("%lane")) {
        for (int l = 0; l < 32; l++) {
          r[slot * 32 + l] = special(name, l);
        }
      } else {
        Arrays.fill(r, slot * 32, slot * 32 + 32, special(name, 0));
      }
    });
  }

  private long special(String name, int lane) {
    Launch g = block.launch;
    int t = 32 * index + lane;
    return switch (name) {
      case "%tid.x" -> t % g.blockX;
      case "%tid.y" -> t / g.blockX % g.blockY;
      case "%tid.z" -> t / g.blockX / g.blockY;
      case "%ntid.x" -> g.blockX;
      case "%ntid.y" -> g.blockY;
      case "%ntid.z" -> g.blockZ;
      case "%ctaid.x" -> block.x;
      case "%ctaid.y" -> block.y;
      case "%ctaid.z" -> block.z;
      case "%nctaid.x" -> g.gridX;
      case "%nctaid.y" -> g.gridY;
      case "%nctaid.z" -> g.gridZ;
      case "%laneid" -> lane;
      case "%warpid" -> index;
      case "%nwarpid" -> block.warps.length;
      case "%smid", "%gridid" -> 0;
      case "%nsmid" -> SoftGpu.MULTIPROCESSORS;
      case "%lanemask_eq" -> (1L << lane) & 0xffffffffL;
      case "%lanemask_lt" -> (1L << lane) - 1;
      case "%lanemask_le" -> (2L << lane) - 1;
      case "%lanemask_gt" -> 0xffffffffL & ~((2L << lane) - 1);
      case "%lanemask_ge" -> 0xffffffffL & ~((1L << lane) - 1);
      case "%dynamic_smem_size" -> g.shared;
      case "%total_smem_size" -> g.shared + kernel.staticShared;
      case "%clock", "%clock64", "%globaltimer" -> 0;
      default -> throw new IllegalArgumentException(name);
    };
  }

  static boolean isSpecial(String name) {
    return switch (name) {
      case "%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z" -> true;
      case "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z" -> true;
      case "%laneid", "%warpid", "%nwarpid", "%smid", "%nsmid", "%gridid" -> true;
      case "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge" -> true;
      case "%dynamic_smem_size", "%total_smem_size" -> true;
      case "%clock", "%clock64", "%globaltimer" -> true;
      default -> false;
    };
  }

  boolean done() {
    return live == 0;
  }

  boolean blocked() {
    return atBarrier != null;
  }

  GpuFault fault(int code, int lane, String message) {
    int t = 32 * index + lane;
    Launch g = block.launch;
    return new GpuFault(
        code,
        "kernel "
            + kernel.name
            + ", line "
            + current.line
            + " ("
            + current.text
            + "), block "
            + block.x
            + ","
            + block.y
            + ","
            + block.z
            + ", thread "
            + t % g.blockX
            + ","
            + t / g.blockX % g.blockY
            + ","
            + t / g.blockX / g.blockY
            + ": "
            + message);
  }

  /** Who does what now: clock, warp and lane. */
  int stamp(int lane) {
    return clock << 10 | index << 5 | lane;
  }

  /** Whether what a stamp is of comes before what a lane does now. */
  boolean before(int stamp, int lane) {
    int warp = stamp >> 5 & 31;
    int then = stamp >>> 10;
    return warp == index ? (stamp & 31) == lane || then < clock : seen[warp] >= then;
  }

  /** All that the warp did comes before what others do who see these clocks. */
  void release(int[] clocks) {
    clocks[index] = Math.max(clocks[index], clock);
    for (int v = 0; v < clocks.length; v++) {
      clocks[v] = Math.max(clocks[v], seen[v]);
    }
    clock++;
  }

  /** What these clocks say comes before what the warp does from now on. */
  void acquire(int[] clocks) {
    for (int v = 0; v < clocks.length; v++) {
      seen[v] = Math.max(seen[v], clocks[v]);
    }
  }

  private void diverge() {
    if (converged) {
      Arrays.fill(pcs, pc);
      converged = false;
    }
  }

  private void advance(int mask, int to) {
    if (converged) {
      if (mask == live) {
        pc = to;
        return;
      }
      diverge();
    }
    for (int m = mask; m != 0; m &= m - 1) {
      pcs[Integer.numberOfTrailingZeros(m)] = to;
    }
  }

  /** Chooses the lanes that go on: those least far, so that the others are caught up with. */
  private int select() {
    if (converged) {
      return live;
    }
    int runnable = live & ~waiting;
    if (runnable == 0) {
      throw divergent();
    }
    int best = Integer.MAX_VALUE;
    int least = Integer.MAX_VALUE;
    for (int m = runnable; m != 0; m &= m - 1) {
      int at = pcs[Integer.numberOfTrailingZeros(m)];
      least = Math.min(least, at);
      if (at >= preferred) {
        best = Math.min(best, at);
      }
    }
    if (best == Integer.MAX_VALUE) {
      best = least;
      preferred = 0;
    }
    pc = best;
    int mask = 0;
    for (int m = live; m != 0; m &= m - 1) {
      int l = Integer.numberOfTrailingZeros(m);
      if (pcs[l] == best) {
        mask |= 1 << l;
      }
    }
    if (mask == live) {
      converged = true;
      waiting = 0;
      spins = 0;
      preferred = 0;
    }
    return mask;
  }

  private GpuFault divergent() {
    StringBuilder s = new StringBuilder("lanes wait for each other at different places:");
    for (int m = live; m != 0; m &= m - 1) {
      int l = Integer.numberOfTrailingZeros(m);
      s.append(' ').append(l).append("@line ").append(kernel.code[pcs[l]].line);
    }
    return fault(
        GpuFault.LAUNCH_FAILED, Integer.numberOfTrailingZeros(live), "divergent barrier; " + s);
  }

  /** Runs until the warp ends, waits at a barrier, or has had its share. */
  void run(int share) {
    yield = false;
    Instruction[] code = kernel.code;
    int rest = share;
    while (rest-- > 0 && live != 0 && !yield) {
      int mask = select();
      if (pc >= code.length) {
        exit(mask);
        continue;
      }
      Instruction in = code[pc];
      current = in;
      currentMask = mask;
      executed++;
      int active = mask;
      if (in.guard >= 0) {
        if ((predicatesWritten[in.guard] & mask) != mask) {
          throw unwritten(mask & ~predicatesWritten[in.guard], "the guard predicate");
        }
        active = mask & (in.negated ? ~p[in.guard] : p[in.guard]);
      }
      if (in.kind == Instruction.Kind.PLAIN) {
        if (active != 0) {
          execute(in, active);
        }
        if (converged) {
          pc++;
        } else {
          advance(mask, pc + 1);
        }
        continue;
      }
      switch (in.kind) {
        case BRANCH -> branch(in, mask, active);
        case EXIT -> {
          int here = pc;
          if (active != mask) {
            advance(mask & ~active, here + 1);
          }
          if (active != 0) {
            exit(active);
          }
        }
        case WARP -> together(in, mask, active);
        case BARRIER -> {
          if (barrier(in, mask, active)) {
            return;
          }
        }
        case PLAIN -> throw new AssertionError();
      }
    }
  }

  private void exit(int lanes) {
    if (block.launch.programmatic && (lanes & ~waited) != 0) {
      throw fault(
          GpuFault.LAUNCH_FAILED,
          Integer.numberOfTrailingZeros(lanes & ~waited),
          "ends without griddepcontrol.wait: what comes next could overtake the launches before");
    }
    if (converged && lanes != live) {
      diverge();
    }
    live &= ~lanes;
    // Those who waited for them look again.
    waiting = 0;
  }

  private void execute(Instruction in, int mask) {
    for (int s : in.sources) {
      if ((written[s >> 5] & mask) != mask) {
        throw unwritten(mask & ~written[s >> 5], "a register");
      }
    }
    for (int s : in.predicateSources) {
      if ((predicatesWritten[s] & mask) != mask) {
        throw unwritten(mask & ~predicatesWritten[s], "a predicate");
      }
    }
    in.body.run(this, mask);
    for (int t : in.targets) {
      written[t >> 5] |= mask;
    }
    for (int t : in.predicateTargets) {
      predicatesWritten[t] |= mask;
    }
  }

  private GpuFault unwritten(int lanes, String what) {
    return fault(
        GpuFault.LAUNCH_FAILED,
        Integer.numberOfTrailingZeros(lanes),
        "reads " + what + " that was not written");
  }

  private void branch(Instruction in, int mask, int active) {
    int here = pc;
    if (active == 0) {
      advance(mask, here + 1);
    } else if (active == mask) {
      advance(mask, in.jump);
    } else {
      advance(mask & ~active, here + 1);
      advance(active, in.jump);
    }
    if (in.jump <= here && !converged && ++spins > SPINS) {
      // Whoever this loop waits for may be further on.
      spins = 0;
      preferred = here + 1;
    }
  }

  /** A loop found nothing to do: others first. */
  void giveWay() {
    yield = true;
    if (!converged) {
      preferred = pc + 2;
      spins = 0;
    }
  }

  /** Lanes of a mask meet at one instruction. */
  private void together(Instruction in, int mask, int active) {
    int here = pc;
    if (active == 0) {
      waiting &= ~mask;
      advance(mask, here + 1);
      return;
    }
    int need = -1;
    if (in.members >= 0) {
      if ((written[in.members >> 5] & active) != active) {
        throw unwritten(active & ~written[in.members >> 5], "the member mask");
      }
      int first = Integer.numberOfTrailingZeros(active);
      need = (int) r[in.members + first];
      for (int m = active; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        if ((int) r[in.members + l] != need) {
          throw fault(GpuFault.LAUNCH_FAILED, l, "member masks differ between lanes");
        }
      }
      if ((active & ~need) != 0) {
        throw fault(
            GpuFault.LAUNCH_FAILED,
            Integer.numberOfTrailingZeros(active & ~need),
            "the thread is not in its own member mask 0x" + Integer.toHexString(need));
      }
      need &= live;
    } else if (live != -1) {
      throw fault(
          GpuFault.LAUNCH_FAILED,
          Integer.numberOfTrailingZeros(active),
          "needs all 32 lanes; live=0x" + Integer.toHexString(live));
    }
    int missing = need & ~active;
    if ((missing & mask) != 0) {
      throw fault(
          GpuFault.LAUNCH_FAILED,
          Integer.numberOfTrailingZeros(missing & mask),
          "is named by a member mask and skips the instruction by its predicate");
    }
    if (missing != 0) {
      waiting |= mask;
      return;
    }
    waiting &= ~mask;
    execute(in, active);
    advance(mask, here + 1);
  }

  /** Whether the warp waits now. */
  private boolean barrier(Instruction in, int mask, int active) {
    int here = pc;
    if (active == 0) {
      advance(mask, here + 1);
      return false;
    }
    if (active != live) {
      if ((mask & ~active) != 0) {
        throw fault(
            GpuFault.LAUNCH_FAILED,
            Integer.numberOfTrailingZeros(mask & ~active),
            "divergent barrier: the thread skips it by its predicate while its warp waits");
      }
      waiting |= mask;
      return false;
    }
    waiting = 0;
    for (int s : in.sources) {
      if ((written[s >> 5] & active) != active) {
        throw unwritten(active & ~written[s >> 5], "a register");
      }
    }
    advance(mask, here + 1);
    atBarrierMask = active;
    return block.arrive(this, in);
  }

  /** The lane in which the running instruction is looked at first. */
  int firstLane() {
    return Integer.numberOfTrailingZeros(currentMask);
  }

  // Asynchronous copies of a thread.

  void startCopy(int lane, Runnable copy) {
    if (copies[lane] == null) {
      copies[lane] = new ArrayDeque<>();
      copies[lane].add(new ArrayList<>());
    }
    copies[lane].getLast().add(copy);
  }

  void commitCopies(int lane) {
    if (copies[lane] == null) {
      copies[lane] = new ArrayDeque<>();
      copies[lane].add(new ArrayList<>());
    }
    copies[lane].add(new ArrayList<>());
  }

  /** Finishes all groups but the newest {@code keep}; with -1 also what was not committed. */
  void waitCopies(int lane, int keep) {
    Deque<List<Runnable>> groups = copies[lane];
    if (groups == null) {
      return;
    }
    while (groups.size() > keep + 1 && groups.size() > 1) {
      groups.removeFirst().forEach(Runnable::run);
    }
    if (keep < 0) {
      groups.getFirst().forEach(Runnable::run);
      groups.getFirst().clear();
    }
  }
}
