package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Span;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** How workers divide attention, and that no row's bits depend on it. */
class AttentionDivisionTest {
  private static final int SEGMENT = Kernels.ATTENTION_SEGMENT;

  private final TestGraphs graphs = new TestGraphs(77);

  @AfterEach
  void close() {
    graphs.close();
  }

  /** Three query heads for each key/value head; the window is that of the even layers. */
  private Graph graph(int kvHeads, int window) {
    return graphs.llama(
        new Shape(
            64,
            2,
            3 * kvHeads,
            kvHeads,
            32,
            32,
            96,
            97,
            TensorType.F32,
            Activation.SILU,
            RopeSpec.Style.NEOX,
            16,
            false,
            false,
            false,
            false,
            true,
            window,
            0,
            0));
  }

  private final int[] tokens = graphs.tokens(60, 97);

  /** Gives a cache that many slots: those of a few tokens, again and again. */
  private void fill(Executable e, KvCache kv, int slots) {
    int n = Math.min(8, slots);
    try (Batch b = e.newBatch(n, 1)) {
      b.append(kv, tokens, tokens.length - n, n);
      b.wantLogits(0);
      e.forward(b);
    }
    for (int filled = n; filled < slots; ) {
      int more = Math.min(filled, slots - filled);
      kv.copy(kv, 0, filled, more);
      filled += more;
    }
    kv.length(slots);
  }

  private static float[][] forward(Executable e, Batch b, int rows) {
    for (int r = 0; r < rows; r++) {
      b.wantLogits(r);
    }
    e.forward(b);
    return CpuBackendTest.logits(b, e.graph().vocabulary());
  }

  /** Logits of tokens behind the first slots, run by pieces. */
  private float[][] pieces(Executable e, KvCache kv, int slots, int rows, int piece) {
    float[][] all = new float[rows][];
    kv.length(slots);
    try (Batch b = e.newBatch(piece, piece)) {
      for (int from = 0; from < rows; from += piece) {
        int n = Math.min(piece, rows - from);
        b.clear();
        b.append(kv, tokens, from, n);
        System.arraycopy(forward(e, b, n), 0, all, from, n);
        kv.length(kv.length() + n);
      }
    }
    return all;
  }

  /** A window of 2 is left by the rows of a piece themselves, others lie across segments. */
  @ParameterizedTest
  @CsvSource({"1,0,1012", "1,700,2040", "2,0,2040", "2,1500,3062", "2,2,1015"})
  void piecesAndThreadsDoNotMatter(int kvHeads, int window, int slots) {
    Graph graph = graph(kvHeads, window);
    int rows = 22;
    Kernels kernels = KernelSets.best().kernels();
    Map<KvCache.Type, float[][]> expected = new EnumMap<>(KvCache.Type.class);
    for (int threads : new int[] {1, 2, 5}) {
      try (Executable e = CpuBackendTest.compile(graph, rows, threads, kernels)) {
        for (KvCache.Type type : KvCache.Type.values()) {
          try (KvCache kv = e.newKvCache(slots + rows, type)) {
            fill(e, kv, slots);
            // The last piece of seven rows is a row alone; several workers are slow to decode many.
            int[] sizes = threads == 1 ? new int[] {1, 7, rows} : new int[] {7, rows};
            for (int piece : sizes) {
              float[][] actual = pieces(e, kv, slots, rows, piece);
              expected.putIfAbsent(type, actual);
              for (int r = 0; r < rows; r++) {
                assertArrayEquals(
                    expected.get(type)[r],
                    actual[r],
                    type + " threads=" + threads + " piece=" + piece + " row=" + r);
              }
            }
          }
        }
      }
    }
  }

  /** Gathered or not, at the start of a segment or across, whatever part the window leaves. */
  @ParameterizedTest
  @CsvSource({"0,1020", "0,3", "4,1020", "4,30", "700,2047", "1030,1500", "1,5"})
  void draftsElsewhereHaveTheBitsOfThoseInPlace(int window, int slots) {
    Graph graph = graph(1, window);
    int rows = 9;
    int elsewhere = slots + 77;
    Kernels kernels = KernelSets.best().kernels();
    for (int threads : new int[] {1, 3}) {
      try (Executable e = CpuBackendTest.compile(graph, rows, threads, kernels)) {
        for (KvCache.Type type : KvCache.Type.values()) {
          try (KvCache kv = e.newKvCache(elsewhere + rows, type);
              Batch b = e.newBatch(rows, rows)) {
            fill(e, kv, elsewhere);
            b.add(new Span(kv, rows, slots, elsewhere, slots, 0, 0, Span.Own.CAUSAL, 0), tokens, 0);
            float[][] draft = forward(e, b, rows);
            float[][] expected = pieces(e, kv, slots, rows, 1 + window % 2);
            for (int r = 0; r < rows; r++) {
              assertArrayEquals(expected[r], draft[r], type + " threads=" + threads + " row=" + r);
            }
          }
        }
      }
    }
  }

  /** Rows between others of a canvas, from whose slots they keep away. */
  @ParameterizedTest
  @CsvSource({"0,1015", "3,1015", "0,30", "900,2040"})
  void windowsOfACanvasElsewhereHaveTheBitsOfThoseInPlace(int window, int slots) {
    Graph graph = graph(1, window);
    int rows = 20;
    int canvas = slots + rows + 60;
    for (KvCache.Type type : KvCache.Type.values()) {
      for (int threads : new int[] {1, 3}) {
        try (Executable e =
                CpuBackendTest.compile(graph, rows, threads, KernelSets.best().kernels());
            KvCache kv = e.newKvCache(canvas + rows, type);
            Batch b = e.newBatch(rows, rows)) {
          fill(e, kv, canvas);
          float[][][] logits = new float[2][][];
          for (int i = 0; i < 2; i++) {
            int slot = i == 0 ? canvas : slots;
            b.clear();
            b.add(
                new Span(
                    kv, rows, slots, slot, slots, slots + rows, canvas, Span.Own.BIDIRECTIONAL, 0),
                tokens,
                0);
            logits[i] = forward(e, b, rows);
          }
          for (int r = 0; r < rows; r++) {
            assertArrayEquals(
                logits[1][r], logits[0][r], type + " threads=" + threads + " row=" + r);
          }
        }
      }
    }
  }

  /** A real prompt, over more than a segment, against its tokens one by one. */
  @Test
  void promptsHaveTheBitsOfDecoding() {
    Graph graph = graph(2, 300);
    Kernels kernels = KernelSets.best().kernels();
    int rows = SEGMENT + 90;
    int[] prompt = graphs.tokens(rows, 97);
    List<float[][]> all = new ArrayList<>();
    for (int piece : new int[] {1, 400}) {
      try (Executable e = CpuBackendTest.compile(graph, piece, piece == 1 ? 1 : 2, kernels);
          KvCache kv = e.newKvCache(rows, KvCache.Type.F16);
          Batch b = e.newBatch(piece, 1)) {
        float[][] logits = new float[rows][97];
        for (int from = 0; from < rows; from += piece) {
          int n = Math.min(piece, rows - from);
          b.clear();
          b.append(kv, prompt, from, n);
          b.wantLogits(n - 1);
          e.forward(b);
          b.logits(0, logits[from + n - 1]);
          kv.length(from + n);
        }
        all.add(logits);
      }
    }
    for (int r : new int[] {399, 799, rows - 1}) {
      assertArrayEquals(all.get(0)[r], all.get(1)[r], "row " + r);
    }
  }

  /** A call of the attention kernel. */
  private record Call(int rows, int from, int to, boolean shared) {}

  /** Calls of attention that are still to succeed before one fails. */
  private final AtomicInteger untilFailure = new AtomicInteger(Integer.MAX_VALUE);

  private final List<Call> calls = Collections.synchronizedList(new ArrayList<>());

  /** The best kernels, noting calls of attention in layer 0. */
  private Kernels noting() {
    return (Kernels)
        Proxy.newProxyInstance(
            Kernels.class.getClassLoader(),
            new Class<?>[] {Kernels.class},
            (self, method, args) -> {
              if (method.getName().equals("attention") && ((AttentionSpec) args[0]).layer() == 0) {
                AttentionTile tile = (AttentionTile) args[1];
                boolean shared = tile.states().address() != ((MemorySegment) args[3]).address();
                calls.add(new Call(tile.rows(), tile.start(), tile.end(), shared));
                if (untilFailure.getAndDecrement() == 0) {
                  throw new IllegalStateException("failed by the test");
                }
              }
              try {
                return method.invoke(KernelSets.best().kernels(), args);
              } catch (InvocationTargetException e) {
                throw e.getCause();
              }
            });
  }

  /** Calls for some rows behind some slots, in the order of positions, then of rows. */
  private List<Call> calls(int kvHeads, int threads, int slots, int rows) {
    try (Executable e =
            CpuBackendTest.compile(graph(kvHeads, 0), Math.max(8, rows), threads, noting());
        KvCache kv = e.newKvCache(slots + rows, KvCache.Type.F32);
        Batch b = e.newBatch(rows, 1)) {
      fill(e, kv, slots);
      b.append(kv, tokens, 0, rows);
      b.wantLogits(0);
      calls.clear();
      e.forward(b);
      return calls.stream()
          .sorted(Comparator.comparing(Call::from).thenComparing(Call::to))
          .toList();
    }
  }

  @Test
  void fewRowsShareAContext() {
    List<Call> split =
        List.of(
            new Call(1, 0, 1024, true),
            new Call(1, 1024, 2048, true),
            new Call(1, 2048, 2601, true));
    assertEquals(split, calls(1, 3, 2600, 1));
    List<Call> alone = calls(1, 1, 2600, 1);
    assertEquals(split.size(), alone.size(), "segments, of one worker");
    assertTrue(alone.stream().noneMatch(Call::shared));
    // Two heads are enough for two workers, and not for three.
    assertTrue(calls(2, 2, 2600, 1).stream().noneMatch(Call::shared));
    assertTrue(calls(2, 3, 2600, 1).stream().allMatch(Call::shared));
    // Both at once: rows that share keys, and segments.
    assertEquals(
        List.of(new Call(8, 0, 1024, true), new Call(8, 1024, 1038, true)), calls(1, 2, 1030, 8));
  }

  /** Whichever segment fails, and whatever was done by then, the next forward starts anew. */
  @Test
  void aFailureLeavesNothingToTheNextForward() {
    try (Executable e = CpuBackendTest.compile(graph(1, 0), 8, 3, noting());
        KvCache kv = e.newKvCache(2601, KvCache.Type.F32)) {
      fill(e, kv, 2600);
      float[] expected = pieces(e, kv, 2600, 1, 1)[0];
      for (int failing = 0; failing < 3; failing++) {
        calls.clear();
        untilFailure.set(failing);
        assertThrows(GraphException.class, () -> pieces(e, kv, 2600, 1, 1));
        assertTrue(calls.stream().allMatch(Call::shared));
        untilFailure.set(Integer.MAX_VALUE);
        assertArrayEquals(expected, pieces(e, kv, 2600, 1, 1)[0], "after " + failing);
      }
    }
  }

  @Test
  void rowsAreTakenTogether() {
    List<Call> tiles =
        List.of(new Call(13, 0, 23, false), new Call(13, 0, 36, false), new Call(14, 0, 50, false));
    assertEquals(tiles, calls(1, 1, 10, 40));
    List<Call> twice = tiles.stream().flatMap(c -> Stream.of(c, c)).toList();
    assertEquals(twice, calls(2, 2, 10, 40));
    assertEquals(List.of(new Call(4, 0, 14, false), new Call(4, 0, 18, false)), calls(1, 2, 10, 8));
    assertEquals(3, calls(1, 5, 10, 3).size(), "no more workers than rows");
  }

  /** Rows that have their positions in the same slots are one tile, also where these are apart. */
  @Test
  void rowsShareSlotsThatAreApart() {
    try (Executable e = CpuBackendTest.compile(graph(1, 0), 12, 1, noting());
        KvCache kv = e.newKvCache(60, KvCache.Type.F32);
        Batch b = e.newBatch(12, 1)) {
      fill(e, kv, 40);
      b.add(new Span(kv, 4, 20, 40, 20, 0, 0, Span.Own.CAUSAL, 0), tokens, 0);
      b.add(new Span(kv, 5, 20, 44, 20, 25, 40, Span.Own.BIDIRECTIONAL, 0), tokens, 0);
      // The suffix comes behind the own rows, another place in each row.
      b.add(new Span(kv, 2, 20, 49, 20, 25, 40, Span.Own.CAUSAL, 0), tokens, 0);
      b.wantLogits(0);
      calls.clear();
      e.forward(b);
      assertEquals(
          List.of(
              new Call(1, 0, 37, false),
              new Call(1, 0, 36, false),
              new Call(5, 0, 40, false),
              new Call(4, 0, 24, false)),
          calls);
    }
  }

  @Test
  void tilesEndWhereCachesAndGatesDo() {
    try (Executable e = CpuBackendTest.compile(graph(1, 0), 12, 1, noting());
        KvCache one = e.newKvCache(20, KvCache.Type.F32);
        KvCache two = e.newKvCache(20, KvCache.Type.F16);
        Batch b = e.newBatch(12, 1)) {
      b.append(one, tokens, 0, 7);
      b.append(two, tokens, 0, 5);
      b.gate(0, Gate.Unit.ATTENTION, 3, Gate.SKIP);
      b.gate(0, Gate.Unit.ATTENTION, 4, Gate.SKIP);
      b.wantLogits(0);
      calls.clear();
      e.forward(b);
      assertEquals(
          List.of(new Call(5, 0, 5, false), new Call(2, 0, 7, false), new Call(3, 0, 3, false)),
          calls);
    }
  }
}
