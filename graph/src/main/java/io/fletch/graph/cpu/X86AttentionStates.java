package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.cpu.x86.AttentionStateCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Objects;

/** Merging and finishing states of attention in machine code; checks are here. */
final class X86AttentionStates {
  /** Functions and what they were emitted for. */
  private record Entry(int group, int valueDim, MemorySegment merge, MemorySegment finish) {}

  private final Isa isa;

  /** Copied on every addition: a model has very few, and looking one up must not allocate. */
  private volatile Entry[] entries = {};

  X86AttentionStates(Isa isa) {
    this.isa = isa;
  }

  /** Whether there is code for a shape. */
  static boolean supports(AttentionSpec spec) {
    return AttentionStateCode.supports(spec.valueDim());
  }

  private Entry entry(int group, int valueDim) {
    for (Entry e : entries) {
      if (e.group == group && e.valueDim == valueDim) {
        return e;
      }
    }
    return add(group, valueDim);
  }

  private synchronized Entry add(int group, int valueDim) {
    String name = " of states " + group + " " + valueDim + " " + isa.label();
    Entry entry =
        new Entry(
            group,
            valueDim,
            X86Code.function("merge" + name, () -> AttentionStateCode.merge(group, valueDim, isa)),
            X86Code.function(
                "finish" + name, () -> AttentionStateCode.finish(group, valueDim, isa)));
    Entry[] more = Arrays.copyOf(entries, entries.length + 1);
    more[entries.length] = entry;
    entries = more;
    return entry;
  }

  /** See {@link Kernels#attentionMerge}. */
  void merge(AttentionSpec spec, MemorySegment states, long merged, long next) {
    long bytes = 4L * spec.group() * (2 + spec.valueDim());
    Objects.checkFromIndexSize(4 * merged, bytes, states.byteSize());
    Objects.checkFromIndexSize(4 * next, bytes, states.byteSize());
    MemorySegment code = entry(spec.group(), spec.valueDim()).merge;
    X86Code.call(code, states.address() + 4 * merged, states.address() + 4 * next, 0, 0, 0);
  }

  /** See {@link Kernels#attentionFinish}. */
  void finish(
      AttentionSpec spec, MemorySegment states, long state, MemorySegment out, long outOffset) {
    long values = 4L * spec.group() * spec.valueDim();
    Objects.checkFromIndexSize(4 * state, 8L * spec.group() + values, states.byteSize());
    Objects.checkFromIndexSize(4 * outOffset, values, out.byteSize());
    MemorySegment code = entry(spec.group(), spec.valueDim()).finish;
    X86Code.call(code, states.address() + 4 * state, out.address() + 4 * outOffset, 0, 0, 0);
  }
}
