package io.fletch.tests.softgpu;

/** One compiled instruction. */
final class Instruction {
  /** Does the work of the lanes of a mask. */
  interface Body {
    void run(Warp warp, int mask);
  }

  enum Kind {
    PLAIN,
    BRANCH,
    EXIT,
    BARRIER,
    WARP
  }

  int line;
  String text;
  Kind kind = Kind.PLAIN;
  int guard = -1;
  boolean negated;
  Body body;

  /** First registers (slot times 32) and predicates that must have been written. */
  int[] sources = {};

  int[] predicateSources = {};
  int[] targets = {};
  int[] predicateTargets = {};

  int jump;

  /** WARP: slot of the member mask, or -1 for all 32 lanes. */
  int members = -1;

  /** BARRIER: slots of the number and of the thread count (-1 for all), and whether it waits. */
  int barrier;

  int barrierThreads = -1;
  boolean waits = true;

  /** BARRIER with a reduction: 'p' popc, 'a' and, 'o' or; its operand and target. */
  char reduction;

  int reducePredicate;
  boolean reduceNegated;
  int reduceTarget;
}
