package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.EmbedderOptions.Overlong;
import io.fletch.FletchException;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Pooling;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.TinyWeights;
import io.fletch.runtime.convert.ModelConversion;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Whole embedding models against sentence-transformers ({@code
 * runtime/src/test/python/tiny_embedders.py}): as a folder, and as the GGUF file that the package
 * gguf wrote.
 */
class EmbedderTest {
  private static final Path MODELS =
      Path.of("src/test/resources/io/fletch/runtime/engine/embedders");

  /** Most tokens of a text, from sentence_bert_config.json. */
  private static final int TOKENS = 40;

  @TempDir Path temp;

  private record Case(String text, int[] ids, float[] vector, float[][] states) {}

  private static List<Case> cases(String name) throws IOException {
    List<Case> all = new ArrayList<>();
    for (Object entry : list(MODELS.resolve(name + "/expected.json"))) {
      Map<?, ?> c = (Map<?, ?>) entry;
      List<?> states = (List<?>) c.get("states");
      all.add(
          new Case(
              (String) c.get("text"),
              TestModels.ints(c.get("ids")),
              floats(c.get("vector")),
              states == null
                  ? null
                  : states.stream().map(EmbedderTest::floats).toArray(float[][]::new)));
    }
    return all;
  }

  private static List<Object> list(Path file) throws IOException {
    return JSON.std.listFrom(Files.readAllBytes(file));
  }

  private static float[] floats(Object list) {
    List<?> values = (List<?>) list;
    float[] out = new float[values.size()];
    for (int i = 0; i < out.length; i++) {
      out[i] = ((Number) values.get(i)).floatValue();
    }
    return out;
  }

  /** Copies a folder, with the weights that it describes as a checkpoint. */
  private Path folder(String name) throws IOException {
    Path to = temp.resolve(name);
    Path from = MODELS.resolve(name);
    try (Stream<Path> files = Files.walk(from)) {
      for (Path file : files.toList()) {
        Path target = to.resolve(from.relativize(file).toString());
        if (Files.isDirectory(file)) {
          Files.createDirectories(target);
        } else {
          Files.copy(file, target);
        }
      }
    }
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      for (Object entry : list(from.resolve("weights.json"))) {
        Map<?, ?> t = (Map<?, ?>) entry;
        String tensor = (String) t.get("name");
        long[] shape = Arrays.stream(TestModels.ints(t.get("shape"))).asLongStream().toArray();
        float[] values =
            TinyWeights.values(
                tensor,
                shape,
                ((Number) t.get("scale")).doubleValue(),
                ((Number) t.get("offset")).doubleValue());
        writer.add(store.floats(tensor, values, shape));
      }
      writer.write(to.resolve("model.safetensors"));
    }
    return to;
  }

  private static Path gguf(String name) {
    return MODELS.resolve(name + ".gguf");
  }

  private static EmbedderOptions options(ModelOptions.Backend backend) {
    return EmbedderOptions.defaults()
        .withModel(
            EmbedderOptions.defaults()
                .model()
                .withBackend(backend)
                .withThreads(2)
                .withPackCache(ModelOptions.PackCache.off()))
        .withMaxTokens(TOKENS)
        .withOverlong(Overlong.TRUNCATE);
  }

  private static EmbedderOptions cpu() {
    return options(ModelOptions.Backend.CPU);
  }

  private static void assertClose(float[] expected, float[] actual, double bound, String what) {
    assertEquals(expected.length, actual.length, what);
    double error = 0;
    double size = 0;
    for (int i = 0; i < expected.length; i++) {
      error = Math.max(error, Math.abs(expected[i] - actual[i]));
      size = Math.max(size, Math.abs(expected[i]));
    }
    assertTrue(error <= bound * size, what + ": error=" + error + " of size=" + size);
  }

  static Stream<Arguments> models() {
    return Stream.of("bert", "nomic-bert", "qwen3")
        .flatMap(name ->
            Stream.of(true, false)
                .flatMap(gguf ->
                    Stream.of(
                        Arguments.of(name, gguf, "reference"),
                        Arguments.of(name, gguf, "scalar"),
                        Arguments.of(name, gguf, "vector"),
                        Arguments.of(name, gguf, "native"))));
  }

  @ParameterizedTest
  @MethodSource("models")
  void vectorsAreThoseOfSentenceTransformers(String name, boolean fromGguf, String how)
      throws IOException {
    EmbedderOptions options =
        how.equals("reference")
            ? options(ModelOptions.Backend.REFERENCE)
            : cpu()
                .withModel(
                    cpu()
                        .model()
                        .withKernels(
                            ModelOptions.Kernels.valueOf(how.toUpperCase(java.util.Locale.ROOT))));
    try (Embedder e = Embedder.open(fromGguf ? gguf(name) : folder(name), options)) {
      assertEquals(name, e.info().architecture());
      assertEquals(32, e.info().dimensions());
      assertEquals(TOKENS, e.info().maxTokens());
      assertEquals(
          switch (name) {
            case "bert" -> Pooling.CLS;
            case "nomic-bert" -> Pooling.MEAN;
            default -> Pooling.LAST;
          },
          e.info().pooling());
      List<Case> cases = cases(name);
      assertEquals(10, cases.size());
      List<float[]> together = e.embed(cases.stream().map(Case::text).toList());
      for (int i = 0; i < cases.size(); i++) {
        Case c = cases.get(i);
        assertArrayEquals(c.ids(), e.tokens(c.text()), c.text());
        assertClose(c.vector(), together.get(i), 1e-4, c.text());
        assertArrayEquals(together.get(i), e.embed(c.text()), "alone: " + c.text());
        double squares = 0;
        for (float x : together.get(i)) {
          squares += x * x;
        }
        assertEquals(1, squares, 1e-6);
      }
    }
    EmbedderOptions raw = options.withNormalize(false);
    try (Embedder e = Embedder.open(fromGguf ? gguf(name) : temp.resolve(name), raw)) {
      int compared = 0;
      for (Case c : cases(name)) {
        if (c.states() != null) {
          float[][] states = e.tokenVectors(c.text());
          assertEquals(c.states().length, states.length);
          for (int t = 0; t < states.length; t++) {
            assertClose(c.states()[t], states[t], 1e-4, c.text() + " token " + t);
            compared++;
          }
        }
      }
      assertTrue(compared >= 10, "tokens compared=" + compared);
    }
  }

  /** Weights and caches of fewer bits give nearly the same. */
  @ParameterizedTest
  @ValueSource(strings = {"bert", "nomic-bert", "qwen3"})
  void roundedCachesGiveNearlyTheSame(String name) throws IOException {
    EmbedderOptions rounded = cpu().withModel(cpu().model().withKvType(ModelOptions.KvType.F16));
    try (Embedder e = Embedder.open(gguf(name), rounded)) {
      for (Case c : cases(name)) {
        assertTrue(Embedder.similarity(c.vector(), e.embed(c.text())) > 0.9999, c.text());
      }
    }
  }

  /** Texts in many orders and batches, cut into forwards of different sizes: always the same. */
  @ParameterizedTest
  @CsvSource({"bert,256", "nomic-bert,256", "qwen3,256", "qwen3,16", "qwen3,7"})
  void aVectorDoesNotDependOnWhatRunsBesideIt(String name, int chunk) throws IOException {
    Random random = new Random(5);
    List<String> texts = new ArrayList<>();
    List<String> words = List.of("fox", "embedding", "Stra\u00dfe", "4.5", "\u4eba\u5de5", "the");
    for (int i = 0; i < 60; i++) {
      StringBuilder text = new StringBuilder();
      for (int n = 1 + random.nextInt(12); n > 0; n--) {
        text.append(words.get(random.nextInt(words.size()))).append(' ');
      }
      texts.add(text.toString());
    }
    EmbedderOptions options = cpu().withModel(cpu().model().withPrefillChunk(chunk));
    List<float[]> alone = new ArrayList<>();
    try (Embedder e = Embedder.open(gguf(name), cpu().withModel(cpu().model().withThreads(1)))) {
      texts.forEach(t -> alone.add(e.embed(t)));
    }
    try (Embedder e = Embedder.open(gguf(name), options)) {
      List<float[]> together = e.embed(texts);
      for (int i = 0; i < texts.size(); i++) {
        assertArrayEquals(alone.get(i), together.get(i), texts.get(i));
      }
      try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
        List<Callable<Boolean>> tasks = new ArrayList<>();
        for (int t = 0; t < 24; t++) {
          int seed = t;
          tasks.add(() -> {
            Random own = new Random(seed);
            for (int round = 0; round < 5; round++) {
              int from = own.nextInt(texts.size());
              int to = Math.min(texts.size(), from + 1 + own.nextInt(9));
              List<float[]> some = e.embed(texts.subList(from, to));
              for (int i = from; i < to; i++) {
                assertArrayEquals(alone.get(i), some.get(i - from), texts.get(i));
              }
            }
            return true;
          });
        }
        for (Future<Boolean> f : threads.invokeAll(tasks)) {
          assertTrue(f.get());
        }
      } catch (InterruptedException | java.util.concurrent.ExecutionException x) {
        throw new AssertionError(x);
      }
    }
  }

  @Test
  void longTextsAreAnErrorOrCut() throws IOException {
    String text = "tokenization ".repeat(30);
    try (Embedder e = Embedder.open(gguf("bert"), cpu().withOverlong(Overlong.ERROR))) {
      FletchException x = assertThrows(FletchException.class, () -> e.embed(text));
      assertTrue(x.getMessage().contains("expected=[1, 40]"), x.getMessage());
      assertEquals(7, e.tokens("hello, world").length);
    }
    try (Embedder e = Embedder.open(gguf("bert"), cpu().withMaxTokens(9))) {
      int[] ids = e.tokens(text);
      assertEquals(9, ids.length);
      assertEquals(2, ids[0]);
      assertEquals(3, ids[8]);
      assertArrayEquals(e.embed(text), e.embedTokens(List.of(ids)).getFirst());
      assertThrows(
          FletchException.class,
          () -> e.embedTokens(List.of(new int[] {2, 5, 5, 5, 5, 5, 5, 5, 5, 3})));
    }
    // No more than the positions that the model has, whatever is asked for.
    try (Embedder e = Embedder.open(gguf("bert"), cpu().withMaxTokens(1000))) {
      assertEquals(64, e.info().maxTokens());
      assertEquals(64, e.tokens(text + text).length);
      e.embed(text + text);
    }
    assertThrows(FletchException.class, () -> Embedder.open(gguf("bert"), cpu().withMaxTokens(2)));
  }

  @Test
  void dimensionsAndPoolingsCanBeChosen() throws IOException {
    float[] whole;
    try (Embedder e = Embedder.open(gguf("bert"), cpu())) {
      whole = e.embed("the fox");
    }
    try (Embedder e = Embedder.open(gguf("bert"), cpu().withDimensions(8))) {
      assertEquals(8, e.info().dimensions());
      float[] first = e.embed("the fox");
      assertClose(Embedder.shortened(whole, 8), first, 1e-6, "dimensions");
      assertEquals(8, e.tokenVectors("the fox")[0].length);
    }
    EmbedderOptions raw = cpu().withNormalize(false);
    float[][] states;
    try (Embedder e = Embedder.open(gguf("bert"), raw.withPooling(Pooling.NONE))) {
      states = e.tokenVectors("the fox");
      FletchException x = assertThrows(FletchException.class, () -> e.embed("the fox"));
      assertTrue(x.getMessage().contains("NONE"), x.getMessage());
    }
    float[] mean = new float[32];
    for (int i = 0; i < 32; i++) {
      double sum = 0;
      for (float[] state : states) {
        sum += state[i];
      }
      mean[i] = (float) (sum / states.length);
    }
    Map<Pooling, float[]> expected =
        Map.of(Pooling.MEAN, mean, Pooling.CLS, states[0], Pooling.LAST, states[states.length - 1]);
    for (Map.Entry<Pooling, float[]> p : expected.entrySet()) {
      try (Embedder e = Embedder.open(gguf("bert"), raw.withPooling(p.getKey()))) {
        assertArrayEquals(p.getValue(), e.embed("the fox"), p.getKey().name());
      }
    }
    FletchException x =
        assertThrows(
            FletchException.class, () -> Embedder.open(gguf("bert"), cpu().withDimensions(33)));
    assertTrue(x.getMessage().contains("[1, 32]"), x.getMessage());
  }

  @Test
  void anyAutoregressiveModelGivesItsLastStates() {
    try (Embedder e = Embedder.open(TestModels.demo("demo-small"), cpu())) {
      assertEquals(Pooling.LAST, e.info().pooling());
      assertTrue(e.info().causal());
      float[] a = e.embed("What is 3 + 4?");
      assertEquals(e.info().embeddingLength(), a.length);
      assertArrayEquals(a, e.embed(List.of("x", "What is 3 + 4?")).get(1));
    }
    FletchException x =
        assertThrows(
            FletchException.class, () -> Embedder.open(TestModels.demo("demo-diffusion"), cpu()));
    assertTrue(x.getMessage().contains("diffusion"), x.getMessage());
  }

  @Test
  void modelsOfOneKindAreNotOpenedAsTheOther() throws IOException {
    for (String name : List.of("bert", "nomic-bert", "qwen3")) {
      assertTrue(Embedder.isEmbeddingModel(gguf(name)), name);
      assertTrue(Embedder.isEmbeddingModel(folder(name)), name);
      FletchException x = assertThrows(FletchException.class, () -> Model.open(gguf(name)));
      assertTrue(x.getMessage().contains("Embedder.open"), x.getMessage());
    }
    assertFalse(Embedder.isEmbeddingModel(TestModels.demo("demo-small")));
  }

  @Test
  void namesOfWholeCheckpointsAreUnderstood() throws IOException {
    Path folder = folder("bert");
    float[] expected;
    try (Embedder e = Embedder.open(folder, cpu())) {
      expected = e.embed("the fox");
    }
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      for (Object entry : list(folder.resolve("weights.json"))) {
        Map<?, ?> t = (Map<?, ?>) entry;
        String tensor = (String) t.get("name");
        long[] shape = Arrays.stream(TestModels.ints(t.get("shape"))).asLongStream().toArray();
        double scale = ((Number) t.get("scale")).doubleValue();
        double offset = ((Number) t.get("offset")).doubleValue();
        float[] values = TinyWeights.values(tensor, shape, scale, offset);
        writer.add(store.floats("bert." + tensor, values, shape));
      }
      writer.add(store.floats("cls.predictions.bias", new float[4], 4));
      writer.write(folder.resolve("model.safetensors"));
    }
    try (Embedder e = Embedder.open(folder, cpu())) {
      assertArrayEquals(expected, e.embed("the fox"));
    }
  }

  /** The names that the configuration of Nomic's own code has. */
  @Test
  void nomicsOwnConfigurationIsTheSameModel() throws IOException {
    Path folder = folder("nomic-bert");
    float[] expected;
    try (Embedder e = Embedder.open(folder, cpu())) {
      expected = e.embed("the fox");
    }
    String config =
        """
        {"model_type": "nomic_bert", "n_embd": 32, "n_head": 4, "n_layer": 3, "n_inner": 48,
         "n_positions": 64, "activation_function": "swiglu", "causal": false, "prenorm": false,
         "parallel_block": false, "use_rms_norm": false, "rotary_emb_base": 1000,
         "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
         "rotary_emb_scale_base": null, "rotary_scaling_factor": null,
         "layer_norm_epsilon": 1e-12, "vocab_size": 560, "max_trained_positions": 48}
        """;
    Files.writeString(folder.resolve("config.json"), config);
    try (Embedder e = Embedder.open(folder, cpu().withMaxTokens(64))) {
      assertArrayEquals(expected, e.embed("the fox"));
      assertEquals(64, e.info().maxTokens());
    }
    Files.writeString(
        folder.resolve("config.json"),
        config.replace("\"rotary_scaling_factor\": null", "\"rotary_scaling_factor\": 2"));
    try (Embedder e = Embedder.open(folder, cpu().withMaxTokens(64))) {
      assertArrayEquals(expected, e.embed("the fox"));
      assertEquals(48, e.info().maxTokens());
    }
    for (String change :
        List.of("\"prenorm\": true", "\"use_rms_norm\": true", "\"causal\": true")) {
      String key = change.substring(0, change.indexOf(':'));
      Files.writeString(folder.resolve("config.json"), config.replace(key + ": false", change));
      FletchException x = assertThrows(FletchException.class, () -> Embedder.open(folder, cpu()));
      assertTrue(x.getMessage().contains(key.replace("\"", "")), x.getMessage());
    }
  }

  @Test
  void settingsThatWouldChangeTheVectorsAreRefused() throws IOException {
    Path folder = folder("bert");
    Path pooling = folder.resolve("1_Pooling/config.json");
    String modules = Files.readString(folder.resolve("modules.json"));
    Files.writeString(pooling, "{\"pooling_mode_max_tokens\": true}");
    refused(folder, "max");
    Files.writeString(
        pooling, "{\"pooling_mode_mean_tokens\": true, \"pooling_mode_cls_token\": true}");
    refused(folder, "expected=one mode");
    Files.writeString(pooling, "[1");
    refused(folder, "not a JSON");
    Files.writeString(pooling, "{\"pooling_mode\": \"mean\"}");
    try (Embedder e = Embedder.open(folder, cpu())) {
      assertEquals(Pooling.MEAN, e.info().pooling());
    }
    Files.writeString(folder.resolve("modules.json"), modules.replace("Normalize\"", "Dense\""));
    refused(folder, "Dense");
    Files.writeString(
        folder.resolve("modules.json"), modules.replace("1_Pooling", "../../1_Pooling"));
    refused(folder, "outside");
  }

  /** A folder converted to GGUF is the same model: ids, pooling, vectors. */
  @ParameterizedTest
  @ValueSource(strings = {"bert", "nomic-bert", "qwen3"})
  void convertedFoldersGiveTheSameVectors(String name) throws IOException {
    Path folder = folder(name);
    Path target = temp.resolve("converted.gguf");
    try (WeightFile file = WeightFile.open(folder);
        TensorStore derived = TensorStore.create()) {
      ModelConversion.Gguf gguf = ModelConversion.toGguf(file, derived);
      GgufWriter writer = gguf.metadata();
      for (TensorCopy t : gguf.tensors()) {
        TensorType type = ModelConversion.defaultType(t, WeightFile.Format.GGUF);
        writer.add(t.name(), type, t.shape(), t.as(type, null));
      }
      writer.write(target);
    }
    try (Embedder from = Embedder.open(folder, cpu());
        Embedder to = Embedder.open(target, cpu())) {
      assertEquals(from.info().pooling(), to.info().pooling());
      for (Case c : cases(name)) {
        assertArrayEquals(c.ids(), to.tokens(c.text()), c.text());
        assertArrayEquals(from.embed(c.text()), to.embed(c.text()), c.text());
      }
    }
    try (WeightFile file = WeightFile.open(target)) {
      FletchException x =
          assertThrows(FletchException.class, () -> ModelConversion.toSafetensors(file));
      assertTrue(x.getMessage().contains("conversion between GGUF"), x.getMessage());
    }
    if (name.equals("bert")) {
      String json = Files.readString(folder.resolve("tokenizer.json"));
      Files.writeString(
          folder.resolve("tokenizer.json"),
          json.replaceFirst("\"lowercase\": ?true", "\"lowercase\": false"));
      try (WeightFile file = WeightFile.open(folder);
          TensorStore derived = TensorStore.create()) {
        FletchException x =
            assertThrows(FletchException.class, () -> ModelConversion.toGguf(file, derived));
        assertTrue(x.getMessage().contains("capital letters"), x.getMessage());
      }
    }
  }

  /** Tensors of other shapes than the configuration says. */
  @Test
  void tensorsThatDoNotFitAreNamed() throws IOException {
    Path folder = folder("bert");
    String config = Files.readString(folder.resolve("config.json"));
    Files.writeString(
        folder.resolve("config.json"),
        config.replace("\"max_position_embeddings\": 64", "\"max_position_embeddings\": 128"));
    refused(folder, "position_embeddings.weight: shape expected=[128, 32] actual=[64, 32]");
    Files.writeString(
        folder.resolve("config.json"),
        config.replace("\"model_type\": \"bert\"", "\"model_type\": \"roberta\""));
    refused(folder, "roberta");
    Files.writeString(
        folder.resolve("config.json"),
        config.replace("\"is_decoder\": false", "\"is_decoder\": true"));
    refused(folder, "is_decoder");
    Files.writeString(
        folder.resolve("config.json"),
        config.replace("{", "{\"position_embedding_type\": \"relative_key\","));
    refused(folder, "relative_key");
    Files.writeString(
        folder.resolve("config.json"), config.replace("\"vocab_size\": 560", "\"vocab_size\": 9"));
    refused(folder, "word_embeddings.weight");
  }

  private static void refused(Path folder, String part) {
    FletchException x = assertThrows(FletchException.class, () -> Embedder.open(folder, cpu()));
    assertTrue(x.getMessage().contains(part), x.getMessage());
  }

  @Test
  void badArgumentsAndClose() throws Exception {
    Embedder e = Embedder.open(gguf("qwen3"), cpu());
    assertThrows(FletchException.class, () -> e.embedTokens(List.of(new int[] {560})));
    assertThrows(FletchException.class, () -> e.embedTokens(List.of(new int[] {-1})));
    assertThrows(FletchException.class, () -> e.embedTokens(List.of(new int[0])));
    assertThrows(NullPointerException.class, () -> e.embed((String) null));
    assertTrue(e.embed(List.of()).isEmpty());
    // Calls that have begun finish, later ones are refused.
    List<Exception> ends = Collections.synchronizedList(new ArrayList<>());
    AtomicInteger done = new AtomicInteger();
    List<Thread> threads = new ArrayList<>();
    for (int t = 0; t < 8; t++) {
      threads.add(
          Thread.ofVirtual()
              .start(() -> {
                try {
                  while (true) {
                    e.embed(List.of("a b c", "the quick brown fox", "x"));
                    done.incrementAndGet();
                  }
                } catch (Exception x) {
                  ends.add(x);
                }
              }));
    }
    while (done.get() < 50) {
      Thread.onSpinWait();
    }
    e.close();
    e.close();
    for (Thread t : threads) {
      t.join();
    }
    assertEquals(8, ends.size());
    for (Exception x : ends) {
      if (!(x instanceof IllegalStateException)) {
        throw new AssertionError("a call ended otherwise", x);
      }
    }
    assertThrows(IllegalStateException.class, () -> e.embed("x"));
  }

  @Test
  void similarity() {
    assertEquals(1, Embedder.similarity(new float[] {1, 2}, new float[] {2, 4}), 1e-12);
    assertEquals(0, Embedder.similarity(new float[] {1, 0}, new float[] {0, 4}), 1e-12);
    assertEquals(0, Embedder.similarity(new float[2], new float[] {2, 4}));
    assertThrows(
        IllegalArgumentException.class, () -> Embedder.similarity(new float[2], new float[3]));
    assertThrows(IllegalArgumentException.class, () -> Embedder.shortened(new float[2], 3));
    assertArrayEquals(new float[] {0.6f, 0.8f}, Embedder.shortened(new float[] {3, 4, 5}, 2));
  }
}
