package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.Generation.FinishReason;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.ConcurrentModificationException;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Sessions of one model on many threads: what they generate together, and what is cancelled on the
 * way, is bit for bit what each generates alone.
 */
class ConcurrentSessionsTest {
  /** Minutes of the long form: {@code -Dfletch.full=true}, ten unless {@code -Dfletch.minutes}. */
  private static final boolean FULL = Boolean.getBoolean("fletch.full");

  /** Requests that were under way when it was measured, and garbage since the collection. */
  private static final long HEAP_GROWTH = 48L << 20;

  /** Compiled code, stacks, arenas, and pages that the system has not taken back. */
  private static final long RESIDENT_GROWTH = 96L << 20;

  private static ModelOptions options() {
    return TestModels.options(ModelOptions.Backend.CPU).withContextLength(160).withPrefillChunk(32);
  }

  private record Task(String prompt, GenerationOptions options) {}

  /** Greedy and sampled, short and long prompts (more than one chunk), some with log-probs. */
  private static List<Task> tasks(int count) {
    List<Task> out = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      String filler = "Tell me about numbers, please. ".repeat(i % 4);
      String prompt =
          "<|im_start|>user\n"
              + filler
              + "What is "
              + (100 + 37 * i)
              + " + "
              + (900 - 13 * i)
              + "?<|im_end|>\n<|im_start|>assistant\n";
      SamplingOptions sampling =
          i % 3 == 0
              ? SamplingOptions.greedy()
              : SamplingOptions.defaults().withTemperature(1.2f).withSeed(i);
      out.add(
          new Task(
              prompt,
              GenerationOptions.defaults()
                  .withSampling(sampling)
                  .withMaxTokens(40)
                  .withIgnoreEnd(i % 5 == 4)
                  .withLogprobs(i % 4 == 1 ? 2 : -1)));
    }
    return out;
  }

  /** Ids and the bits of all log-probabilities. */
  private static List<Object> answer(Generation generation, int cancelAfter) {
    List<Object> out = new ArrayList<>();
    try (generation) {
      for (int i = 0; generation.hasNext(); i++) {
        if (i == cancelAfter) {
          generation.cancel();
        }
        Generation.Chunk chunk = generation.next();
        out.addAll(chunk.ids());
        chunk
            .logprobs()
            .forEach(p -> {
              out.add(Double.doubleToRawLongBits(p.logprob()));
              p.top().forEach(a -> out.add(Double.doubleToRawLongBits(a.logprob())));
            });
      }
    }
    return out;
  }

  private static Map<Task, List<Object>> alone(Model model, List<Task> tasks) {
    Map<Task, List<Object>> out = new HashMap<>();
    for (Task task : tasks) {
      try (Session session = model.newSession()) {
        out.put(task, answer(session.generate(task.prompt(), task.options()), -1));
      }
    }
    return out;
  }

  private static <T> void together(int threads, Callable<T> body) throws Exception {
    try (ExecutorService pool = Executors.newThreadPerTaskExecutor(Thread.ofVirtual().factory())) {
      List<Future<T>> futures = new ArrayList<>();
      for (int i = 0; i < threads; i++) {
        futures.add(pool.submit(body));
      }
      for (Future<T> f : futures) {
        f.get();
      }
    }
  }

  @ParameterizedTest
  @EnumSource(ModelOptions.KvType.class)
  void togetherEqualsAlone(ModelOptions.KvType type) throws Exception {
    together(options().withKvType(type));
  }

  /** Steps alone fill a forward: prompts must get their turn all the same. */
  @ParameterizedTest
  @ValueSource(ints = {1, 3})
  void togetherEqualsAloneWithTinyChunks(int chunk) throws Exception {
    together(options().withPrefillChunk(chunk));
  }

  private static void together(ModelOptions options) throws Exception {
    try (Model model = TestModels.open("demo-small", options)) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      List<Task> tasks = tasks(12);
      Map<Task, List<Object>> expected = alone(model, tasks);
      long[] alone = loaded.scheduler().counts();
      assertEquals(0, alone[1], "a session alone shares nothing");
      boolean isShared = false;
      // On a machine that is busy with other things the sessions may not run at once every time.
      for (int round = 0; round < 20 && !isShared; round++) {
        long[] before = loaded.scheduler().counts();
        CyclicBarrier start = new CyclicBarrier(tasks.size());
        AtomicInteger next = new AtomicInteger();
        together(
            tasks.size(),
            () -> {
              Task task = tasks.get(next.getAndIncrement());
              try (Session session = model.newSession()) {
                start.await();
                assertEquals(
                    expected.get(task),
                    answer(session.generate(task.prompt(), task.options()), -1));
              }
              return null;
            });
        long[] after = loaded.scheduler().counts();
        boolean isFewer = after[0] - before[0] < alone[0];
        isShared = options.prefillChunk() == 1 || after[1] > before[1] && isFewer;
      }
      assertTrue(isShared, "sessions that run at once share passes, and need fewer than alone");
    }
  }

  @Test
  void randomCancellationLeavesTheOthersAlone() throws Exception {
    int sessions = FULL ? 64 : 12;
    long end =
        System.nanoTime() + (FULL ? Long.getLong("fletch.minutes", 10) * 60 : 2) * 1_000_000_000L;
    try (Model model = TestModels.open("demo-small", options())) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      List<Task> tasks = tasks(sessions);
      Map<Task, List<Object>> expected = alone(model, tasks);
      AtomicInteger number = new AtomicInteger();
      AtomicInteger answers = new AtomicInteger();
      long start = System.nanoTime();
      AtomicReference<Held> warm = new AtomicReference<>();
      // Compared once everything is warm and again at the end.
      Thread.ofVirtual()
          .start(() -> {
            try {
              Thread.sleep((end - start) / 5_000_000L);
              warm.set(FULL ? Held.now() : null);
            } catch (IOException | InterruptedException e) {
              throw new IllegalStateException(e);
            }
          });
      together(
          sessions,
          () -> {
            SplittableRandom random = new SplittableRandom(number.getAndIncrement());
            Session session = model.newSession();
            try {
              do {
                Task task = tasks.get(random.nextInt(tasks.size()));
                int cancelAfter = random.nextInt(3) == 0 ? random.nextInt(20) : -1;
                Generation generation = session.generate(task.prompt(), task.options());
                if (random.nextInt(8) == 0) {
                  Thread.startVirtualThread(generation::cancel);
                }
                List<Object> actual = answer(generation, cancelAfter);
                List<Object> whole = expected.get(task);
                assertEquals(whole.subList(0, Math.min(whole.size(), actual.size())), actual);
                if (generation.result().finishReason() != FinishReason.CANCELLED) {
                  assertEquals(whole.size(), actual.size());
                  answers.incrementAndGet();
                }
                if (random.nextInt(4) == 0) {
                  // With an answer that is still open.
                  assertTrue(session.generate(task.prompt(), task.options()).hasNext());
                  session.close();
                  session = model.newSession();
                }
              } while (System.nanoTime() < end);
            } finally {
              session.close();
            }
            return null;
          });
      Held after = FULL ? Held.now() : null;
      assertTrue(answers.get() > 0);
      assertEquals(0, loaded.openSessions());
      assertEquals(0, loaded.openForwards(), "caches that nobody closed");
      if (FULL) {
        long[] counts = loaded.scheduler().counts();
        System.out.println(
            "stress: sessions="
                + sessions
                + " whole answers="
                + answers.get()
                + " forwards="
                + counts[0]
                + " shared="
                + counts[1]
                + " memory "
                + warm
                + " -> "
                + after);
        // Two seconds are over before compilers are done; ten minutes are not.
        after.checkSteady(warm.get());
      }
    }
  }

  /**
   * Memory that is held after a collection.
   *
   * @param heap bytes of live objects
   * @param resident bytes of the process, the heap's included, from Linux; 0 where that is not to
   *     be had
   */
  private record Held(long heap, long resident) {
    /** Looks for five seconds: a collector gives memory back to the system after its work. */
    static Held now() throws IOException, InterruptedException {
      Runtime runtime = Runtime.getRuntime();
      long heap = Long.MAX_VALUE;
      long resident = Long.MAX_VALUE;
      for (int i = 0; i < 50; i++) {
        if (i % 10 == 0) {
          System.gc();
        }
        heap = Math.min(heap, runtime.totalMemory() - runtime.freeMemory());
        resident = Math.min(resident, residentBytes());
        Thread.sleep(100);
      }
      return new Held(heap, resident);
    }

    private static long residentBytes() throws IOException {
      Path status = Path.of("/proc/self/status");
      if (!Files.isReadable(status)) {
        return 0;
      }
      return Files.readAllLines(status).stream()
          .filter(line -> line.startsWith("VmRSS:"))
          .mapToLong(line -> Long.parseLong(line.replaceAll("[^0-9]", "")) << 10)
          .findFirst()
          .orElseThrow();
    }

    void checkSteady(Held before) {
      assertTrue(
          heap - before.heap < HEAP_GROWTH && resident - before.resident < RESIDENT_GROWTH,
          "memory: before=" + before + " after=" + this);
    }

    @Override
    public String toString() {
      return (heap >> 20) + " MiB of objects and " + (resident >> 20) + " MiB resident";
    }
  }

  @Test
  void aSessionIsOneThreadsAndTheModelOutlivesItsSessions() throws Exception {
    Model model = TestModels.open("demo-small", options());
    Session session = model.newSession();
    assertThrows(IllegalStateException.class, model::close);
    CountDownLatch inside = new CountDownLatch(1);
    CountDownLatch tried = new CountDownLatch(1);
    Generation generation = session.generate("Hello", GenerationOptions.greedy());
    // A session that is in use by a thread refuses another one, closing included.
    BaseSession base = assertInstanceOf(BaseSession.class, session);
    Thread user =
        Thread.ofVirtual()
            .start(() -> {
              base.guard().enter();
              try {
                inside.countDown();
                tried.await();
              } catch (InterruptedException e) {
                throw new IllegalStateException(e);
              } finally {
                base.guard().exit();
              }
            });
    inside.await();
    assertThrows(ConcurrentModificationException.class, generation::hasNext);
    assertThrows(ConcurrentModificationException.class, session::close);
    tried.countDown();
    user.join();
    assertTrue(generation.hasNext());
    session.close();
    model.close();
    assertThrows(IllegalStateException.class, model::newSession);
  }
}
