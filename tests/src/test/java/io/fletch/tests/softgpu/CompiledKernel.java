package io.fletch.tests.softgpu;

import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;
import java.util.Map;

/**
 * A kernel ready to run. Immutable once made, but for the blocks that it keeps for its launches.
 */
final class CompiledKernel {
  String name;
  Instruction[] code;
  int slots;
  int predicates;
  List<PtxParser.Parameter> parameters;
  int parameterBytes;
  int staticShared;
  int maxThreads;
  int[] requiredThreads;

  /** Slots that hold the same value in all lanes. */
  int[] constantSlots;

  long[] constants;

  /** The same kernel with no launches. */
  CompiledKernel copy() {
    CompiledKernel k = new CompiledKernel();
    k.name = name;
    k.code = code;
    k.slots = slots;
    k.predicates = predicates;
    k.parameters = parameters;
    k.parameterBytes = parameterBytes;
    k.staticShared = staticShared;
    k.maxThreads = maxThreads;
    k.requiredThreads = requiredThreads;
    k.constantSlots = constantSlots;
    k.constants = constants;
    k.specials = specials;
    return k;
  }

  /** Of finished launches. */
  private final Deque<Block> idle = new ArrayDeque<>();

  /** A block for a launch, which starts it. */
  Block takeBlock(Launch launch) {
    synchronized (idle) {
      Block b = idle.poll();
      if (b != null && b.serves(launch)) {
        return b;
      }
    }
    return new Block(launch);
  }

  /** Takes a block back whose work is done. */
  void giveBlock(Block b) {
    synchronized (idle) {
      if (idle.size() < 2) {
        idle.push(b);
      }
    }
  }

  /** Special registers by name and their slots. */
  Map<String, Integer> specials;
}
