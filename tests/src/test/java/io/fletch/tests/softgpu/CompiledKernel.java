package io.fletch.tests.softgpu;

import java.util.List;
import java.util.Map;

/** A kernel ready to run. Immutable once made. */
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

  /** Special registers by name and their slots. */
  Map<String, Integer> specials;
}
