package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.S8;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;
import static io.fletch.ffm.ptx.PtxType.U8;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Gate;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.graph.support.AbstractBatch;
import io.fletch.quant.TensorType;
import java.util.Optional;

/**
 * Writes the products with packed matrices, on tensor cores for any number of rows: {@link FewRows}
 * only streams the matrices, {@link #wide} shares what it loads. Both do the same operations in the
 * same order for an element, so that a row has the same bits whatever the number of rows.
 *
 * <p>Order of a sum: the chunks of 128 columns are cut into {@link #STRANDS} runs; within a run the
 * groups of 32 columns follow each other, each two products of 16 columns with the upper parts of
 * the activations and two with the lower ones; what a group gives is multiplied by its scale and by
 * what its activations are multiples of ({@link Parts}), and added. The runs are added from the
 * first on, then come the row's factor and the bias.
 */
final class Products {
  /** Runs of columns that are summed by themselves. */
  static final int STRANDS = 8;

  static final int THREADS = 256;

  /** Rows of a skinny block. */
  static final int SKINNY = 8;

  /** Up to so many rows the matrix is streamed, once for each {@link #SKINNY} rows. */
  static final int FEW = 16;

  /** Rows of a wide block. */
  static final int WIDE = 64;

  /** Bytes from a row to the next in a stage: lanes that load together touch different banks. */
  private static final int STAGE_ROW = 320;

  private static final int STAGE = WIDE * STAGE_ROW;
  static final String GLOBAL = "global.nc";

  private final Control control;

  Products(Control control) {
    this.control = control;
  }

  static PtxRegister exitPast(PtxKernel k, PtxRegister block, PtxRegister row, Value.Rows rows) {
    int at = rows == Value.Rows.LOGITS ? Control.LOGIT_ROWS : Control.ROWS;
    PtxRegister count = k.load(U32, block, at);
    k.when(k.compare("ge", row, count), k::exit);
    return count;
  }

  /** Whether the gate of a row of the output says that the row is not computed. */
  private PtxRegister skipped(
      PtxKernel k, PtxRegister block, PtxRegister row, Gate gate, Value.Rows rows) {
    PtxRegister batchRow =
        rows == Value.Rows.LOGITS
            ? k.load(U32, k.address(block, row, 4), control.logitSource())
            : row;
    int at = control.gate(AbstractBatch.gateIndex(gate.layer(), gate.unit()));
    PtxRegister is = k.load(U8, k.address(block, batchRow, 1), at);
    return k.compare("ne", is, gate.branch().runsAt());
  }

  /** How a finished sum becomes an element of the output. */
  private final class Epilogue {
    final PtxKernel k;
    final PtxRegister block;
    final PtxRegister y;
    final Optional<PtxRegister> biases;
    final Optional<PtxRegister> residual;
    final Optional<Op.Add> add;
    final Op.Linear op;

    Epilogue(PtxKernel k, PtxRegister block, PtxRegister y, Op.Linear op, Optional<Op.Add> add) {
      this.k = k;
      this.block = block;
      this.y = y;
      this.op = op;
      this.add = add;
      biases = op.bias().map(b -> k.parameter(U64));
      residual = add.map(a -> k.parameter(U64));
    }

    void put(PtxRegister sum, Optional<PtxRegister> factor, PtxRegister o, PtxRegister row) {
      PtxRegister scaled = factor.map(f -> k.mul(sum, f)).orElse(sum);
      PtxRegister value =
          biases.map(b -> k.add(scaled, k.load(F32, k.address(b, o, 4), 0))).orElse(scaled);
      if (op.gate().isPresent()) {
        PtxRegister skip = skipped(k, block, row, op.gate().get(), op.in().rows());
        value = k.select(skip, k.constant(F32, 0), value);
      }
      int width = 4 * op.out().width();
      if (add.isPresent()) {
        PtxRegister at = k.address(k.address(residual.orElseThrow(), row, width), o, 4);
        PtxRegister x = k.load(F32, at, 0);
        PtxRegister sums = k.fma(value, add.get().scale(), x);
        value =
            add.get()
                .gate()
                .map(g -> k.select(skipped(k, block, row, g, op.in().rows()), x, sums))
                .orElse(sums);
      }
      k.store(F32, k.address(k.address(y, row, width), o, 4), 0, value);
    }
  }

  static PtxRegister[] zeros(PtxKernel k) {
    PtxRegister[] r = k.registers(F32, 4);
    for (PtxRegister x : r) {
      k.assign(x, 0);
    }
    return r;
  }

  /**
   * Adds the products of a chunk to the sums.
   *
   * @param mine the lane's fragments of the row of its column
   * @param pairRow the parts of the row of the first of the two columns whose sums the lane has
   * @param second bytes from there to those of the second one, 0 if there is only one row
   */
  static void chunk(
      PtxKernel k,
      Tile tile,
      Tile.Words words,
      PtxRegister chunk,
      Parts parts,
      PtxRegister mine,
      PtxRegister pairRow,
      int second,
      PtxRegister[] acc) {
    PackedMatrix m = tile.m;
    int columns = second == 0 ? 1 : 2;
    PtxRegister at = k.address(mine, chunk, 512);
    PtxRegister[][] sums = new PtxRegister[2][2];
    PtxRegister[][] sizes = new PtxRegister[2][2];
    for (int j = 0; j < 4; j++) {
      if (j > 0) {
        // The assembler would load all groups first, into more registers than there are; loads that
        // may be of written memory do not pass this.
        k.warpBarrier();
      }
      for (int e = 0; e < columns && j % 2 == 0 && parts.kind() == Parts.Kind.HALF; e++) {
        PtxRegister a = k.address(pairRow, chunk, 16);
        long offset = (long) e * second + 4L * j;
        sizes[e] = k.loadVector("global", F32, 2, a, offset + parts.sizesAt());
        if (m.hasOffsets()) {
          sums[e] = k.loadVector("global", F32, 2, a, offset + parts.sumsAt());
        }
      }
      PtxRegister[] upper = k.loadVector("global", U32, 4, at, 128L * j);
      PtxRegister[] lower = k.loadVector("global", U32, 4, at, 128L * j + 64);
      PtxRegister[] z = {sizes[0][j % 2], sizes[1][j % 2]};
      PtxRegister[] s = {sums[0][j % 2], sums[1][j % 2]};
      tile.multiply(tile.group(words, j, j), upper, lower, z, s, columns, acc);
    }
  }

  /** Tiles of a wide block; offsets of half groups take the registers of the second half. */
  static int wideTiles(int rows, PackedMatrix m) {
    return rows <= WIDE || m.scales() == PackedMatrix.Scales.NIBBLE_OFFSET ? 4 : 8;
  }

  /**
   * {@link #wideTiles} tiles by {@link #WIDE} rows per block: four warps down and two across, each
   * 16 or 32 by 32. Activations go through two stages of 64 columns in shared memory, filled in the
   * background; weights go from memory to registers in the order in which they lie. Parameters:
   * control, matrix, parts, out, bias if any, residual if any; the parts have memory for a multiple
   * of {@link #WIDE} rows.
   *
   * @param normed whether the rows have a factor
   * @param add what happens to the result
   */
  PtxKernel wide(Op.Linear op, boolean normed, Optional<Op.Add> add) {
    PackedMatrix m = Fusion.packed(op).orElseThrow();
    Value.Rows rows = op.in().rows();
    PtxKernel k = new PtxKernel(THREADS).resident(1);
    PtxRegister block = k.parameter(U64);
    PtxRegister weights = k.parameter(U64);
    PtxRegister parts = k.parameter(U64);
    PtxRegister y = k.parameter(U64);
    Epilogue epilogue = new Epilogue(k, block, y, op, add);
    PtxRegister first = k.mul(k.special("ctaid.y"), WIDE);
    PtxRegister count = exitPast(k, block, first, rows);
    PtxRegister thread = k.special("tid.x");
    PtxRegister lane = k.and(thread, 31);
    PtxRegister warp = k.shr(thread, 5);
    Optional<PtxRegister> table = Tile.table(k, m, thread);
    int down = wideTiles(control.rows(), m) / 4;
    PtxRegister tile0 = k.fma(k.special("ctaid.x"), 4 * down, k.mul(k.shr(warp, 1), down));
    PtxRegister across = k.mul(k.and(warp, 1), 32);
    PtxRegister row0 = k.add(first, across);
    PtxRegister active = k.both(k.compare("lt", tile0, m.tiles()), k.compare("lt", row0, count));
    Tile[] tiles = new Tile[down];
    for (int d = 0; d < down; d++) {
      PtxRegister number = k.min(k.add(tile0, d), m.tiles() - 1);
      PtxRegister base = k.address(weights, number, m.tileBytes());
      tiles[d] = new Tile(k, m, base, lane, table, Optional.empty());
    }
    PtxRegister g = k.shr(lane, 2);
    PtxRegister t = k.and(lane, 3);
    Parts of = new Parts(m.cols(), Parts.Kind.of(m.type()));
    int stride = of.bytes();
    PtxRegister stages = k.shared(2 * STAGE);
    PtxRegister copyRow = k.shr(thread, 4);
    PtxRegister copyPart = k.and(thread, 15);
    PtxRegister from = k.address(k.address(parts, k.add(first, copyRow), stride), copyPart, 16);
    PtxRegister to = k.fma(copyRow, STAGE_ROW, k.fma(copyPart, 16, stages));
    PtxRegister read = k.fma(k.add(across, g), STAGE_ROW, k.fma(t, 16, stages));
    PtxRegister pairRow = k.address(parts, k.fma(t, 2, row0), stride);
    Stage fill =
        (stage, buffer) -> {
          PtxRegister source = k.address(from, stage, 256);
          for (int q = 0; q < 4; q++) {
            k.copyAsync(to, (long) buffer * STAGE + 16L * q * STAGE_ROW, source, 16L * q * stride);
          }
          k.commitCopies();
        };
    PtxRegister[][] acc = new PtxRegister[4 * down][];
    PtxRegister[][] totals = new PtxRegister[4 * down][];
    for (int i = 0; i < acc.length; i++) {
      acc[i] = zeros(k);
      totals[i] = zeros(k);
    }
    fill.run(k.constant(U32, 0), 0);
    PtxRegister strand = k.constant(U32, 0);
    PtxRegister chunk = k.constant(U32, 0);
    k.loop(
        strand,
        STRANDS,
        1,
        () -> {
          PtxRegister end = k.shr(k.mul(k.add(strand, 1), m.chunks()), 3);
          k.loop(
              chunk,
              end,
              1,
              () -> {
                for (int sub = 0; sub < 2; sub++) {
                  k.waitCopies(0);
                  k.barrier();
                  PtxRegister next = k.fma(chunk, 2, k.constant(U32, sub + 1));
                  int other = 1 - sub;
                  if (sub == 0) {
                    fill.run(next, other);
                  } else {
                    k.when(k.compare("lt", next, 2 * m.chunks()), () -> fill.run(next, other));
                  }
                  int s = sub;
                  k.when(active, () -> stage(k, tiles, chunk, s, read, pairRow, acc));
                }
              });
          for (int i = 0; i < acc.length; i++) {
            for (int c = 0; c < 4; c++) {
              k.assign(totals[i][c], k.add(totals[i][c], acc[i][c]));
              k.assign(acc[i][c], 0);
            }
          }
        });
    k.when(
        active,
        () -> {
          for (int n = 0; n < 4; n++) {
            for (int e = 0; e < 2; e++) {
              PtxRegister row = k.add(k.fma(t, 2, row0), 8 * n + e);
              int column = n;
              int pair = e;
              k.when(
                  k.compare("lt", row, count),
                  () -> {
                    long at = (8L * column + pair) * stride + of.factorAt();
                    Optional<PtxRegister> factor =
                        normed ? Optional.of(k.load(GLOBAL, F32, pairRow, at)) : Optional.empty();
                    for (int i = 0; i < 2 * tiles.length; i++) {
                      PtxRegister o =
                          k.add(k.fma(tile0, PackedMatrix.TILE, g), 16 * (i / 2) + 8 * (i % 2));
                      PtxRegister total = totals[i / 2 * 4 + column][i % 2 * 2 + pair];
                      k.when(
                          k.compare("lt", o, m.rows()), () -> epilogue.put(total, factor, o, row));
                    }
                  });
            }
          }
        });
    return k;
  }

  @FunctionalInterface
  private interface Stage {
    void run(PtxRegister stage, int buffer);
  }

  private static void stage(
      PtxKernel k,
      Tile[] tiles,
      PtxRegister chunk,
      int sub,
      PtxRegister read,
      PtxRegister pairRow,
      PtxRegister[][] acc) {
    PackedMatrix m = tiles[0].m;
    Parts of = new Parts(m.cols(), Parts.Kind.of(m.type()));
    int stride = of.bytes();
    Tile.Words[] words = new Tile.Words[tiles.length];
    for (int d = 0; d < tiles.length; d++) {
      words[d] = tiles[d].load(chunk, 2 * sub, 2);
    }
    PtxRegister[][][] sums = new PtxRegister[4][2][2];
    PtxRegister[][][] sizes = new PtxRegister[4][2][2];
    if (of.kind() == Parts.Kind.HALF) {
      PtxRegister at = k.address(pairRow, chunk, 16);
      for (int n = 0; n < 4; n++) {
        for (int e = 0; e < 2; e++) {
          long offset = (8L * n + e) * stride + 8L * sub;
          sizes[n][e] = k.loadVector(GLOBAL, F32, 2, at, offset + of.sizesAt());
          if (m.hasOffsets()) {
            sums[n][e] = k.loadVector(GLOBAL, F32, 2, at, offset + of.sumsAt());
          }
        }
      }
    }
    for (int i = 0; i < 2; i++) {
      Tile.Group[] groups = new Tile.Group[tiles.length];
      for (int d = 0; d < tiles.length; d++) {
        groups[d] = tiles[d].group(words[d], i, 2 * sub + i);
      }
      for (int n = 0; n < 4; n++) {
        long at = (long) sub * STAGE + 8L * n * STAGE_ROW + 128L * i;
        PtxRegister[] upper = k.loadVector("shared", U32, 4, read, at);
        PtxRegister[] lower = k.loadVector("shared", U32, 4, read, at + 64);
        PtxRegister[] z = {sizes[n][0][i], sizes[n][1][i]};
        PtxRegister[] s = {sums[n][0][i], sums[n][1][i]};
        for (int d = 0; d < tiles.length; d++) {
          tiles[d].multiply(groups[d], upper, lower, z, s, 2, acc[4 * d + n]);
        }
      }
    }
  }

  /**
   * Rows of the embedding from a packed table, exactly. Parameters: control, table, out; a thread
   * per element.
   */
  PtxKernel embedding(PackedMatrix m, Op.Embedding.Index index, float scale) {
    PtxKernel k = new PtxKernel(Emitter.THREADS);
    PtxRegister block = k.parameter(U64);
    PtxRegister base = k.parameter(U64);
    PtxRegister y = k.parameter(U64);
    PtxRegister row = k.special("ctaid.y");
    exitPast(k, block, row, Value.Rows.BATCH);
    PtxRegister thread = k.special("tid.x");
    PtxRegister column = k.fma(k.special("ctaid.x"), Emitter.THREADS, thread);
    k.when(k.compare("ge", column, m.cols()), k::exit);
    PtxRegister tableRow =
        switch (index) {
          case TOKEN -> k.load(U32, k.address(block, row, 4), control.token());
          case POSITION -> k.load(U32, k.address(block, row, 4), control.position());
          case FIRST -> k.constant(U32, 0);
        };
    PtxRegister v = element(k, m, base, tableRow, column);
    k.store(F32, k.address(k.address(y, row, 4 * m.cols()), column, 4), 0, k.mul(v, scale));
    return k;
  }

  private static PtxRegister element(
      PtxKernel k, PackedMatrix m, PtxRegister base, PtxRegister row, PtxRegister column) {
    PtxRegister tile = k.address(base, k.shr(row, 4), m.tileBytes());
    PtxRegister inTile = k.and(row, 15);
    PtxRegister h = k.shr(inTile, 3);
    PtxRegister chunk = k.shr(column, 7);
    PtxRegister j = k.and(k.shr(column, 5), 3);
    PtxRegister p = k.and(k.shr(column, 3), 3);
    PtxRegister e = k.and(column, 1);
    PtxRegister lane = k.fma(k.and(row, 7), 4, k.and(k.shr(column, 1), 3));
    int laneBytes = m.lowBits() == 2 ? 8 : 16;
    PtxRegister low = k.address(k.address(tile, chunk, m.lowBytes()), lane, laneBytes);
    PtxRegister value;
    if (m.bits() == 16) {
      PtxRegister unit = k.fma(h, 4, j);
      PtxRegister at = k.address(k.address(k.address(low, unit, 512), p, 4), e, 2);
      PtxRegister bits = k.load(GLOBAL, B16, at, 0);
      return m.type() == TensorType.BF16 ? k.bfloat(bits) : k.convert("", F32, "f32", bits, "f16");
    } else if (m.bits() == 8) {
      PtxRegister unit = k.fma(h, 2, k.shr(j, 1));
      PtxRegister byteAt = k.fma(k.and(j, 1), 8, k.fma(p, 2, e));
      PtxRegister at = k.address(k.address(low, unit, 512), byteAt, 1);
      value = code(k, m, k.load(GLOBAL, U8, at, 0));
    } else {
      boolean two = m.lowBits() == 2;
      PtxRegister place2 = k.fma(k.and(j, 1), 8, k.shl(p, 1));
      PtxRegister word =
          two
              ? k.load(GLOBAL, U32, k.address(k.address(low, h, 256), k.shr(j, 1), 4), 0)
              : k.load(GLOBAL, U32, k.address(k.address(low, h, 512), j, 4), 0);
      PtxRegister pair = two ? place2 : k.mul(p, m.hasTable() ? 8 : 4);
      PtxRegister shift = k.fma(e, m.hasTable() ? 4 : 16, pair);
      PtxRegister q = k.and(k.shr(word, shift), two ? 3 : 15);
      if (m.highBits() > 0) {
        int n = m.highBits();
        PtxRegister highs = k.address(tile, chunk, m.highBytes());
        PtxRegister at = k.address(k.address(highs, h, 128 * n), lane, 4 * n);
        PtxRegister place = k.fma(j, 4, p);
        if (n == 2) {
          at = k.address(at, k.shr(j, 1), 4);
          place = place2;
        }
        PtxRegister bits = k.shr(k.load(GLOBAL, U32, at, m.highAt()), k.fma(e, 16, place));
        q = k.fma(k.and(bits, (1 << n) - 1), 1 << m.lowBits(), q);
      }
      value = code(k, m, q);
    }
    PtxRegister scales =
        k.address(k.address(tile, chunk, m.scaleBytes()), inTile, m.scales().rowBytes);
    PtxRegister supers = k.address(k.address(tile, k.shr(chunk, 1), 64), inTile, 4);
    int s = m.scalesAt();
    return switch (m.scales()) {
      case HALF -> k.mul(value, halfAt(k, k.address(scales, j, 2), s));
      case BFLOAT -> k.mul(value, k.bfloat(k.load(GLOBAL, B16, k.address(scales, j, 2), s)));
      case HALF_OFFSET -> {
        PtxRegister at = k.address(scales, j, 4);
        yield k.add(k.mul(value, halfAt(k, at, s)), halfAt(k, at, s + 2));
      }
      case BYTE_OFFSET -> {
        PtxRegister at = k.address(scales, j, 1);
        PtxRegister factor = k.mul(halfAt(k, supers, m.supersAt()), byteAt(k, at, s));
        PtxRegister offset = k.mul(halfAt(k, supers, m.supersAt() + 2), byteAt(k, at, s + 4));
        yield k.add(k.mul(factor, value), offset);
      }
      case NIBBLE_OFFSET -> {
        PtxRegister b = k.load(GLOBAL, U8, k.address(scales, k.fma(j, 2, k.shr(p, 1)), 1), s);
        PtxRegister factor = k.mul(halfAt(k, supers, m.supersAt()), number(k, k.and(b, 15)));
        PtxRegister offset = k.mul(halfAt(k, supers, m.supersAt() + 2), number(k, k.shr(b, 4)));
        yield k.add(k.mul(factor, value), offset);
      }
      case HALF_PAIRS -> throw new IllegalStateException("a table of rows is dense");
      case HALF_GROUPS, BYTES -> {
        boolean halves = m.scales() == PackedMatrix.Scales.HALF_GROUPS;
        PtxRegister index = halves ? k.fma(j, 2, k.shr(p, 1)) : j;
        PtxRegister b = k.load(GLOBAL, S8, k.address(scales, index, 1), s);
        PtxRegister factor =
            k.mul(
                k.load(GLOBAL, F32, supers, m.supersAt()), k.convert(".rn", F32, "f32", b, "s32"));
        yield k.mul(factor, value);
      }
      case NONE -> throw new IllegalStateException("no scales of " + m.type());
    };
  }

  private static PtxRegister halfAt(PtxKernel k, PtxRegister at, int offset) {
    return k.convert("", F32, "f32", k.load(GLOBAL, B16, at, offset), "f16");
  }

  private static PtxRegister byteAt(PtxKernel k, PtxRegister at, int offset) {
    return number(k, k.load(GLOBAL, U8, at, offset));
  }

  private static PtxRegister number(PtxKernel k, PtxRegister whole) {
    return k.convert(".rn", F32, "f32", whole, "u32");
  }

  /** The number that a code stands for. */
  private static PtxRegister code(PtxKernel k, PackedMatrix m, PtxRegister q) {
    if (!m.hasTable()) {
      return k.add(k.convert(".rn", F32, "f32", q, "u32"), (float) -m.zero());
    }
    PtxRegister v = k.constant(F32, 0);
    byte[] table = m.table();
    for (int i = 0; i < 16; i++) {
      k.assign(v, k.select(k.compare("eq", q, i), k.constant(F32, table[i]), v));
    }
    return v;
  }
}
