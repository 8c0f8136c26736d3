package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Adapter;
import io.fletch.FfnSkip;
import io.fletch.FletchException;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.SessionPool;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Adapters that sessions of an open model list. */
class SessionAdaptersTest {
  private static final String PROMPT = "What is 457 + 386?";
  private static final GenerationOptions TEN = GenerationOptions.defaults().withMaxTokens(10);

  @TempDir static Path folder;
  private static Path strong;
  private static Path weak;

  @BeforeAll
  static void write() {
    Path model = TestModels.demo("demo-small");
    strong = AdapterFiles.gguf(model, folder.resolve("strong.gguf"), 8, TensorType.F16, 2, 1);
    weak = AdapterFiles.gguf(model, folder.resolve("weak.gguf"), 3, TensorType.BF16, 0.7, 2);
  }

  private static ModelOptions options() {
    return ModelOptions.defaults().withThreads(2).withKvType(ModelOptions.KvType.F32);
  }

  private static List<Integer> ids(Session session) {
    return session.generate(PROMPT, TEN).result().ids();
  }

  @ParameterizedTest
  @EnumSource(
      value = ModelOptions.Kernels.class,
      names = {"SCALAR", "VECTOR", "NATIVE"})
  void aTextChangesAndComesBack(ModelOptions.Kernels kernels) {
    try (Model model = TestModels.open("demo-small", options().withKernels(kernels));
        Session session = model.newSession()) {
      List<Integer> base = ids(session);
      Adapter a = model.adapter(strong);
      session.adapters(List.of(a.scaled(1)));
      assertEquals(List.of(), session.tokens(), "computed without the adapter");
      List<Integer> adapted = ids(session);
      assertNotEquals(base, adapted);
      int held = session.tokens().size();
      session.adapters(List.of(a.scaled(1), model.adapter(weak).scaled(0)));
      assertEquals(held, session.tokens().size(), "the same function");
      session.adapters(List.of(a.scaled(0)));
      assertEquals(base, ids(session));
      session.adapters(List.of(a.scaled(1)));
      assertEquals(adapted, ids(session));
      session.adapters(List.of());
      assertEquals(base, ids(session));
    }
  }

  @Test
  void whatFailsToCloseKeepsNothingElseFromBeingClosed() {
    LoadedModel model = (LoadedModel) TestModels.open("demo-small", options());
    model.adapter(strong);
    model.adapter(weak);
    List<String> closed = new ArrayList<>();
    for (String name : List.of("first", "second", "third")) {
      model.own(() -> {
        closed.add(name);
        if (!name.equals("second")) {
          throw new IllegalStateException(name);
        }
      });
    }
    IllegalStateException e = assertThrows(IllegalStateException.class, model::close);
    assertEquals("first", e.getMessage());
    assertEquals("third", e.getSuppressed()[0].getMessage());
    assertEquals(1, e.getSuppressed().length);
    assertEquals(List.of("first", "second", "third"), closed);
    assertEquals(List.of(), model.adapters());
    model.close();
  }

  @Test
  void logitsAreThoseOfTheAdapterThatIsAttachedAtOpen() {
    int[] text = {5, 6, 7, 300, 12};
    ModelOptions open =
        options()
            .withAdapters(
                List.of(
                    new ModelOptions.Adapter(strong, 0.5f), new ModelOptions.Adapter(weak, -1)));
    float[][] expected;
    try (Model model = TestModels.open("demo-small", open);
        Session session = model.newSession()) {
      expected = session.logits(text);
    }
    try (Model model = TestModels.open("demo-small", options());
        Session session = model.newSession()) {
      float[][] base = session.logits(text);
      session.adapters(List.of(model.adapter(strong).scaled(0.5f), model.adapter(weak).scaled(-1)));
      float[][] actual = session.logits(text);
      double largest = 0;
      for (int r = 0; r < text.length; r++) {
        assertArrayEquals(expected[r], actual[r], 0.25f, "row " + r);
        for (int i = 0; i < base[r].length; i++) {
          largest = Math.max(largest, Math.abs(base[r][i] - actual[r][i]));
        }
      }
      assertTrue(largest > 2, "the adapters do something: " + largest);
      double[] score = session.score(text);
      session.adapters(List.of());
      assertFalse(Arrays.equals(score, session.score(text)));
    }
  }

  @Test
  void aPoolLetsGoOfAnAdapterWhenItIsTold() {
    try (Model model = TestModels.open("demo-small", options());
        SessionPool pool = new SessionPool(model, 3)) {
      Adapter a = model.adapter(strong);
      int[] prompt = model.tokenizer().encode(PROMPT);
      for (List<Adapter.Scaled> list : List.of(List.of(a.scaled(1)), List.<Adapter.Scaled>of())) {
        try (SessionPool.Lease lease = pool.lease(prompt, list)) {
          ids(lease.session());
          lease.keep();
        }
      }
      assertThrows(IllegalStateException.class, a::close);
      try (SessionPool.Lease lease = pool.lease(prompt, List.of(a.scaled(1)))) {
        // Whoever uses it is left alone.
        assertEquals(0, pool.evict(a));
        assertThrows(IllegalStateException.class, a::close);
        lease.keep();
      }
      assertEquals(2, pool.open());
      assertEquals(1, pool.evict(a));
      assertEquals(1, pool.open());
      a.close();
      assertEquals(0, pool.evict(a));
      assertThrows(IllegalStateException.class, () -> pool.lease(prompt, List.of(a.scaled(1))));
      assertEquals(2, pool.open());
    }
  }

  /** Whoever runs with whom, everybody gets what it gets alone, in shared passes. */
  @Test
  void sessionsWithDifferentAdaptersShareForwards() throws Exception {
    try (Model model = TestModels.open("demo-small", options())) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      Adapter a = model.adapter(strong);
      Adapter b = model.adapter(weak);
      List<List<Adapter.Scaled>> lists =
          List.of(
              List.of(),
              List.of(a.scaled(1)),
              List.of(b.scaled(1)),
              List.of(a.scaled(0.5f), b.scaled(2)),
              List.of(a.scaled(-1)),
              List.of());
      GenerationOptions long32 = GenerationOptions.defaults().withMaxTokens(32).withIgnoreEnd(true);
      List<List<Integer>> alone = new ArrayList<>();
      for (List<Adapter.Scaled> list : lists) {
        try (Session s = model.newSession()) {
          s.adapters(list);
          alone.add(s.generate(PROMPT, long32).result().ids());
        }
      }
      assertEquals(alone.get(0), alone.get(5));
      assertNotEquals(alone.get(0), alone.get(1));
      assertNotEquals(alone.get(1), alone.get(3));
      long before = loaded.scheduler().counts()[1];
      // Every forward waits for all sessions, however busy the machine is with other things.
      loaded.scheduler().changeQuorum(lists.size());
      try (ExecutorService threads = Executors.newFixedThreadPool(lists.size())) {
        List<Future<List<Integer>>> answers = new ArrayList<>();
        for (List<Adapter.Scaled> list : lists) {
          Callable<List<Integer>> task =
              () -> {
                try (Session s = model.newSession()) {
                  s.adapters(list);
                  return s.generate(PROMPT, long32).result().ids();
                } finally {
                  loaded.scheduler().changeQuorum(-1);
                }
              };
          answers.add(threads.submit(task));
        }
        for (int i = 0; i < lists.size(); i++) {
          assertEquals(alone.get(i), answers.get(i).get(), "session " + i);
        }
      }
      assertTrue(loaded.scheduler().counts()[1] > before, "passes are shared");
    }
  }

  @Test
  void prefixesAreSharedBetweenEqualListsOnly() {
    String prompt = "one two three four five six seven eight nine ten eleven twelve thirteen";
    try (Model model = TestModels.open("demo-small", options().withPrefixCache(16 << 20));
        Session first = model.newSession();
        Session second = model.newSession();
        Session third = model.newSession()) {
      Adapter a = model.adapter(strong);
      first.adapters(List.of(a.scaled(1)));
      second.adapters(List.of(a.scaled(1)));
      List<Integer> expected = first.generate(prompt, TEN).result().ids();
      var shared = second.generate(prompt, TEN).result();
      assertTrue(shared.reusedTokens() > 0, "the same adapters");
      assertEquals(expected, shared.ids());
      assertEquals(0, third.generate(prompt, TEN).result().reusedTokens(), "without");
      third.adapters(List.of(a.scaled(0.9f)));
      assertEquals(0, third.generate(prompt, TEN).result().reusedTokens(), "another scale");
      for (Session s : List.of(first, second, third)) {
        s.adapters(List.of());
      }
      a.close();
      Adapter again = model.adapter(strong);
      first.adapters(List.of(again.scaled(1)));
      var fresh = first.generate(prompt, TEN).result();
      assertEquals(0, fresh.reusedTokens(), "copies go with the adapter");
      assertEquals(expected, fresh.ids());
    }
  }

  @Test
  void forksAndSavedSessionsBelongToTheirAdapters() {
    Path saved = folder.resolve("session");
    try (Model model = TestModels.open("demo-small", options());
        Session session = model.newSession();
        Session other = model.newSession()) {
      Adapter a = model.adapter(strong);
      session.adapters(List.of(a.scaled(1)));
      List<Integer> expected = ids(session);
      session.save(saved);
      try (Session fork = session.fork()) {
        assertEquals(session.adapters(), fork.adapters());
        assertEquals(session.tokens(), fork.tokens());
        assertEquals(expected, ids(fork));
      }
      FletchException e = assertThrows(FletchException.class, () -> other.restore(saved));
      assertTrue(e.getMessage().contains("model and adapters: expected="), e.getMessage());
      other.adapters(List.of(a.scaled(2)));
      assertThrows(FletchException.class, () -> other.restore(saved));
      other.adapters(List.of(model.adapter(strong).scaled(1)));
      other.restore(saved);
      assertEquals(session.tokens(), other.tokens());
      assertEquals(expected, ids(other));
    }
  }

  @Test
  void handlesSayWhatTheyAreAndOutliveNobody() {
    Model model = TestModels.open("demo-small", options());
    Session session = model.newSession();
    Adapter a = model.adapter(strong);
    Adapter twin = model.adapter(strong);
    assertEquals("strong", a.name());
    assertEquals("strong-2", twin.name());
    assertEquals(List.of(0, 1), List.of(a.id(), twin.id()));
    assertEquals(8, a.rank());
    assertEquals(strong, a.path());
    assertTrue(a.targets().contains("blk.0.attn_q"), a.targets().toString());
    assertEquals(64, a.hash().length());
    assertEquals(a.hash(), twin.hash());
    assertTrue(a.bytes() > 0);
    assertEquals(List.of(a, twin), model.adapters());
    assertThrows(
        IllegalArgumentException.class, () -> session.adapters(List.of(a.scaled(1), a.scaled(2))));
    assertThrows(IllegalArgumentException.class, () -> a.scaled(Float.NaN));
    session.adapters(List.of(a.scaled(1)));
    assertThrows(IllegalStateException.class, a::close);
    twin.close();
    twin.close();
    assertEquals(List.of(a), model.adapters());
    assertThrows(IllegalStateException.class, () -> session.adapters(List.of(twin.scaled(1))));
    assertEquals(List.of(a.scaled(1)), session.adapters(), "the old list stays");
    var open = session.generate(PROMPT, TEN);
    assertThrows(IllegalStateException.class, () -> session.adapters(List.of()));
    open.close();
    assertThrows(FletchException.class, () -> model.adapter(TestModels.demo("demo-small")));
    assertThrows(FletchException.class, () -> model.adapter(TestModels.demo("demo")));
    try (Model larger = TestModels.open("demo", options());
        Session theirs = larger.newSession()) {
      FletchException shape = assertThrows(FletchException.class, () -> larger.adapter(strong));
      assertTrue(
          shape.getMessage().contains("expected=[") && shape.getMessage().contains("actual=["),
          shape.getMessage());
      IllegalArgumentException wrong =
          assertThrows(IllegalArgumentException.class, () -> theirs.adapters(List.of(a.scaled(1))));
      assertTrue(wrong.getMessage().contains("actual=one of model"), wrong.getMessage());
    }
    session.close();
    model.close();
    a.close();
  }

  @Test
  void unitsThatRestKnowNothingOfAdaptersOfASession() {
    ModelOptions skipping = options().withUnits(List.of(FfnSkip.of(1, 3, 0.99f)));
    try (Model model = TestModels.open("demo-small", skipping);
        Session session = model.newSession()) {
      Adapter a = model.adapter(strong);
      assertThrows(FletchException.class, () -> session.adapters(List.of(a.scaled(1))));
      session.adapters(List.of());
    }
  }

  @Test
  void diffusionSessionsTakeThemToo() {
    Path file =
        AdapterFiles.gguf(
            TestModels.demo("demo-diffusion"),
            folder.resolve("diffusion.gguf"),
            4,
            TensorType.F32,
            2,
            5);
    try (Model model = TestModels.open("demo-diffusion", options());
        Session session = model.newSession()) {
      String base = session.generate(PROMPT, TEN).result().text();
      float[][] logits = session.logits(new int[] {5, 6, 7});
      session.adapters(List.of(model.adapter(file).scaled(1)));
      assertNotEquals(base, session.generate(PROMPT, TEN).result().text());
      assertFalse(Arrays.equals(logits[1], session.logits(new int[] {5, 6, 7})[1]));
      session.adapters(List.of());
      assertEquals(base, session.generate(PROMPT, TEN).result().text());
      assertArrayEquals(logits[1], session.logits(new int[] {5, 6, 7})[1]);
    }
  }

  /** LLaDA's GGUF files have rows of queries and keys in pairs, its checkpoints in halves. */
  @Test
  void peftFoldersGoWithGgufModelsWhoseRowsAreTurned() throws IOException {
    Path checkpoint = TestModels.shared("diffusion");
    Path peft = Files.createDirectories(folder.resolve("peft"));
    Files.writeString(
        peft.resolve("adapter_config.json"), "{\"peft_type\":\"LORA\",\"lora_alpha\":4}");
    SplittableRandom random = new SplittableRandom(4);
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      for (String part : List.of("q_proj", "k_proj", "attn_out")) {
        String stem = "base_model.model.model.transformer.blocks.0." + part;
        int out = part.equals("k_proj") ? 128 : 256;
        writer.add(store.floats(stem + ".lora_A.weight", floats(random, 4 * 256), 4, 256));
        writer.add(store.floats(stem + ".lora_B.weight", floats(random, out * 4), out, 4));
      }
      writer.write(peft.resolve("adapter_model.safetensors"));
    }
    int[] ids = {5, 6, 7, 80, 12};
    List<float[][]> logits = new ArrayList<>();
    for (Path file : List.of(checkpoint, TestModels.shared("diffusion-F16.gguf"))) {
      for (boolean adapted : new boolean[] {true, false}) {
        try (Model model = Model.open(file, options());
            Session session = model.newSession()) {
          if (adapted) {
            session.adapters(List.of(model.adapter(peft).scaled(1)));
          }
          logits.add(session.logits(ids));
        }
      }
    }
    double error = 0;
    double plain = 0;
    double change = 0;
    for (int r = 0; r < ids.length; r++) {
      for (int i = 0; i < 1000; i++) {
        error = Math.max(error, Math.abs(logits.get(0)[r][i] - logits.get(2)[r][i]));
        plain = Math.max(plain, Math.abs(logits.get(1)[r][i] - logits.get(3)[r][i]));
        change = Math.max(change, Math.abs(logits.get(0)[r][i] - logits.get(1)[r][i]));
      }
    }
    assertTrue(error < Math.max(0.05, 10 * plain), "between formats: " + error + ", " + plain);
    assertTrue(change > 1, "the adapter does something: " + change);
  }

  private static float[] floats(SplittableRandom random, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextDouble() - 0.5f;
    }
    return x;
  }
}
