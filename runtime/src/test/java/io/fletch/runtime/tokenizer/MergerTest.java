package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;

/** Short and long sequences of symbols merge as the definition says: the best pair, leftmost. */
class MergerTest {
  private static final int SYMBOLS = 5;

  private record Symbol(int id, int start, int end) {}

  /** Some pairs merge, of few ranks, so that many are equal. */
  private static Map<Integer, Long> table(SplittableRandom random) {
    Map<Integer, Long> table = new HashMap<>();
    for (int pair = 0; pair < SYMBOLS * SYMBOLS; pair++) {
      if (random.nextInt(4) > 0) {
        table.put(pair, (long) random.nextInt(1, 6) << 32 | random.nextInt(SYMBOLS));
      }
    }
    return table;
  }

  private static List<Symbol> merged(List<Symbol> symbols, Map<Integer, Long> table) {
    List<Symbol> all = new ArrayList<>(symbols);
    while (true) {
      int best = -1;
      long least = Long.MAX_VALUE;
      for (int i = 0; i + 1 < all.size(); i++) {
        Long pair = table.get(all.get(i).id() * SYMBOLS + all.get(i + 1).id());
        if (pair != null && pair >>> 32 < least) {
          best = i;
          least = pair >>> 32;
        }
      }
      if (best < 0) {
        return all;
      }
      Symbol left = all.get(best);
      Symbol right = all.remove(best + 1);
      int id = table.get(left.id() * SYMBOLS + right.id()).intValue();
      all.set(best, new Symbol(id, left.start(), right.end()));
    }
  }

  @Test
  void mergesTheLeftmostOfTheBestPairs() {
    SplittableRandom random = new SplittableRandom(1);
    Merger merger = new Merger();
    int shorter = 0;
    for (int round = 0; round < 2000; round++) {
      Map<Integer, Long> table = table(random);
      // On both sides of the length at which another method begins, and none or one.
      int n = round % 4 == 0 ? random.nextInt(200) : random.nextInt(60);
      List<Symbol> symbols = new ArrayList<>();
      merger.reset();
      int at = 0;
      for (int i = 0; i < n; i++) {
        Symbol s = new Symbol(random.nextInt(SYMBOLS), at, at + random.nextInt(1, 4));
        symbols.add(s);
        merger.symbol(s.id(), s.end());
        at = s.end();
      }
      merger.merge((left, right, start, end) -> {
        assertTrue(start < end);
        return table.getOrDefault(left * SYMBOLS + right, -1L);
      });
      List<Symbol> actual = new ArrayList<>();
      for (int i = 0; i < merger.count(); i++) {
        actual.add(new Symbol(merger.id(i), merger.start(i), merger.end(i)));
      }
      assertEquals(merged(symbols, table), actual, "round " + round + ": " + symbols);
      shorter += actual.size() < n ? 1 : 0;
    }
    assertTrue(shorter > 1000, "sequences that became shorter: " + shorter);
  }
}
