package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.S32;
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
import java.util.stream.Stream;

/**
 * Writes the products with packed matrices, on tensor cores for any number of rows: {@link #skinny}
 * for few rows, which only streams the matrix, {@link #wide} for many, which shares what it loads.
 * Both do the same operations in the same order for an element, so that a row has the same bits
 * whatever the number of rows.
 *
 * <p>Order of a sum: the chunks of 128 columns are cut into {@link #STRANDS} runs; within a run the
 * groups of 32 columns follow each other, each two products of 16 columns with the upper parts of
 * the activations and two with the lower ones; what a group gives is multiplied by its scale and
 * added. The runs are added from the first on, then come the row's scale and the bias.
 *
 * <p>Activations are two numbers of 16 bits each ({@link #split}): halves of the row times a power
 * of two for F16 and quantized matrices, whose codes are exact as halves (together 22 bits of the
 * element, and 2^-40 of the row's largest); bfloat16 for BF16 matrices (17 bits).
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
  private static final float LARGEST_BFLOAT = Float.intBitsToFloat(0x7f7f0000);
  private static final String GLOBAL = "global.nc";

  private final Control control;

  Products(Control control) {
    this.control = control;
  }

  /** Bytes of the parts of a row: fragments of each group, sums of groups, the row's scale. */
  static int splitBytes(int cols) {
    int groups = (cols + PackedMatrix.CHUNK - 1) / PackedMatrix.CHUNK * 4;
    return groups * 132 + 16;
  }

  private static int sumsAt(int cols) {
    return (cols + PackedMatrix.CHUNK - 1) / PackedMatrix.CHUNK * 4 * 128;
  }

  private static int scaleAt(int cols) {
    return splitBytes(cols) - 16;
  }

  /** The type of the parts of activations for a matrix. */
  static String parts(TensorType type) {
    return type == TensorType.BF16 ? "bf16" : "f16";
  }

  private static PtxRegister exitPast(
      PtxKernel k, PtxRegister block, PtxRegister row, Value.Rows rows) {
    int at = rows == Value.Rows.LOGITS ? Control.LOGIT_ROWS : Control.ROWS;
    PtxRegister count = k.load(U32, block, at);
    k.when(k.compare("ge", row, count), k::exit);
    return count;
  }

  /**
   * Cuts rows into upper and lower parts, in the order of fragments: of a group of 32 columns, for
   * {@code t} and then {@code p} columns {@code 8p + 2t} and the next; 64 bytes of upper parts, 64
   * of lower ones. One block per row. Parameters: control, in, parts.
   *
   * @param parts {@code f16} or {@code bf16}
   */
  PtxKernel split(int cols, String parts, Value.Rows rows) {
    boolean scaled = parts.equals("f16");
    PtxKernel k = new PtxKernel(THREADS);
    PtxRegister block = k.parameter(U64);
    PtxRegister in = k.parameter(U64);
    PtxRegister out = k.parameter(U64);
    PtxRegister row = k.special("ctaid.y");
    exitPast(k, block, row, rows);
    PtxRegister thread = k.special("tid.x");
    PtxRegister x = k.address(in, row, 4 * cols);
    PtxRegister to = k.address(out, row, splitBytes(cols));
    PtxRegister factor = scaled ? rowScale(k, x, thread, cols, to) : k.constant(F32, 1);
    if (!scaled) {
      k.when(k.compare("eq", thread, 0), () -> k.store(F32, to, scaleAt(cols), k.constant(F32, 1)));
    }
    PtxRegister lane = k.and(thread, 31);
    PtxRegister group = k.register(U32);
    k.assign(group, k.shr(thread, 5));
    // Lane 8p + 2t + e writes half e of word p of t.
    PtxRegister t = k.shl(k.and(k.shr(lane, 1), 3), 4);
    PtxRegister p = k.shl(k.shr(lane, 3), 2);
    PtxRegister place = k.add(k.add(t, p), k.shl(k.and(lane, 1), 1));
    PtxRegister mine = k.address(to, place, 1);
    k.loop(
        group,
        (cols + PackedMatrix.CHUNK - 1) / PackedMatrix.CHUNK * 4,
        THREADS / 32,
        () -> {
          PtxRegister column = k.fma(group, 32, lane);
          PtxRegister v = k.constant(F32, 0);
          k.when(
              k.compare("lt", column, cols),
              () -> k.assign(v, k.mul(k.load(F32, k.address(x, column, 4), 0), factor)));
          PtxRegister at = k.address(mine, group, 128);
          PtxRegister finite = finite(k, v);
          PtxRegister upper;
          PtxRegister rest;
          if (scaled) {
            upper = k.convert(".rn", B16, "f16", v, "f32");
            rest = k.sub(v, k.convert("", F32, "f32", upper, "f16"));
          } else {
            // The largest floats would round to infinity.
            PtxRegister within = k.min(k.max(v, -LARGEST_BFLOAT), LARGEST_BFLOAT);
            upper = k.convert(".rn", B16, "bf16", k.select(finite, within, v), "f32");
            rest = k.sub(v, k.bfloat(upper));
          }
          PtxRegister lower = k.select(finite, rest, k.constant(F32, 0));
          k.store(B16, at, 0, upper);
          k.store(B16, at, 64, k.convert(".rn", B16, parts, lower, "f32"));
          PtxRegister sum = k.warpSum(v);
          k.when(
              k.compare("eq", lane, 0),
              () -> k.store(F32, k.address(to, group, 4), sumsAt(cols), sum));
        });
    return k;
  }

  private static PtxRegister finite(PtxKernel k, PtxRegister x) {
    return k.compare("lt", k.unary("abs", x), Float.POSITIVE_INFINITY);
  }

  /** The power of two that brings the row's largest finite element to 2^14 and more. */
  private static PtxRegister rowScale(
      PtxKernel k, PtxRegister x, PtxRegister thread, int cols, PtxRegister to) {
    PtxRegister largest = k.constant(F32, 0);
    PtxRegister i = k.register(U32);
    k.assign(i, thread);
    k.loop(
        i,
        cols,
        THREADS,
        () -> {
          PtxRegister v = k.load(F32, k.address(x, i, 4), 0);
          PtxRegister size = k.unary("abs", v);
          PtxRegister counts = k.select(finite(k, v), size, k.constant(F32, 0));
          k.assign(largest, k.max(largest, counts));
        });
    PtxRegister shared = k.shared(4 * THREADS / 32);
    PtxRegister all = largest;
    for (int mask = 16; mask > 0; mask >>= 1) {
      all = k.max(all, k.shuffleXor(all, mask));
    }
    PtxRegister warp = all;
    k.when(
        k.compare("eq", k.and(thread, 31), 0),
        () -> k.store("shared", F32, k.fma(k.shr(thread, 5), 4, shared), 0, warp));
    k.barrier();
    all = k.load("shared", F32, shared, 0);
    for (int w = 1; w < THREADS / 32; w++) {
      all = k.max(all, k.load("shared", F32, shared, 4L * w));
    }
    // Exponent e + 127 becomes 14 - e + 127, where that is a number whose inverse is one.
    PtxRegister exponent = k.shr(k.bits(U32, all), 23);
    PtxRegister biased = k.min(k.sub(k.constant(U32, 268), exponent), 253);
    PtxRegister inverse = k.sub(k.constant(U32, 254), biased);
    k.when(k.compare("eq", thread, 0), () -> k.store(U32, to, scaleAt(cols), k.shl(inverse, 23)));
    return k.bits(F32, k.shl(biased, 23));
  }

  /** The lanes' view of one tile: loads its chunks, turns codes into fragments. */
  private static final class Tile {
    final PtxKernel k;
    final PackedMatrix m;
    final PtxRegister data;
    final PtxRegister high;
    final PtxRegister scales;
    final PtxRegister supers;
    final Optional<PtxRegister> table;
    final Optional<PtxRegister> policy;
    final PtxRegister nothing;
    final PtxRegister magic;
    final PtxRegister minus;
    final PtxRegister sixteenth;
    final PtxRegister minusShifted;

    /** Registers with a chunk's words: [row half][word]. */
    record Words(
        PtxRegister[][] low, PtxRegister[][] high, PtxRegister[][] scales, PtxRegister[] supers) {
      PtxRegister[] all() {
        return Stream.of(
                Stream.of(low).flatMap(Stream::of),
                Stream.of(high).flatMap(Stream::of),
                Stream.of(scales).flatMap(Stream::of),
                Stream.of(supers))
            .flatMap(s -> s)
            .toArray(PtxRegister[]::new);
      }
    }

    Tile(
        PtxKernel k,
        PackedMatrix m,
        PtxRegister tile,
        PtxRegister lane,
        Optional<PtxRegister> table,
        Optional<PtxRegister> policy) {
      this.k = k;
      this.m = m;
      this.table = table;
      this.policy = policy;
      data = k.address(tile, lane, 16);
      high = k.address(tile, lane, 4 * Math.max(1, m.bits() - 4));
      PtxRegister g = k.shr(lane, 2);
      scales = k.address(tile, g, m.scales().rowBytes);
      supers = k.address(tile, g, 4);
      nothing = k.constant(F32, 0);
      magic = k.constant(U32, 0x64646464);
      minus = half2(-1024 - m.zero());
      sixteenth = half2(1 / 16f);
      minusShifted = half2(-64 - m.zero());
    }

    private PtxRegister[] vector(int n, PtxRegister at, long offset) {
      if (policy.isPresent()) {
        return k.loadVector(n, at, offset, policy.get());
      }
      return k.loadVector(GLOBAL, U32, n, at, offset);
    }

    /** Loads the codes of {@code n} groups (2 or 4) from {@code from} on, and all scales. */
    Words load(PtxRegister chunk, int from, int n) {
      PtxRegister at = k.address(data, chunk, m.lowBytes());
      PtxRegister[][] low = new PtxRegister[2][];
      PtxRegister[][] highs = {{}, {}};
      PtxRegister[][] s = {{}, {}};
      PtxRegister[] sup = {};
      for (int h = 0; h < 2; h++) {
        low[h] =
            switch (m.lowBits()) {
              case 4 -> vector(n, at, 512L * h + 4L * from);
              case 8 -> join(n / 2, h * 2 + from / 2, at);
              default -> join(n, h * 4 + from, at);
            };
      }
      if (m.bits() == 5 || m.bits() == 6) {
        PtxRegister a = k.address(high, chunk, m.highBytes());
        for (int h = 0; h < 2; h++) {
          highs[h] =
              m.bits() == 5
                  ? new PtxRegister[] {k.load(GLOBAL, U32, a, m.highAt() + 128L * h)}
                  : k.loadVector(GLOBAL, U32, 2, a, m.highAt() + 256L * h);
        }
      }
      if (m.scales() != PackedMatrix.Scales.NONE) {
        PtxRegister a = k.address(scales, chunk, m.scaleBytes());
        int bytes = m.scales().rowBytes;
        for (int h = 0; h < 2; h++) {
          long offset = m.scalesAt() + 8L * h * bytes;
          s[h] =
              bytes == 4
                  ? new PtxRegister[] {k.load(GLOBAL, U32, a, offset)}
                  : k.loadVector(GLOBAL, U32, bytes / 4, a, offset);
        }
        if (m.scales().superBlocks) {
          PtxRegister b = k.address(supers, k.shr(chunk, 1), 64);
          sup =
              new PtxRegister[] {
                k.load(GLOBAL, U32, b, m.supersAt()), k.load(GLOBAL, U32, b, m.supersAt() + 32L)
              };
        }
      }
      return new Words(low, highs, s, sup);
    }

    private PtxRegister[] join(int n, int firstUnit, PtxRegister at) {
      PtxRegister[] all = new PtxRegister[4 * n];
      for (int u = 0; u < n; u++) {
        System.arraycopy(vector(4, at, 512L * (firstUnit + u)), 0, all, 4 * u, 4);
      }
      return all;
    }

    /**
     * The fragments of a group for its two products.
     *
     * @param i the group's number among those loaded
     * @param j its number in the chunk
     */
    PtxRegister[][] fragments(Words w, int i, int j) {
      PtxRegister[][] a = new PtxRegister[2][4];
      for (int h = 0; h < 2; h++) {
        for (int p = 0; p < 4; p++) {
          a[p / 2][p % 2 * 2 + h] = pair(w, h, i, j, p);
        }
      }
      return a;
    }

    private PtxRegister half2(float v) {
      int bits = Float.floatToFloat16(v) & 0xffff;
      return k.constant(U32, (bits | (long) bits << 16) & 0xffffffffL);
    }

    private PtxRegister pair(Words w, int h, int i, int j, int p) {
      if (m.bits() == 16) {
        return w.low[h][4 * i + p];
      }
      if (m.bits() == 8) {
        // 0x64xx is 1024 + xx as a half.
        PtxRegister word = w.low[h][2 * i + p / 2];
        PtxRegister v = k.permute(word, magic, p % 2 == 0 ? 0x4140 : 0x4342);
        return k.addHalves(v, minus);
      }
      PtxRegister word = w.low[h][i];
      if (m.hasTable()) {
        PtxRegister index = p == 0 ? k.shl(word, 2) : k.shr(word, 8 * p - 2);
        PtxRegister at = k.add(table.orElseThrow(), k.and(index, 0x3fc));
        return k.load("shared", U32, at, 0);
      }
      // Pairs 1 and 3 stay 4 bits higher and are 16 times as large.
      boolean shifted = p % 2 == 1;
      int up = shifted ? 4 : 0;
      PtxRegister v = k.maskOr(p < 2 ? word : k.shr(word, 8), 0x000f000f << up, 0x64006400);
      if (m.bits() > 4) {
        int place = m.bits() == 5 ? 4 * j + p : j % 2 * 8 + 2 * p;
        PtxRegister bits = w.high[h][m.bits() == 5 ? 0 : j / 2];
        int distance = place - 4 - up;
        if (distance != 0) {
          bits = distance > 0 ? k.shr(bits, distance) : k.shl(bits, -distance);
        }
        long mask = (m.bits() == 5 ? 0x00100010L : 0x00300030L) << up;
        v = k.logic(bits, mask, v, 0xea);
      }
      return shifted ? k.fmaHalves("f16x2", v, sixteenth, minusShifted) : k.addHalves(v, minus);
    }

    private PtxRegister half(PtxRegister bits) {
      return k.convert("", F32, "f32", bits, "f16");
    }

    private PtxRegister signed(PtxRegister word, int index) {
      PtxRegister top = index == 3 ? word : k.shl(word, 24 - 8 * index);
      return k.convert(".rn", F32, "f32", k.shr(k.bits(S32, top), 24), "s32");
    }

    private PtxRegister unsigned(PtxRegister word, int index) {
      PtxRegister low = index == 0 ? word : k.shr(word, 8 * index);
      return k.convert(".rn", F32, "f32", k.and(low, 255), "u32");
    }

    /** Factor of product {@code s} of a group in rows g and g + 8. */
    PtxRegister factor(Words w, int h, int j, int s) {
      PtxRegister[] words = w.scales[h];
      return switch (m.scales()) {
        case HALF -> half(k.halves(words[j / 2])[j % 2]);
        case BFLOAT -> k.bfloat(k.halves(words[j / 2])[j % 2]);
        case HALF_OFFSET -> half(k.halves(words[j])[0]);
        case BYTE_OFFSET -> k.mul(half(k.halves(w.supers[h])[0]), unsigned(words[0], j));
        case HALF_GROUPS -> k.mul(k.bits(F32, w.supers[h]), signed(words[j / 2], j % 2 * 2 + s));
        case BYTES -> k.mul(k.bits(F32, w.supers[h]), signed(words[0], j));
        case NONE -> throw new IllegalStateException("no scales");
      };
    }

    PtxRegister offset(Words w, int h, int j) {
      PtxRegister[] words = w.scales[h];
      return m.scales() == PackedMatrix.Scales.HALF_OFFSET
          ? half(k.halves(words[j])[1])
          : k.mul(half(k.halves(w.supers[h])[1]), unsigned(words[1], j));
    }

    /** What a group of a tile has: fragments and, per row half, factors and offset. */
    record Group(PtxRegister[][] a, PtxRegister[][] factors, PtxRegister[] offsets) {}

    Group group(Words w, int i, int j) {
      PtxRegister[][] factors = new PtxRegister[2][2];
      PtxRegister[] offsets = new PtxRegister[2];
      if (m.scales() != PackedMatrix.Scales.NONE) {
        for (int h = 0; h < 2; h++) {
          factors[h][0] = factor(w, h, j, 0);
          factors[h][1] = halfGroups() ? factor(w, h, j, 1) : factors[h][0];
          if (m.hasOffsets()) {
            offsets[h] = offset(w, h, j);
          }
        }
      }
      return new Group(fragments(w, i, j), factors, offsets);
    }

    boolean halfGroups() {
      return m.scales() == PackedMatrix.Scales.HALF_GROUPS;
    }

    /**
     * Adds a group's products to the sums of 16 rows by 8 columns.
     *
     * @param sums sums of the group's activations in the lane's two columns, for offsets
     */
    void multiply(
        Group g, PtxRegister[] upper, PtxRegister[] lower, PtxRegister[] sums, PtxRegister[] acc) {
      String type = parts(m.type());
      if (m.scales() == PackedMatrix.Scales.NONE) {
        for (int s = 0; s < 2; s++) {
          k.mma(type, acc, g.a[s], two(upper, s), acc);
          k.mma(type, acc, g.a[s], two(lower, s), acc);
        }
        return;
      }
      PtxRegister[] d = null;
      for (int s = 0; s < 2; s++) {
        PtxRegister[] c = d;
        if (c == null) {
          c = new PtxRegister[] {nothing, nothing, nothing, nothing};
        }
        d = k.registers(F32, 4);
        k.mma(type, d, g.a[s], two(upper, s), c);
        k.mma(type, d, g.a[s], two(lower, s), d);
        if (s == 1 || halfGroups()) {
          for (int i = 0; i < 4; i++) {
            k.fmaInto(acc[i], d[i], g.factors[i / 2][s], acc[i]);
          }
          d = null;
        }
      }
      if (m.hasOffsets()) {
        for (int i = 0; i < 4; i++) {
          k.fmaInto(acc[i], sums[i % 2], g.offsets[i / 2], acc[i]);
        }
      }
    }

    private static PtxRegister[] two(PtxRegister[] b, int s) {
      return new PtxRegister[] {b[2 * s], b[2 * s + 1]};
    }
  }

  /** Both values that a byte of two codes stands for, as halves, in shared memory. */
  private static Optional<PtxRegister> table(PtxKernel k, PackedMatrix m, PtxRegister thread) {
    if (!m.hasTable()) {
      return Optional.empty();
    }
    PtxRegister shared = k.shared(4 * 256);
    PtxRegister word = k.constant(U32, 0);
    byte[] table = m.table();
    for (int i = 0; i < 16; i++) {
      int bits = Float.floatToFloat16(table[i]) & 0xffff;
      PtxRegister low = k.compare("eq", k.and(thread, 15), i);
      k.assign(word, k.logic(k.select(low, k.constant(U32, bits), 0), word, 0, 0xfc));
      PtxRegister high = k.compare("eq", k.and(k.shr(thread, 4), 15), i);
      PtxRegister upper = k.constant(U32, (long) bits << 16);
      k.assign(word, k.logic(k.select(high, upper, 0), word, 0, 0xfc));
    }
    k.store("shared", U32, k.fma(thread, 4, shared), 0, word);
    k.barrier();
    return Optional.of(shared);
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
    final Optional<Gate> gate;
    final Value.Rows rows;
    final int out;

    Epilogue(
        PtxKernel k,
        PtxRegister block,
        PtxRegister y,
        Optional<PtxRegister> biases,
        Optional<Gate> gate,
        Value.Rows rows,
        int out) {
      this.k = k;
      this.block = block;
      this.y = y;
      this.biases = biases;
      this.gate = gate;
      this.rows = rows;
      this.out = out;
    }

    void put(PtxRegister sum, PtxRegister scale, PtxRegister o, PtxRegister row) {
      PtxRegister scaled = k.mul(sum, scale);
      PtxRegister value =
          biases.map(b -> k.add(scaled, k.load(F32, k.address(b, o, 4), 0))).orElse(scaled);
      if (gate.isPresent()) {
        PtxRegister skip = skipped(k, block, row, gate.get(), rows);
        value = k.select(skip, k.constant(F32, 0), value);
      }
      k.store(F32, k.address(k.address(y, row, 4 * out), o, 4), 0, value);
    }
  }

  /**
   * One tile by up to {@link #SKINNY} rows per block; each warp sums one of the runs. The next
   * chunk is loaded before the last one is used, and leaves the caches first. Parameters: control,
   * matrix, parts, out, bias if any.
   */
  PtxKernel skinny(PackedMatrix m, boolean bias, Optional<Gate> gate, Value.Rows rows) {
    PtxKernel k = new PtxKernel(THREADS);
    PtxRegister block = k.parameter(U64);
    PtxRegister weights = k.parameter(U64);
    PtxRegister parts = k.parameter(U64);
    PtxRegister y = k.parameter(U64);
    Optional<PtxRegister> biases = bias ? Optional.of(k.parameter(U64)) : Optional.empty();
    PtxRegister first = k.mul(k.special("ctaid.y"), SKINNY);
    PtxRegister count = exitPast(k, block, first, rows);
    PtxRegister thread = k.special("tid.x");
    PtxRegister tileNumber = k.special("ctaid.x");
    if (gate.isPresent() && control.rows() == 1) {
      // A block of one row that is skipped reads no weights.
      k.when(
          skipped(k, block, first, gate.get(), rows),
          () -> {
            PtxRegister o = k.fma(tileNumber, PackedMatrix.TILE, thread);
            PtxRegister writes =
                k.both(k.compare("lt", thread, PackedMatrix.TILE), k.compare("lt", o, m.rows()));
            PtxRegister to = k.address(k.address(y, first, 4 * m.rows()), o, 4);
            k.when(writes, () -> k.store(F32, to, 0, k.constant(F32, 0)));
            k.exit();
          });
    }
    PtxRegister lane = k.and(thread, 31);
    PtxRegister warp = k.shr(thread, 5);
    Optional<PtxRegister> table = table(k, m, thread);
    PtxRegister policy = k.cachePolicy("evict_first");
    PtxRegister base = k.address(weights, tileNumber, m.tileBytes());
    Tile tile = new Tile(k, m, base, lane, table, Optional.of(policy));
    PtxRegister last = k.sub(count, 1);
    PtxRegister g = k.shr(lane, 2);
    PtxRegister t = k.and(lane, 3);
    int stride = splitBytes(m.cols());
    // Columns past the last row repeat it and are not stored.
    PtxRegister mine = k.address(k.address(parts, k.min(k.add(first, g), last), stride), t, 16);
    PtxRegister[] rowSums = new PtxRegister[2];
    for (int e = 0; e < 2 && m.hasOffsets(); e++) {
      PtxRegister n = k.min(k.add(first, k.fma(t, 2, k.constant(U32, e))), last);
      rowSums[e] = k.address(parts, n, stride);
    }
    PtxRegister[] acc = zeros(k);
    PtxRegister chunk = k.register(U32);
    k.assign(chunk, k.shr(k.mul(warp, m.chunks()), 3));
    PtxRegister end = k.shr(k.mul(k.add(warp, 1), m.chunks()), 3);
    Tile.Words[] now = new Tile.Words[1];
    PtxRegister some = k.compare("lt", chunk, end);
    k.when(
        some,
        () -> {
          now[0] = tile.load(chunk, 0, 4);
          k.loop(
              chunk,
              end,
              1,
              () -> {
                PtxRegister next = k.add(chunk, 1);
                PtxRegister more = k.compare("lt", next, end);
                Tile.Words[] ahead = new Tile.Words[1];
                k.when(more, () -> ahead[0] = tile.load(next, 0, 4));
                chunk(k, tile, now[0], chunk, mine, rowSums, acc);
                k.when(
                    more,
                    () -> {
                      PtxRegister[] to = now[0].all();
                      PtxRegister[] from = ahead[0].all();
                      for (int i = 0; i < to.length; i++) {
                        k.assign(to[i], from[i]);
                      }
                    });
              });
        });
    // The runs of an element lie 512 bytes apart, those of a row 64.
    PtxRegister shared = k.shared(512 * STRANDS);
    PtxRegister to = k.fma(t, 128, k.fma(g, 4, k.fma(warp, 512, shared)));
    for (int i = 0; i < 4; i++) {
      k.store("shared", F32, to, 64L * (i % 2) + 32L * (i / 2), acc[i]);
    }
    k.barrier();
    PtxRegister o = k.fma(tileNumber, PackedMatrix.TILE, k.and(thread, 15));
    PtxRegister row = k.add(first, k.shr(thread, 4));
    PtxRegister within = k.both(k.compare("lt", thread, 128), k.compare("lt", o, m.rows()));
    k.when(
        k.both(within, k.compare("lt", row, count)),
        () -> {
          PtxRegister from = k.fma(thread, 4, shared);
          PtxRegister total = k.constant(F32, 0);
          for (int s = 0; s < STRANDS; s++) {
            total = k.add(total, k.load("shared", F32, from, 512L * s));
          }
          PtxRegister scale = k.load(GLOBAL, F32, k.address(parts, row, stride), scaleAt(m.cols()));
          new Epilogue(k, block, y, biases, gate, rows, m.rows()).put(total, scale, o, row);
        });
    return k;
  }

  private static PtxRegister[] zeros(PtxKernel k) {
    PtxRegister[] r = k.registers(F32, 4);
    for (PtxRegister x : r) {
      k.assign(x, 0);
    }
    return r;
  }

  private static void chunk(
      PtxKernel k,
      Tile tile,
      Tile.Words words,
      PtxRegister chunk,
      PtxRegister mine,
      PtxRegister[] rowSums,
      PtxRegister[] acc) {
    PackedMatrix m = tile.m;
    PtxRegister at = k.address(mine, chunk, 512);
    PtxRegister[][] sums = new PtxRegister[2][];
    for (int e = 0; e < 2 && m.hasOffsets(); e++) {
      PtxRegister a = k.address(rowSums[e], chunk, 16);
      sums[e] = k.loadVector(GLOBAL, F32, 4, a, sumsAt(m.cols()));
    }
    for (int j = 0; j < 4; j++) {
      PtxRegister[] upper = k.loadVector(GLOBAL, U32, 4, at, 128L * j);
      PtxRegister[] lower = k.loadVector(GLOBAL, U32, 4, at, 128L * j + 64);
      PtxRegister[] s =
          m.hasOffsets() ? new PtxRegister[] {sums[0][j], sums[1][j]} : new PtxRegister[2];
      tile.multiply(tile.group(words, j, j), upper, lower, s, acc);
    }
  }

  /** Tiles of a wide block. */
  static int wideTiles(int rows) {
    return rows <= WIDE ? 4 : 8;
  }

  /**
   * {@link #wideTiles} tiles by {@link #WIDE} rows per block: four warps down and two across, each
   * 16 or 32 by 32. Activations go through two stages of 64 columns in shared memory, filled in the
   * background; weights go from memory to registers in the order in which they lie. Parameters as
   * of {@link #skinny}; the parts have memory for a multiple of {@link #WIDE} rows.
   */
  PtxKernel wide(PackedMatrix m, boolean bias, Optional<Gate> gate, Value.Rows rows) {
    PtxKernel k = new PtxKernel(THREADS);
    PtxRegister block = k.parameter(U64);
    PtxRegister weights = k.parameter(U64);
    PtxRegister parts = k.parameter(U64);
    PtxRegister y = k.parameter(U64);
    Optional<PtxRegister> biases = bias ? Optional.of(k.parameter(U64)) : Optional.empty();
    PtxRegister first = k.mul(k.special("ctaid.y"), WIDE);
    PtxRegister count = exitPast(k, block, first, rows);
    PtxRegister thread = k.special("tid.x");
    PtxRegister lane = k.and(thread, 31);
    PtxRegister warp = k.shr(thread, 5);
    Optional<PtxRegister> table = table(k, m, thread);
    int down = wideTiles(control.rows()) / 4;
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
    int stride = splitBytes(m.cols());
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
    Epilogue epilogue = new Epilogue(k, block, y, biases, gate, rows, m.rows());
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
                    long at = (8L * column + pair) * stride + scaleAt(m.cols());
                    PtxRegister scale = k.load(GLOBAL, F32, pairRow, at);
                    for (int i = 0; i < 2 * tiles.length; i++) {
                      PtxRegister o =
                          k.add(k.fma(tile0, PackedMatrix.TILE, g), 16 * (i / 2) + 8 * (i % 2));
                      PtxRegister total = totals[i / 2 * 4 + column][i % 2 * 2 + pair];
                      k.when(
                          k.compare("lt", o, m.rows()), () -> epilogue.put(total, scale, o, row));
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
    int stride = splitBytes(m.cols());
    Tile.Words[] words = new Tile.Words[tiles.length];
    for (int d = 0; d < tiles.length; d++) {
      words[d] = tiles[d].load(chunk, 2 * sub, 2);
    }
    PtxRegister[][][] sums = new PtxRegister[4][2][];
    if (m.hasOffsets()) {
      PtxRegister at = k.address(pairRow, chunk, 16);
      for (int n = 0; n < 4; n++) {
        for (int e = 0; e < 2; e++) {
          long offset = (8L * n + e) * stride + sumsAt(m.cols()) + 8L * sub;
          sums[n][e] = k.loadVector(GLOBAL, F32, 2, at, offset);
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
        PtxRegister[] s =
            m.hasOffsets() ? new PtxRegister[] {sums[n][0][i], sums[n][1][i]} : new PtxRegister[2];
        for (int d = 0; d < tiles.length; d++) {
          tiles[d].multiply(groups[d], upper, lower, s, acc[4 * d + n]);
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
    PtxRegister low = k.address(k.address(tile, chunk, m.lowBytes()), lane, 16);
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
      PtxRegister word = k.load(GLOBAL, U32, k.address(k.address(low, h, 512), j, 4), 0);
      int perPair = m.hasTable() ? 8 : 4;
      PtxRegister shift = k.fma(p, perPair, k.mul(e, m.hasTable() ? 4 : 16));
      PtxRegister q = k.and(k.shr(word, shift), 15);
      if (m.bits() > 4) {
        int n = m.bits() - 4;
        PtxRegister highs = k.address(tile, chunk, m.highBytes());
        PtxRegister at = k.address(k.address(highs, h, 128 * n), lane, 4 * n);
        PtxRegister place = k.fma(j, 4, p);
        if (n == 2) {
          at = k.address(at, k.shr(j, 1), 4);
          place = k.fma(k.and(j, 1), 8, k.shl(p, 1));
        }
        PtxRegister bits = k.shr(k.load(GLOBAL, U32, at, m.highAt()), k.fma(e, 16, place));
        q = k.fma(k.and(bits, (1 << n) - 1), 16, q);
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
    return k.convert(".rn", F32, "f32", k.load(GLOBAL, U8, at, offset), "u32");
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
