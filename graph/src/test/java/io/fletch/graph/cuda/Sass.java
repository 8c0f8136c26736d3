package io.fletch.graph.cuda;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Machine code of compute capability 7.0 and up, as far as counting needs it: instructions of 16
 * bytes, whose lowest 12 bits are the operation. The operations and the place of a branch's
 * distance were read off what {@code ptxas} 13.0 makes of kernels of one instruction.
 */
final class Sass {
  private static final int INSTRUCTION = 16;
  private static final int HMMA = 0x23c;
  private static final int BRANCH = 0x947;
  private static final int LOAD_GLOBAL = 0x981;
  private static final int NOTHING = 0x918;

  private Sass() {}

  /**
   * A loop without a loop inside.
   *
   * @param instructions all of them, those of paths that are rare too
   * @param products matrix products of 16 x 8 x 16
   * @param loads loads from global memory
   */
  record Loop(int instructions, int products, int loads) {}

  /** The code of each kernel of an assembled module. */
  static Map<String, ByteBuffer> kernels(Path cubin) throws IOException {
    ByteBuffer b = ByteBuffer.wrap(Files.readAllBytes(cubin)).order(ByteOrder.LITTLE_ENDIAN);
    int sections = Math.toIntExact(b.getLong(0x28));
    int size = b.getShort(0x3a);
    int count = b.getShort(0x3c);
    int names = Math.toIntExact(b.getLong(sections + b.getShort(0x3e) * size + 24));
    Map<String, ByteBuffer> all = new LinkedHashMap<>();
    for (int i = 0; i < count; i++) {
      int at = sections + i * size;
      int from = names + b.getInt(at);
      int end = from;
      while (b.get(end) != 0) {
        end++;
      }
      String name = new String(b.array(), from, end - from, StandardCharsets.US_ASCII);
      if (name.startsWith(".text.")) {
        int offset = Math.toIntExact(b.getLong(at + 24));
        int bytes = Math.toIntExact(b.getLong(at + 32));
        all.put(name.substring(6), b.slice(offset, bytes).order(ByteOrder.LITTLE_ENDIAN));
      }
    }
    return all;
  }

  private static int operation(ByteBuffer code, int at) {
    return code.getShort(at) & 0xfff;
  }

  /** Where a branch goes, in bytes from the start. */
  private static int target(ByteBuffer code, int at) {
    long low = code.getLong(at);
    long high = code.getLong(at + 8);
    int words = (int) ((low >>> 34 | high << 30) << 8 | low >>> 16 & 0xff);
    return at + INSTRUCTION + 4 * words;
  }

  /** Of the loops with matrix products and nothing to repeat inside the one with most of them. */
  static Optional<Loop> productLoop(ByteBuffer code) {
    return innermost(code).stream()
        .filter(l -> l.products > 0)
        .max(Comparator.comparingInt(Loop::products));
  }

  /** The loops with nothing to repeat inside. */
  static List<Loop> innermost(ByteBuffer code) {
    List<int[]> loops = new ArrayList<>();
    for (int at = 0; at < code.limit(); at += INSTRUCTION) {
      if (operation(code, at) == BRANCH && target(code, at) < at) {
        loops.add(new int[] {target(code, at), at});
      }
    }
    return loops.stream()
        .filter(l -> loops.stream().noneMatch(o -> o != l && o[0] >= l[0] && o[1] <= l[1]))
        .map(l -> count(code, l[0], l[1]))
        .toList();
  }

  private static Loop count(ByteBuffer code, int from, int to) {
    int instructions = 0;
    int products = 0;
    int loads = 0;
    for (int at = from; at <= to; at += INSTRUCTION) {
      int operation = operation(code, at);
      instructions += operation == NOTHING ? 0 : 1;
      products += operation == HMMA ? 1 : 0;
      loads += operation == LOAD_GLOBAL ? 1 : 0;
    }
    return new Loop(instructions, products, loads);
  }
}
