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
import io.fletch.tests.HeldMemory;
import java.io.IOException;
import java.util.ArrayList;
import java.util.ConcurrentModificationException;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
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

  /** Answers that each session begins, whatever the time. */
  private static final int LEAST_TASKS = 6;

  private static ModelOptions options() {
    return ModelOptions.defaults()
        .withBackend(ModelOptions.Backend.CPU)
        .withThreads(1)
        .withContextLength(160)
        .withPrefillChunk(32);
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
    try (Model model = Model.demo("demo-small", options)) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      List<Task> tasks = tasks(12);
      Map<Task, List<Object>> expected = alone(model, tasks);
      long[] alone = loaded.scheduler().counts();
      assertEquals(0, alone[1], "a session alone shares nothing");
      // Every forward waits for all sessions, however busy the machine is with other things.
      loaded.scheduler().changeQuorum(tasks.size());
      AtomicInteger next = new AtomicInteger();
      together(
          tasks.size(),
          () -> {
            Task task = tasks.get(next.getAndIncrement());
            try (Session session = model.newSession()) {
              assertEquals(
                  expected.get(task), answer(session.generate(task.prompt(), task.options()), -1));
            } finally {
              loaded.scheduler().changeQuorum(-1);
            }
            return null;
          });
      long[] after = loaded.scheduler().counts();
      if (options.prefillChunk() > 1) {
        // A forward of one row has no room for two sessions.
        assertTrue(after[1] > 0, "sessions that run at once share passes");
        assertTrue(after[0] - alone[0] < alone[0], "and need fewer than alone");
      }
    }
  }

  @Test
  void randomCancellationLeavesTheOthersAlone() throws Exception {
    int sessions = FULL ? 64 : 12;
    long nanos = FULL ? TimeUnit.MINUTES.toNanos(Long.getLong("fletch.minutes", 10)) : 0;
    try (Model model = Model.demo("demo-small", options())) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      List<Task> tasks = tasks(sessions);
      Map<Task, List<Object>> expected = alone(model, tasks);
      AtomicInteger number = new AtomicInteger();
      AtomicInteger answers = new AtomicInteger();
      // Measured when half of the time is over, and at the end.
      long end = System.nanoTime() + nanos;
      CompletableFuture<HeldMemory> half = new CompletableFuture<>();
      Thread.ofVirtual()
          .start(() -> {
            try {
              Thread.sleep(nanos / 2_000_000);
              half.complete(FULL ? HeldMemory.now() : null);
            } catch (IOException | InterruptedException e) {
              half.completeExceptionally(e);
            }
          });
      together(
          sessions,
          () -> {
            SplittableRandom random = new SplittableRandom(number.getAndIncrement());
            Session session = model.newSession();
            try {
              for (int i = 0; i < LEAST_TASKS || System.nanoTime() < end; i++) {
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
              }
            } finally {
              session.close();
            }
            return null;
          });
      HeldMemory before = half.get();
      HeldMemory after = FULL ? HeldMemory.now() : null;
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
                + before
                + " -> "
                + after);
        after.checkSteady(before);
      }
    }
  }

  @Test
  void aSessionIsOneThreadsAndTheModelOutlivesItsSessions() throws Exception {
    Model model = Model.demo("demo-small", options());
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
