package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.quant.TensorType;

/**
 * Generates the second factor of a low-rank term: a range of outputs plus a sum of ranges of the
 * transposed factor. Outputs stay in registers while all ranks pass.
 */
public final class AccumulateCode {
  // Parameters.
  private static final Gpr Y = Gpr.RDI;
  private static final Gpr B = Gpr.RSI;
  private static final Gpr N = Gpr.RDX;
  private static final Gpr H = Gpr.RCX;
  private static final Gpr RANK = Gpr.R8;

  private static final Gpr STRIDE = Gpr.R9;
  private static final Gpr FROM = Gpr.R10;
  private static final Gpr FACTOR = Gpr.R11;
  private static final Gpr LEFT = Gpr.RAX;

  /** Vectors of outputs in flight, which hide the latency of the sums. */
  private static final int BLOCK = 4;

  private final Assembler a = new Assembler();
  private final TensorType type;
  private final Lanes lanes;
  private final int bytes;
  private final int floats;
  private final int elements;
  private final Vec factor;

  private AccumulateCode(TensorType type, Isa isa) {
    this.type = type;
    lanes = new Lanes(a, isa);
    bytes = isa.bytes();
    floats = bytes / Float.BYTES;
    elements = Math.toIntExact(type.bytes(floats));
    factor = lanes.reg(14);
  }

  /**
   * Code of {@code void (long y, long b, long n, long h, long rankAndStride)}: the rank in the
   * lower half, the bytes from row to row of {@code b} in the upper.
   *
   * @param type F32, F16 or BF16
   */
  public static byte[] emit(TensorType type, Isa isa) {
    return new AccumulateCode(type, isa).emit();
  }

  private byte[] emit() {
    Tail tail = new Tail(lanes, lanes.reg(15));
    a.mov(STRIDE, RANK);
    a.shr(STRIDE, 32);
    a.shl(RANK, 32);
    a.shr(RANK, 32);
    blocks(BLOCK);
    blocks(1);
    Label done = a.label();
    a.test(N, N);
    a.jcc(Condition.E, done);
    tail.select(N, 0);
    tail.load(lanes.reg(0), Mem.of(Y));
    sums(1);
    tail.store(Mem.of(Y), lanes.reg(0));
    a.bind(done);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** As many blocks of {@code size} vectors as there are. */
  private void blocks(int size) {
    Label rest = a.label();
    a.sub(N, size * floats);
    a.jcc(Condition.L, rest);
    Label loop = a.here();
    for (int i = 0; i < size; i++) {
      a.vmovups(lanes.reg(i), Mem.of(Y, i * bytes));
    }
    sums(size);
    for (int i = 0; i < size; i++) {
      a.vmovups(Mem.of(Y, i * bytes), lanes.reg(i));
    }
    a.add(Y, size * bytes);
    a.add(B, size * elements);
    a.sub(N, size * floats);
    a.jcc(Condition.GE, loop);
    a.bind(rest);
    a.add(N, size * floats);
  }

  /** Adds all ranks to the first {@code size} registers. */
  private void sums(int size) {
    a.mov(FROM, B);
    a.mov(FACTOR, H);
    a.mov(LEFT, RANK);
    Label loop = a.here();
    a.vbroadcastss(factor, Mem.of(FACTOR));
    for (int i = 0; i < size; i++) {
      Vec w = lanes.reg(BLOCK + i);
      Lanes.load(a, type, w, Mem.of(FROM, i * elements));
      a.vfmadd231ps(lanes.reg(i), factor, w);
    }
    a.add(FROM, STRIDE);
    a.add(FACTOR, Float.BYTES);
    a.dec(LEFT);
    a.jcc(Condition.NE, loop);
  }
}
