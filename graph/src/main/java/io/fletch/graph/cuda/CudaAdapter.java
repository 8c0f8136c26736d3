package io.fletch.graph.cuda;

import io.fletch.ffm.device.DeviceMemory;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Value;
import io.fletch.graph.support.PreparedAdapter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Map;

/**
 * Low-rank terms in one block of device memory: a table with an entry per product of the graph
 * ({@link AdapterKernels}), then the factors in their own types, the second ones transposed.
 */
final class CudaAdapter extends PreparedAdapter {
  private static final int ALIGNMENT = 16;

  private final CudaExecutable executable;
  private final DeviceMemory memory;

  /**
   * Copies the factors to the device.
   *
   * @param products number of each product of the graph
   */
  CudaAdapter(
      CudaExecutable owner,
      String name,
      Map<Value, LowRankDelta> deltas,
      Map<Value, Integer> products) {
    super(owner, name, deltas);
    executable = owner;
    long table = (long) AdapterKernels.ENTRY_BYTES * products.size();
    long bytes = table;
    for (LowRankDelta d : deltas.values()) {
      bytes += aligned(d.a().bytes()) + aligned(d.b().bytes());
      bytes += aligned(d.gain().map(Tensor::bytes).orElse(0L));
    }
    memory = owner.allocate(bytes);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment host = arena.allocate(bytes, ALIGNMENT);
      long at = table;
      for (Map.Entry<Value, LowRankDelta> e : deltas.entrySet()) {
        LowRankDelta d = e.getValue();
        long second = at + aligned(d.a().bytes());
        MemorySegment.copy(d.a().segment(), 0, host, at, d.a().bytes());
        transpose(d.b(), host.asSlice(second, d.b().bytes()));
        long entry = (long) AdapterKernels.ENTRY_BYTES * products.get(e.getKey());
        ValueLayout.OfInt word = ValueLayout.JAVA_INT;
        host.set(ValueLayout.JAVA_LONG, entry + AdapterKernels.FIRST, memory.address() + at);
        host.set(ValueLayout.JAVA_LONG, entry + AdapterKernels.SECOND, memory.address() + second);
        host.set(word, entry + AdapterKernels.RANK, d.rank());
        host.set(word, entry + AdapterKernels.FIRST_TYPE, AdapterKernels.code(d.a().type()));
        host.set(word, entry + AdapterKernels.SECOND_TYPE, AdapterKernels.code(d.b().type()));
        host.set(ValueLayout.JAVA_FLOAT, entry + AdapterKernels.FACTOR, d.factor());
        at = second + aligned(d.b().bytes());
        if (d.gain().isPresent()) {
          Tensor gain = d.gain().get();
          MemorySegment.copy(gain.segment(), 0, host, at, gain.bytes());
          host.set(ValueLayout.JAVA_LONG, entry + AdapterKernels.GAIN, memory.address() + at);
          at += aligned(gain.bytes());
        }
      }
      owner.upload(host, memory);
    } catch (RuntimeException | Error e) {
      owner.release(memory);
      throw e;
    }
  }

  private static long aligned(long bytes) {
    return (bytes + ALIGNMENT - 1) & -ALIGNMENT;
  }

  private static void transpose(Tensor b, MemorySegment to) {
    long out = b.rows();
    long rank = b.cols();
    boolean wide = b.type() == TensorType.F32;
    MemorySegment from = b.segment();
    for (long o = 0; o < out; o++) {
      for (long k = 0; k < rank; k++) {
        long source = o * rank + k;
        long target = k * out + o;
        if (wide) {
          to.set(
              ValueLayout.JAVA_INT_UNALIGNED,
              4 * target,
              from.get(ValueLayout.JAVA_INT_UNALIGNED, 4 * source));
        } else {
          to.set(
              ValueLayout.JAVA_SHORT_UNALIGNED,
              2 * target,
              from.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * source));
        }
      }
    }
  }

  /** Address of the table. */
  long address() {
    return memory.address();
  }

  @Override
  public long bytes() {
    return memory.bytes();
  }

  @Override
  public void close() {
    if (end()) {
      executable.release(memory);
    }
  }
}
