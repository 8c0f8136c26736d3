package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.quant.TensorType;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Packed weights kept on disk: found again, never trusted, never in the way. */
class PackCacheTest {
  static final Shape SHAPE = Shape.small().type(TensorType.Q4_0);

  /** How a process ends that was killed. */
  static final int KILLED = 128 + 9;

  @TempDir Path folder;
  private final TestGraphs graphs = new TestGraphs(3);
  private Graph graph;

  @BeforeEach
  void machineCode() {
    assumeTrue(KernelSets.machineCode().isPresent(), "no machine code here, nothing is packed");
    graph = graphs.llama(SHAPE);
  }

  @AfterEach
  void close() {
    graphs.close();
  }

  static PackCache cache(boolean verify, Path... folders) {
    return new PackCache(List.of(folders), "size and time", 1, verify);
  }

  private static Executable compile(Graph graph, PackCache cache) {
    return compile(graph, cache, CpuBackend.Layout.PACKED, () -> {});
  }

  private static Executable compile(
      Graph graph, PackCache cache, CpuBackend.Layout layout, Runnable packed) {
    CpuBackend.Options options =
        CpuBackend.Options.defaults()
            .withThreads(2)
            .withLayout(layout)
            .withCache(cache)
            .withPacked(packed);
    return new CpuBackend(options).compile(graph, 64);
  }

  private static List<float[][]> answers(Executable e) {
    return CpuBackendTest.script(e, KvCache.Type.F16, 1);
  }

  private List<float[][]> expected() {
    try (Executable e =
        new CpuBackend(CpuBackend.Options.defaults().withThreads(2)).compile(graph, 64)) {
      return answers(e);
    }
  }

  private static void assertSame(List<float[][]> expected, List<float[][]> actual) {
    assertEquals(expected.size(), actual.size());
    for (int i = 0; i < expected.size(); i++) {
      assertTrue(Arrays.deepEquals(expected.get(i), actual.get(i)), "batch " + i);
    }
  }

  private static List<Path> files(Path folder) throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.toList();
    }
  }

  /** Writes the cache and returns its file. */
  private Path written() throws IOException {
    return written(1);
  }

  private Path written(int expectedFiles) throws IOException {
    try (Executable e = compile(graph, cache(false, folder))) {
      assertTrue(e.description().contains("kept in"), e.description());
      assertSame(expected(), answers(e));
    }
    List<Path> files = files(folder);
    assertEquals(expectedFiles, files.size(), files.toString());
    return files.getFirst();
  }

  private void assertFound(PackCache cache) {
    try (Executable e = compile(graph, cache)) {
      assertTrue(e.description().contains("mapped from"), e.description());
      assertSame(expected(), answers(e));
    }
  }

  @Test
  void theSecondStartMapsWhatTheFirstPacked() throws IOException {
    Path file = written();
    Object key = Files.getLastModifiedTime(file);
    assertFound(cache(false, folder));
    assertFound(cache(true, folder));
    assertEquals(key, Files.getLastModifiedTime(file));
  }

  @Test
  void otherWeightsAndOtherFilesHaveACacheOfTheirOwn() throws IOException {
    written();
    try (TestGraphs other = new TestGraphs(4);
        Executable e = compile(other.llama(SHAPE), cache(false, folder))) {
      assertTrue(e.description().contains("kept in"), e.description());
    }
    PackCache newer = new PackCache(List.of(folder), "another time", 1, false);
    try (Executable e = compile(graph, newer)) {
      assertTrue(e.description().contains("kept in"), e.description());
    }
    assertEquals(3, files(folder).size());
  }

  /** Layers of a model beside a device: each number of them has a file. */
  @Test
  void aPartOfAModelHasACacheOfItsOwn() throws IOException {
    CpuBackend cached =
        new CpuBackend(
            CpuBackend.Options.defaults()
                .withThreads(2)
                .withLayout(CpuBackend.Layout.PACKED)
                .withCache(cache(true, folder)));
    SplitBackend split = new SplitBackend(cached, new ReferenceBackend(), 1);
    List<List<float[][]>> all = new ArrayList<>();
    for (String words : List.of("kept in", "mapped from")) {
      try (Executable e = split.compile(graph, 64)) {
        assertTrue(e.description().contains(words), e.description());
        all.add(answers(e));
      }
      assertEquals(1, files(folder).size());
    }
    assertSame(all.getFirst(), all.getLast());
    written(2);
  }

  @Test
  void aDamagedFileIsPackedAnew() throws IOException {
    Path file = written();
    byte[] whole = Files.readAllBytes(file);
    List<byte[]> damages = new ArrayList<>();
    damages.add(new byte[0]);
    damages.add(Arrays.copyOf(whole, 40));
    damages.add(Arrays.copyOf(whole, whole.length - 1));
    byte[] header = whole.clone();
    header[30] ^= 1;
    damages.add(header);
    // The first packed bytes are the sample of their kernel; those before the end are found when
    // verified.
    byte[] first = whole.clone();
    first[2 << 20] ^= 1;
    damages.add(first);
    for (byte[] damage : damages) {
      Files.write(file, damage);
      assertEquals(file, written());
      assertFound(cache(true, folder));
    }
    byte[] last = whole.clone();
    last[(2 << 20) + 700] ^= 1;
    Files.write(file, last);
    try (Executable e = compile(graph, cache(true, folder))) {
      assertTrue(e.description().contains("kept in"), e.description());
      assertSame(expected(), answers(e));
    }
    assertFound(cache(true, folder));
  }

  /** What a start does not look at before its first answer is verified beside it. */
  @Test
  void damageBehindTheSampleIsFoundWhileServing() throws IOException {
    Path file = written();
    byte[] last = Files.readAllBytes(file);
    last[(2 << 20) + 700] ^= 1;
    Files.write(file, last);
    try (Executable e = compile(graph, cache(false, folder))) {
      assertTrue(e.description().contains("mapped from"), e.description());
      ((CpuExecutable) e).awaitVerification();
      String message = assertThrows(GraphException.class, () -> answers(e)).getMessage();
      assertTrue(message.contains(file + ": "), message);
      assertTrue(message.contains("checksum of chunk 0 is wrong"), message);
      assertFalse(Files.exists(file));
      assertThrows(GraphException.class, () -> answers(e));
    }
    assertEquals(file, written());
    try (Executable e = compile(graph, cache(false, folder))) {
      ((CpuExecutable) e).awaitVerification();
      assertSame(expected(), answers(e));
    }
  }

  @Test
  void theFirstStartAnswersBeforeItHasPackedAndAlikeAfterwards() throws Exception {
    List<float[][]> expected = expected();
    CountDownLatch mayFinish = new CountDownLatch(1);
    CountDownLatch packed = new CountDownLatch(1);
    PackCache cache = cache(false, folder);
    Runnable whenPacked =
        () -> {
          packed.countDown();
          awaitUninterruptibly(mayFinish);
        };
    try (Executable e = compile(graph, cache, CpuBackend.Layout.AUTO, whenPacked)) {
      assertSame(expected, answers(e));
      // The matrices have their new form, while the packing thread is held.
      assertTrue(packed.await(60, TimeUnit.SECONDS));
      assertTrue(e.description().contains("mapped until packed"), e.description());
      assertSame(expected, answers(e));
      mayFinish.countDown();
    }
    assertEquals(1, files(folder).size(), files(folder).toString());
    assertFound(cache);
  }

  private static void awaitUninterruptibly(CountDownLatch latch) {
    try {
      latch.await();
    } catch (InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  @Test
  void formsChangeUnderForwardsInFlightWithoutATrace() throws Exception {
    List<float[][]> expected = expected();
    for (int round = 0; round < 10; round++) {
      AtomicBoolean changed = new AtomicBoolean();
      Path own = Files.createDirectory(folder.resolve("round" + round));
      try (Executable e =
          compile(graph, cache(false, own), CpuBackend.Layout.AUTO, () -> changed.set(true))) {
        do {
          assertSame(expected, answers(e));
        } while (!changed.get());
      }
    }
  }

  @Test
  void aFirstStartThatCannotWritePacksIntoMemory() throws Exception {
    Path blocked = Files.createFile(folder.resolve("file"));
    CountDownLatch packed = new CountDownLatch(1);
    try (Executable e =
        compile(graph, cache(false, blocked), CpuBackend.Layout.AUTO, packed::countDown)) {
      assertTrue(packed.await(60, TimeUnit.SECONDS));
      assertSame(expected(), answers(e));
    }
    assertEquals(List.of(blocked), files(folder));
  }

  @Test
  void closingAtOnceFinishesWhatIsAMatterOfSeconds() throws IOException {
    compile(graph, cache(false, folder), CpuBackend.Layout.AUTO, () -> {}).close();
    assertFound(cache(false, folder));
  }

  @Test
  void whatACrashLeftIsRemoved() throws IOException {
    Path file = written();
    Files.delete(file);
    Path left = folder.resolve("." + file.getFileName() + ".abc.tmp");
    Files.write(left, new byte[100]);
    Files.write(folder.resolve("." + file.getFileName() + ".lock"), new byte[0]);
    written();
    assertFalse(Files.exists(left));
  }

  @Test
  void aStartThatDiesWhileItWritesLeavesNothingThatIsBelieved() throws Exception {
    List<Long> reports = new ArrayList<>();
    CpuBackend.Options options =
        CpuBackend.Options.defaults()
            .withLayout(CpuBackend.Layout.PACKED)
            .withCache(cache(false, Files.createDirectory(folder.resolve("whole"))))
            .withProgress((done, total) -> reports.add(done));
    new CpuBackend(options).compile(graph, 64).close();
    assertTrue(reports.size() > 4, reports.toString());
    for (int at : new int[] {2, reports.size() / 2}) {
      Path own = Files.createDirectory(folder.resolve("died" + at));
      Process process =
          new ProcessBuilder(
                  Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                  "-XX:+UseSerialGC",
                  "-XX:TieredStopAtLevel=1",
                  "-Dfletch.cpu=" + System.getProperty("fletch.cpu", "native"),
                  "-Dfletch.cpu.assume=" + System.getProperty("fletch.cpu.assume", ""),
                  "--enable-native-access=ALL-UNNAMED",
                  "-cp",
                  System.getProperty(
                      "surefire.test.class.path", System.getProperty("java.class.path")),
                  PackCacheCrash.class.getName(),
                  own.toString(),
                  Integer.toString(at))
              .redirectOutput(ProcessBuilder.Redirect.DISCARD)
              .redirectError(ProcessBuilder.Redirect.DISCARD)
              .start();
      assertEquals(KILLED, process.waitFor());
      List<Path> left = files(own);
      assertTrue(left.stream().anyMatch(p -> p.toString().endsWith(".tmp")), left.toString());
      assertFalse(left.stream().anyMatch(p -> p.toString().endsWith(".pack")), left.toString());
      for (String words : List.of("kept in", "mapped from")) {
        try (Executable e = compile(graph, cache(true, own))) {
          assertTrue(e.description().contains(words), e.description());
          assertSame(expected(), answers(e));
        }
      }
      assertEquals(1, files(own).size(), files(own).toString());
    }
  }

  @Test
  void aFolderThatCannotBeWrittenIsPassedOver() throws IOException {
    Path blocked = Files.createFile(folder.resolve("file"));
    Path second = folder.resolve("second/deep");
    try (Executable e = compile(graph, cache(false, blocked, second))) {
      assertTrue(e.description().contains(second.toString()), e.description());
    }
    assertFound(cache(false, blocked, second));
    try (Executable e = compile(graph, cache(false, blocked))) {
      assertTrue(e.description().endsWith("MiB)"), e.description());
      assertSame(expected(), answers(e));
    }
  }

  @Test
  void startsAtOnceAllWorkAndLeaveOneFile() throws Exception {
    List<float[][]> expected = expected();
    try (ExecutorService pool = Executors.newFixedThreadPool(4)) {
      List<Future<?>> all = new ArrayList<>();
      for (int i = 0; i < 12; i++) {
        all.add(
            pool.submit(() -> {
              try (Executable e = compile(graph, cache(true, folder))) {
                assertSame(expected, answers(e));
              }
            }));
      }
      for (Future<?> f : all) {
        f.get();
      }
    }
    assertEquals(1, files(folder).size(), files(folder).toString());
    assertFound(cache(true, folder));
  }

  @Test
  void smallModelsLeaveNoFileAndNeitherDoMappedWeights() throws IOException {
    PackCache large = new PackCache(List.of(folder), "s", 64L << 20, false);
    compile(graph, large).close();
    new CpuBackend(
            CpuBackend.Options.defaults()
                .withLayout(CpuBackend.Layout.MAPPED)
                .withCache(cache(false, folder)))
        .compile(graph, 64)
        .close();
    assertEquals(List.of(), files(folder));
  }

  @Test
  void progressEndsAtTheTotalOnEveryWay() throws IOException {
    for (int start = 0; start < 2; start++) {
      List<Long> seen = new ArrayList<>();
      CpuBackend.Options o =
          CpuBackend.Options.defaults()
              .withCache(cache(false, folder))
              .withProgress((done, total) -> {
                assertTrue(done <= total);
                seen.add(done == total ? -1 : done);
              });
      new CpuBackend(o).compile(graph, 64).close();
      assertEquals(-1, seen.getLast());
      assertEquals(1, seen.stream().filter(d -> d == -1).count());
    }
  }
}
