package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.graph.cpu.x86.PackedLayout.Codes;
import io.fletch.quant.TensorType;

/**
 * Generates the repacking of whole groups of rows into a {@link PackedLayout}: the same permutation
 * as {@link PackedLayout#pack}, several times faster, so that weights can also be packed piece by
 * piece while they are multiplied.
 *
 * <p>Signature of the code: {@code void (long source, long target, long groups)}, source at the
 * first row of the file format, {@code groups >= 1}. Rows are taken one after another and written
 * to their lane; the source is read in order.
 */
public final class PackCode {
  private static final Gpr SOURCE = Gpr.RDI;
  private static final Gpr CODES = Gpr.RSI;
  private static final Gpr META = Gpr.RDX;
  private static final Gpr BLOCKS = Gpr.R14;
  private static final Gpr LANES = Gpr.R15;
  private static final Gpr T = Gpr.R12;
  private static final Gpr U = Gpr.R13;

  /** The eight quads of a chunk. */
  private static final Gpr[] Q = {
    Gpr.RAX, Gpr.RBX, Gpr.RCX, Gpr.RBP, Gpr.R8, Gpr.R9, Gpr.R10, Gpr.R11
  };

  private static final Gpr[] SAVED = {Gpr.RBX, Gpr.RBP, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private static final int LOW4 = 0x0f0f0f0f;
  private static final int LOW2 = 0x03030303;
  private static final int LOW1 = 0x01010101;

  private final Assembler a = new Assembler();
  private final PackedLayout p;

  /** Where the scales of the block in work go, from {@link #META}. */
  private int metaBase;

  private PackCode(PackedLayout layout) {
    this.p = layout;
  }

  /** Emits the code. */
  public static byte[] emit(PackedLayout layout) {
    Math.toIntExact(layout.groupBytes);
    return new PackCode(layout).emit();
  }

  private byte[] emit() {
    a.pushAll(SAVED);
    Mem target = Mem.of(Gpr.RSP, 0);
    Mem groups = Mem.of(Gpr.RSP, 8);
    a.sub(Gpr.RSP, 16);
    a.mov(groups, Gpr.RDX);
    a.mov(target, Gpr.RSI);
    // A lane of meta is two bytes wide, of exponents (MXFP4) one.
    int metaLane = p.type == TensorType.MXFP4 ? 1 : 2;
    Label group = a.here();
    a.mov(CODES, target);
    int unit = p.pairs ? 2 : 1;
    a.add(CODES, p.scaleBytes);
    a.lea(META, Mem.of(CODES, unit * p.codesPerBlock));
    a.mov(LANES, (long) p.lanes);
    Label row = a.here();
    int units = p.blocks / unit;
    if (units > 0) {
      a.mov(BLOCKS, (long) units);
      Label blocks = a.here();
      for (int i = 0; i < unit; i++) {
        block(i * p.codesPerBlock, i * p.metaPerBlock);
      }
      a.add(CODES, unit * p.blockStride);
      a.add(META, unit * p.blockStride);
      a.dec(BLOCKS);
      a.jcc(Condition.NE, blocks);
    }
    if (p.blocks % unit != 0) {
      block(0, -p.codesPerBlock);
    }
    a.sub(CODES, units * unit * p.blockStride - 4);
    a.sub(META, units * unit * p.blockStride - metaLane);
    a.dec(LANES);
    a.jcc(Condition.NE, row);
    a.mov(T, target);
    a.add(T, (int) p.groupBytes);
    a.mov(target, T);
    a.mov(T, groups);
    a.dec(T);
    a.mov(groups, T);
    a.jcc(Condition.NE, group);
    a.add(Gpr.RSP, 16);
    a.popAll(SAVED);
    a.ret();
    return a.assemble();
  }

  /** One block of one row, to offsets from the running pointers. */
  private void block(int codes, int meta) {
    metaBase = meta;
    for (int c = 0; c < p.blockSize / 32; c++) {
      if (p.codes == Codes.TWINS) {
        twins(c, codes);
        continue;
      }
      quads(c);
      store(codes + c * p.codes.vectors * 4 * p.lanes);
    }
    meta();
    a.add(SOURCE, p.type.blockBytes());
  }

  /** The file has the codes of two chunks in the halves of its bytes, too. */
  private void twins(int c, int codes) {
    for (int k = 0; c % 2 == 0 && k < 8; k++) {
      load(T, 16 + 16 * c + 4 * k);
      a.mov32(Mem.of(CODES, codes + (c * p.codes.vectors + k) * 4 * p.lanes), T);
    }
  }

  private Mem target(int offset) {
    return Mem.of(META, metaBase + offset);
  }

  private void load(Gpr d, int offset) {
    a.mov32(d, Mem.of(SOURCE, offset));
  }

  /** {@code d = d >>> shift & mask}. */
  private void field(Gpr d, int shift, int mask) {
    if (shift != 0) {
      a.shr32(d, shift);
    }
    a.and32(d, mask);
  }

  /** {@code d |= t << shift}; overwrites t. */
  private void insert(Gpr d, Gpr t, int shift) {
    if (shift != 0) {
      a.shl32(t, shift);
    }
    a.or32(d, t);
  }

  // ---- codes, as in PackedLayout

  private void quads(int c) {
    switch (p.type) {
      case Q8_0 -> {
        for (int k = 0; k < 8; k++) {
          load(Q[k], 2 + 4 * k);
          if (p.unsignedBytes) {
            a.xor32(Q[k], 0x80808080);
          }
        }
      }
      case Q4_0, IQ4_NL -> halves(2);
      case Q4_1 -> halves(4);
      case MXFP4 -> halves(1);
      case IQ4_XS -> halves(8 + 16 * c);
      case Q5_0 -> fives(2);
      case Q5_1 -> fives(4);
      case Q4_K -> {
        for (int k = 0; k < 8; k++) {
          load(Q[k], 16 + 32 * (c >> 1) + 4 * k);
          field(Q[k], 4 * (c & 1), LOW4);
        }
      }
      case Q5_K -> {
        for (int k = 0; k < 8; k++) {
          load(Q[k], 48 + 32 * (c >> 1) + 4 * k);
          field(Q[k], 4 * (c & 1), LOW4);
          load(T, 16 + 4 * k);
          field(T, c, LOW1);
          insert(Q[k], T, 4);
        }
      }
      case Q6_K -> {
        for (int k = 0; k < 8; k++) {
          load(Q[k], 64 * (c >> 2) + 32 * (c & 1) + 4 * k);
          field(Q[k], 4 * (c >> 1 & 1), LOW4);
          load(T, 128 + 32 * (c >> 2) + 4 * k);
          field(T, 2 * (c & 3), LOW2);
          insert(Q[k], T, 4);
        }
      }
      case Q2_K -> lowTwoBits(16, c);
      case Q3_K -> {
        lowTwoBits(32, c);
        for (int k = 0; k < 8; k++) {
          load(T, 4 * k);
          field(T, c, LOW1);
          insert(Q[k], T, 2);
        }
      }
      default -> throw new AssertionError(p.type);
    }
  }

  private void lowTwoBits(int offset, int c) {
    for (int k = 0; k < 8; k++) {
      load(Q[k], offset + 32 * (c >> 2) + 4 * k);
      field(Q[k], 2 * (c & 3), LOW2);
    }
  }

  private void halves(int offset) {
    for (int k = 0; k < 4; k++) {
      load(Q[k], offset + 4 * k);
      a.mov32(Q[k + 4], Q[k]);
      field(Q[k], 0, LOW4);
      field(Q[k + 4], 4, LOW4);
    }
  }

  private void fives(int offset) {
    halves(offset + 4);
    for (int k = 0; k < 8; k++) {
      load(T, offset);
      field(T, 4 * k, 15);
      // Spreads four bits over four bytes.
      a.imul(T, T, 0x00204081);
      a.and32(T, LOW1);
      insert(Q[k], T, 4);
    }
  }

  private void store(int offset) {
    int stride = 4 * p.lanes;
    switch (p.codes) {
      case BYTES -> {
        for (int k = 0; k < 8; k++) {
          a.mov32(Mem.of(CODES, offset + k * stride), Q[k]);
        }
      }
      case NIBBLES, FIVE, SIX -> {
        if (p.codes == Codes.FIVE) {
          highBits(4, offset + 4 * stride);
        } else if (p.codes == Codes.SIX) {
          twoBits(0, 4, offset + 4 * stride);
          twoBits(4, 4, offset + 5 * stride);
        }
        for (int j = 0; j < 4; j++) {
          Gpr low = Q[2 * j];
          Gpr high = Q[2 * j + 1];
          if (p.codes != Codes.NIBBLES) {
            a.and32(low, LOW4);
            a.and32(high, LOW4);
          }
          insert(low, high, 4);
          a.mov32(Mem.of(CODES, offset + j * stride), low);
        }
      }
      case TWINS -> throw new AssertionError("two chunks");
      case TWO, THREE -> {
        if (p.codes == Codes.THREE) {
          highBits(2, offset + 2 * stride);
        }
        twoBits(0, 0, offset);
        twoBits(4, 0, offset + stride);
      }
    }
  }

  /** One bit of each of eight quads, gathered in one word. */
  private void highBits(int bit, int offset) {
    a.xor32(U, U);
    for (int k = 0; k < 8; k++) {
      a.mov32(T, Q[k]);
      field(T, bit, LOW1);
      insert(U, T, k);
    }
    a.mov32(Mem.of(CODES, offset), U);
  }

  private void twoBits(int from, int shift, int offset) {
    a.xor32(U, U);
    for (int i = 0; i < 4; i++) {
      a.mov32(T, Q[from + i]);
      field(T, shift, LOW2);
      insert(U, T, 2 * i);
    }
    a.mov32(Mem.of(CODES, offset), U);
  }

  // ---- scales

  private void meta() {
    switch (p.type) {
      case MXFP4 -> {
        a.movzx8(T, Mem.of(SOURCE, 0));
        a.mov8(target(0), T);
      }
      case Q2_K -> {
        for (int i = 0; i < 4; i++) {
          load(T, 4 * i);
          a.mov32(U, T);
          field(T, 0, LOW4);
          scales(T, i);
          field(U, 4, LOW4);
          pairs(U, p.minsOffset, i);
        }
        half(80, p.dOffset);
        half(82, p.dminOffset);
      }
      case Q3_K -> {
        for (int i = 0; i < 4; i++) {
          load(T, 96 + 4 * (i & 1));
          field(T, 4 * (i >> 1), LOW4);
          load(U, 104);
          field(U, 2 * i, LOW2);
          insert(T, U, 4);
          signExtend(T, U);
          scales(T, i);
        }
        half(108, p.dOffset);
      }
      case Q4_K, Q5_K -> {
        for (int i = 0; i < 2; i++) {
          load(T, 4 + 4 * i);
          field(T, 0, 0x3f3f3f3f);
          scalesOrMins(T, i, 0);
          load(T, 12);
          field(T, 4 * i, LOW4);
          load(U, 4 + 4 * i);
          field(U, 6, LOW2);
          insert(T, U, 4);
          scalesOrMins(T, i, 1);
        }
        half(0, p.dOffset);
        half(2, p.dminOffset);
      }
      case Q6_K -> {
        for (int i = 0; i < 4; i++) {
          load(T, 192 + 4 * i);
          scales(T, i);
        }
        half(208, p.dOffset);
      }
      case IQ4_XS -> {
        for (int i = 0; i < 8; i++) {
          a.movzx8(T, Mem.of(SOURCE, 4 + (i >> 1)));
          field(T, 4 * (i & 1), 15);
          a.movzx16(U, Mem.of(SOURCE, 2));
          field(U, 2 * i, 3);
          insert(T, U, 4);
          a.sub32(T, 32);
          Mem to =
              p.unsignedBytes
                  ? narrow(i * p.lanes)
                  : target((i >> 1) * p.lanes * 2 + (i & 1) - p.codesPerBlock - p.scaleBytes);
          a.mov8(to, T);
        }
        half(0, p.dOffset);
      }
      default -> {
        half(0, p.dOffset);
        if (p.hasMin) {
          half(2, p.dminOffset);
        }
      }
    }
  }

  /** {@code v - 32} in each byte of d, which holds values of six bits. */
  private void signExtend(Gpr d, Gpr temp) {
    a.xor32(d, 0x20202020);
    a.mov32(temp, d);
    a.and32(temp, 0x20202020);
    a.shl32(temp, 1);
    a.or32(d, temp);
    a.shl32(temp, 1);
    a.or32(d, temp);
  }

  /**
   * The lane of the row in scales of a byte. A lane of the running pointer is two bytes wide;
   * {@link #LANES} counts down.
   */
  private Mem narrow(int offset) {
    return Mem.of(META, LANES, 1, metaBase + offset - p.codesPerBlock - p.scaleBytes - p.lanes);
  }

  private void scalesOrMins(Gpr v, int which, int four) {
    if (which == 0) {
      scales(v, four);
    } else {
      pairs(v, p.minsOffset, four);
    }
  }

  /** Stores four scales; overwrites the register. */
  private void scales(Gpr v, int four) {
    if (!p.unsignedBytes) {
      pairs(v, -p.codesPerBlock - p.scaleBytes, four);
      return;
    }
    for (int i = 0; i < 4; i++) {
      a.mov8(narrow((4 * four + i) * p.lanes), v);
      a.shr32(v, 8);
    }
  }

  /** Stores four sub-block values, two pairs; overwrites the register. */
  private void pairs(Gpr v, int offset, int four) {
    int stride = 2 * p.lanes;
    a.mov16(target(offset + 2 * four * stride), v);
    a.shr32(v, 16);
    a.mov16(target(offset + (2 * four + 1) * stride), v);
  }

  private void half(int from, int to) {
    a.movzx16(T, Mem.of(SOURCE, from));
    a.mov16(target(to), T);
  }
}
