package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.S32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * The lanes' view of one tile of a packed matrix: loads its chunks, turns codes into fragments,
 * multiplies them. {@link #move} makes it the view of another tile.
 */
final class Tile {
  final PtxKernel k;
  final PackedMatrix m;
  final PtxRegister lane;
  final PtxRegister base;
  final Optional<PtxRegister> table;
  final Optional<PtxRegister> policy;
  final PtxRegister nothing;
  final PtxRegister magic;

  /** Of codes that lie one, two or three pairs higher: what they are multiplied by. */
  final PtxRegister[] down = new PtxRegister[4];

  /** What is added then. */
  final PtxRegister[] minus = new PtxRegister[4];

  /** Two ones. */
  final PtxRegister ones;

  /** Registers with a chunk's words: [row half][word]. */
  record Words(
      PtxRegister[][] low,
      PtxRegister[][] high,
      PtxRegister[][] scales,
      PtxRegister[] supers,
      PtxRegister[] places) {
    PtxRegister[] all() {
      return Stream.of(
              Stream.of(low).flatMap(Stream::of),
              Stream.of(high).flatMap(Stream::of),
              Stream.of(scales).flatMap(Stream::of),
              Stream.of(supers),
              Stream.of(places))
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
    this.lane = lane;
    this.table = table;
    this.policy = policy;
    base = k.register(U64);
    move(tile);
    nothing = k.constant(F32, 0);
    magic = k.constant(U32, 0x64646464);
    // Pairs 1 and 3 of four bits come together after a shift, and so do all pairs of two bits.
    int shift = m.lowBits() == 2 ? 2 : 4;
    for (int i = 0; i < (shift == 2 ? 4 : 2); i++) {
      float by = 1f / (1 << shift * i);
      down[i] = half2(by);
      minus[i] = half2(-1024 * by - m.zero());
    }
    ones = half2(1);
  }

  /** Loads come from another tile of the matrix, or of one of the same form, from now on. */
  void move(PtxRegister tile) {
    k.assign(base, tile);
  }

  private PtxRegister[] vector(int n, PtxRegister at, long offset) {
    if (policy.isPresent()) {
      return k.loadVector(n, at, offset, policy.get());
    }
    return k.loadVector(Products.GLOBAL, U32, n, at, offset);
  }

  /** Loads the codes of {@code n} groups (2 or 4) from {@code from} on, and all scales. */
  Words load(PtxRegister chunk, int from, int n) {
    int bits = m.lowColumnBits();
    int laneBytes = bits == 2 ? 8 : 16;
    PtxRegister at = k.address(k.address(base, lane, laneBytes), chunk, m.lowBytes());
    PtxRegister[][] low = new PtxRegister[2][];
    PtxRegister[][] highs = {{}, {}};
    PtxRegister[][] s = {{}, {}};
    PtxRegister[] sup = {};
    for (int h = 0; h < 2; h++) {
      low[h] =
          switch (bits) {
            case 2 ->
                n == 4
                    ? vector(2, at, 256L * h)
                    : new PtxRegister[] {k.load(Products.GLOBAL, U32, at, 256L * h + 2L * from)};
            case 4 -> vector(n, at, 512L * h + 4L * from);
            case 8 -> join(n / 2, h * 2 + from / 2, at);
            default -> join(n, h * 4 + from, at);
          };
    }
    if (m.highBits() > 0) {
      PtxRegister a = k.address(k.address(base, lane, 4 * m.highBits()), chunk, m.highBytes());
      for (int h = 0; h < 2; h++) {
        highs[h] =
            m.highBits() == 1
                ? new PtxRegister[] {k.load(Products.GLOBAL, U32, a, m.highAt() + 128L * h)}
                : k.loadVector(Products.GLOBAL, U32, 2, a, m.highAt() + 256L * h);
      }
    }
    if (m.scales() != PackedMatrix.Scales.NONE) {
      PtxRegister g = k.shr(lane, 2);
      PtxRegister a = k.address(k.address(base, g, m.scales().rowBytes), chunk, m.scaleBytes());
      int bytes = m.scales().rowBytes;
      for (int h = 0; h < 2; h++) {
        long offset = m.scalesAt() + 8L * h * bytes;
        s[h] =
            bytes == 4
                ? new PtxRegister[] {k.load(Products.GLOBAL, U32, a, offset)}
                : k.loadVector(Products.GLOBAL, U32, bytes / 4, a, offset);
      }
      if (m.scales().superBlocks) {
        PtxRegister b = k.address(k.address(base, g, 4), k.shr(chunk, 1), 64);
        sup =
            new PtxRegister[] {
              k.load(Products.GLOBAL, U32, b, m.supersAt()),
              k.load(Products.GLOBAL, U32, b, m.supersAt() + 32L)
            };
      }
    }
    PtxRegister[] places = {};
    if (m.isSparse()) {
      PtxRegister a = k.address(k.address(base, lane, 8), chunk, m.highBytes());
      places =
          n == 4
              ? k.loadVector(Products.GLOBAL, U32, 2, a, m.highAt())
              : new PtxRegister[] {k.load(Products.GLOBAL, U32, a, m.highAt() + 2L * from)};
    }
    return new Words(low, highs, s, sup, places);
  }

  private PtxRegister[] join(int n, int firstUnit, PtxRegister at) {
    PtxRegister[] all = new PtxRegister[4 * n];
    for (int u = 0; u < n; u++) {
      System.arraycopy(vector(4, at, 512L * (firstUnit + u)), 0, all, 4 * u, 4);
    }
    return all;
  }

  /**
   * The fragments of a group for its two products; the one of a 2:4 matrix.
   *
   * @param i the group's number among those loaded
   * @param j its number in the chunk
   */
  PtxRegister[][] fragments(Words w, int i, int j) {
    PtxRegister[][] a = new PtxRegister[products()][4];
    for (int h = 0; h < 2; h++) {
      for (int p = 0; p < 2 * a.length; p++) {
        a[p / 2][p % 2 * 2 + h] = pair(w, h, i, j, p);
      }
    }
    return a;
  }

  /** Products of a group with each part of the activations. */
  private int products() {
    return m.isSparse() ? 1 : 2;
  }

  private PtxRegister half2(float v) {
    int bits = Float.floatToFloat16(v) & 0xffff;
    return k.constant(U32, (bits | (long) bits << 16) & 0xffffffffL);
  }

  private PtxRegister pair(Words w, int h, int i, int j, int p) {
    if (m.bits() == 16) {
      return w.low[h][2 * products() * i + p];
    }
    if (m.bits() == 8) {
      // 0x64xx is 1024 + xx as a half.
      PtxRegister word = w.low[h][products() * i + p / 2];
      PtxRegister v = k.permute(word, magic, p % 2 == 0 ? 0x4140 : 0x4342);
      return k.addHalves(v, minus[0]);
    }
    PtxRegister word = w.low[h][m.lowColumnBits() == 2 ? i / 2 : i];
    if (m.hasTable()) {
      PtxRegister index = p == 0 ? k.shl(word, 2) : k.shr(word, 8 * p - 2);
      PtxRegister at = k.add(table.orElseThrow(), k.and(index, 0x3fc));
      return k.load("shared", U32, at, 0);
    }
    // Pairs that are not shifted to the bottom are 4, 16 or 64 times as large.
    boolean two = m.lowBits() == 2;
    int times = two ? p : p % 2;
    int up = two ? 2 * p : 4 * times;
    PtxRegister low = (two || m.isSparse() ? j % 2 : p / 2) == 0 ? word : k.shr(word, 8);
    PtxRegister v = k.maskOr(low, (two ? 0x00030003 : 0x000f000f) << up, 0x64006400);
    if (m.highBits() > 0) {
      boolean one = m.highBits() == 1;
      int place = one ? 4 * j + p : j % 2 * 8 + 2 * p;
      PtxRegister bits = w.high[h][one ? 0 : j / 2];
      int distance = place - m.lowBits() - up;
      if (distance != 0) {
        bits = distance > 0 ? k.shr(bits, distance) : k.shl(bits, -distance);
      }
      long mask = (one ? 0x00010001L : 0x00030003L) << m.lowBits() + up;
      v = k.logic(bits, mask, v, 0xea);
    }
    return times > 0
        ? k.fmaHalves("f16x2", v, down[times], minus[times])
        : k.addHalves(v, minus[0]);
  }

  private PtxRegister half(PtxRegister bits) {
    return k.convert("", F32, "f32", bits, "f16");
  }

  private PtxRegister signed(PtxRegister word, int index) {
    // The sign of the byte in the three above it.
    int sign = 8 + index;
    PtxRegister wide = k.permute(word, word, sign << 12 | sign << 8 | sign << 4 | index);
    return k.convert(".rn", F32, "f32", k.bits(S32, wide), "s32");
  }

  /** A half times a byte, exactly: 0x4b0000xx is 2^23 + xx as a float. */
  private PtxRegister byteProduct(PtxRegister half, PtxRegister word, int index) {
    PtxRegister d = half(half);
    PtxRegister v = k.permute(word, k.constant(U32, 0x4b000000), 0x7440 + index);
    return k.fma(d, k.bits(F32, v), k.mul(d, -0x1p23f));
  }

  /** Factor of product {@code s} of a group in rows g and g + 8. */
  PtxRegister factor(Words w, int h, int j, int s) {
    PtxRegister[] words = w.scales[h];
    return switch (m.scales()) {
      case HALF -> half(k.halves(words[j / 2])[j % 2]);
      case HALF_PAIRS -> half(k.halves(words[0])[j / 2]);
      case BFLOAT -> k.bfloat(k.halves(words[j / 2])[j % 2]);
      case HALF_OFFSET -> half(k.halves(words[j])[0]);
      case BYTE_OFFSET -> byteProduct(k.halves(w.supers[h])[0], words[0], j);
      case HALF_GROUPS -> k.mul(k.bits(F32, w.supers[h]), signed(words[j / 2], j % 2 * 2 + s));
      case BYTES -> k.mul(k.bits(F32, w.supers[h]), signed(words[0], j));
      case NIBBLE_OFFSET ->
          k.mul(half(k.halves(w.supers[h])[0]), nibble(words[j / 2], 8 * (j % 2 * 2 + s)));
      case NONE -> throw new IllegalStateException("no scales");
    };
  }

  private PtxRegister nibble(PtxRegister word, int bit) {
    PtxRegister low = bit == 0 ? word : k.shr(word, bit);
    return k.convert(".rn", F32, "f32", k.and(low, 15), "u32");
  }

  /** Offset of product {@code s} of a group in rows g and g + 8. */
  PtxRegister offset(Words w, int h, int j, int s) {
    PtxRegister[] words = w.scales[h];
    return switch (m.scales()) {
      case HALF_OFFSET -> half(k.halves(words[j])[1]);
      case NIBBLE_OFFSET ->
          k.mul(half(k.halves(w.supers[h])[1]), nibble(words[j / 2], 8 * (j % 2 * 2 + s) + 4));
      default -> byteProduct(k.halves(w.supers[h])[1], words[1], j);
    };
  }

  /**
   * What a group of a tile has: fragments and, per row half and product, factors and offsets; of
   * 2:4 matrices the word with the places of kept elements and which lanes have them.
   */
  record Group(
      PtxRegister[][] a,
      PtxRegister[][] factors,
      PtxRegister[][] offsets,
      Optional<PtxRegister> places,
      int selector) {}

  Group group(Words w, int i, int j) {
    PtxRegister[][] factors = new PtxRegister[2][2];
    PtxRegister[][] offsets = new PtxRegister[2][2];
    if (m.scales() != PackedMatrix.Scales.NONE) {
      for (int h = 0; h < 2; h++) {
        factors[h][0] = factor(w, h, j, 0);
        factors[h][1] = halfGroups() ? factor(w, h, j, 1) : factors[h][0];
        for (int s = 0; s < 2 && (hasHalfOffsets() || m.hasOffsets() && s == 0); s++) {
          offsets[h][s] = offset(w, h, j, s);
        }
      }
    }
    Optional<PtxRegister> places = m.isSparse() ? Optional.of(w.places[i / 2]) : Optional.empty();
    return new Group(fragments(w, i, j), factors, offsets, places, j % 2);
  }

  boolean halfGroups() {
    return m.scales() == PackedMatrix.Scales.HALF_GROUPS || hasHalfOffsets();
  }

  private boolean hasHalfOffsets() {
    return m.scales() == PackedMatrix.Scales.NIBBLE_OFFSET;
  }

  /**
   * Adds a group's products to the sums of 16 rows by 8 columns.
   *
   * @param sizes what the group's activations in the lane's two columns are multiples of; null for
   *     bfloat16
   * @param sums sums of these activations, for offsets
   * @param columns 1 if both columns of a lane are of one row: the second one is not finished then
   */
  void multiply(
      Group g,
      PtxRegister[] upper,
      PtxRegister[] lower,
      PtxRegister[] sizes,
      PtxRegister[] sums,
      int columns,
      PtxRegister[] acc) {
    Parts.Kind kind = Parts.Kind.of(m.type());
    if (kind == Parts.Kind.BFLOAT) {
      for (int s = 0; s < products(); s++) {
        product(kind, g, s, upper, acc, acc);
        product(kind, g, s, lower, acc, acc);
      }
      return;
    }
    boolean plain = m.scales() == PackedMatrix.Scales.NONE;
    PtxRegister[] d = null;
    for (int s = 0; s < products(); s++) {
      PtxRegister[] c = d;
      if (c == null) {
        c = new PtxRegister[] {nothing, nothing, nothing, nothing};
      }
      d = k.registers(F32, 4);
      product(kind, g, s, upper, c, d);
      product(kind, g, s, lower, d, d);
      if (s == products() - 1 || halfGroups()) {
        PtxRegister[] all = hasHalfOffsets() ? columnSums(kind, upper, lower, s) : null;
        for (int i = 0; i < 4; i += 3 - columns) {
          PtxRegister product = plain ? d[i] : k.mul(d[i], g.factors[i / 2][s]);
          if (all != null) {
            product = k.fma(all[i], g.offsets[i / 2][s], product);
          }
          k.fmaInto(acc[i], product, sizes[i % 2], acc[i]);
        }
        d = null;
      }
    }
    if (m.hasOffsets()) {
      for (int i = 0; i < 4; i += 3 - columns) {
        k.fmaInto(acc[i], sums[i % 2], g.offsets[i / 2][0], acc[i]);
      }
    }
  }

  private void product(
      Parts.Kind kind, Group g, int s, PtxRegister[] b, PtxRegister[] c, PtxRegister[] d) {
    if (g.places.isPresent()) {
      k.mmaSparse(kind.text, d, g.a[s], b, c, g.places.get(), g.selector);
    } else {
      k.mma(kind.text, d, g.a[s], two(b, s), c);
    }
  }

  /** Sums of half a group's activations, as products with ones. */
  private PtxRegister[] columnSums(
      Parts.Kind kind, PtxRegister[] upper, PtxRegister[] lower, int s) {
    PtxRegister[] a = {ones, ones, ones, ones};
    PtxRegister[] d = k.registers(F32, 4);
    k.mma(kind.text, d, a, two(upper, s), new PtxRegister[] {nothing, nothing, nothing, nothing});
    k.mma(kind.text, d, a, two(lower, s), d);
    return d;
  }

  private static PtxRegister[] two(PtxRegister[] b, int s) {
    return new PtxRegister[] {b[2 * s], b[2 * s + 1]};
  }

  /** Both values that a byte of two codes stands for, as halves, in shared memory. */
  static Optional<PtxRegister> table(PtxKernel k, PackedMatrix m, PtxRegister thread) {
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
}
