package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.AttentionStateCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/** Merging and finishing states of attention in machine code; checks are here. */
final class X86AttentionStates {
  /** Functions and what they were emitted for. */
  private record Entry(int group, int valueDim, MemorySegment merge, MemorySegment finish)
      implements X86AttentionTable.Entry {
    @Override
    public boolean fits(AttentionSpec spec, KvCache.Type type, int heads) {
      return group == heads && valueDim == spec.valueDim();
    }
  }

  private final Isa isa;
  private final X86AttentionTable<Entry> functions = new X86AttentionTable<>(this::emit);

  X86AttentionStates(Isa isa) {
    this.isa = isa;
  }

  /** Whether there is code for a shape. */
  static boolean supports(AttentionSpec spec) {
    return AttentionStateCode.supports(spec.valueDim());
  }

  /** States are floats, whatever the type of the cache. */
  private Entry code(AttentionSpec spec) {
    return functions.get(spec, KvCache.Type.F32, spec.group());
  }

  private Entry emit(AttentionSpec spec, KvCache.Type type, int group) {
    int valueDim = spec.valueDim();
    String name = " of states " + group + " " + valueDim + " " + isa.label();
    return new Entry(
        group,
        valueDim,
        X86Code.function("merge" + name, () -> AttentionStateCode.merge(group, valueDim, isa)),
        X86Code.function("finish" + name, () -> AttentionStateCode.finish(group, valueDim, isa)));
  }

  /** See {@link Kernels#attentionMerge}. */
  void merge(AttentionSpec spec, MemorySegment states, long merged, long next) {
    long bytes = 4L * spec.group() * (2 + spec.valueDim());
    Objects.checkFromIndexSize(4 * merged, bytes, states.byteSize());
    Objects.checkFromIndexSize(4 * next, bytes, states.byteSize());
    MemorySegment code = code(spec).merge;
    X86Code.call(code, states.address() + 4 * merged, states.address() + 4 * next, 0, 0, 0);
  }

  /** See {@link Kernels#attentionFinish}. */
  void finish(
      AttentionSpec spec, MemorySegment states, long state, MemorySegment out, long outOffset) {
    long values = 4L * spec.group() * spec.valueDim();
    Objects.checkFromIndexSize(4 * state, 8L * spec.group() + values, states.byteSize());
    Objects.checkFromIndexSize(4 * outOffset, values, out.byteSize());
    MemorySegment code = code(spec).finish;
    X86Code.call(code, states.address() + 4 * state, out.address() + 4 * outOffset, 0, 0, 0);
  }
}
