package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.Span;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Every family whose tiny model the runtime's tests compare with transformers, on the software GPU
 * and the reference, with random weights; Falcon, which has no checkpoint form, as GGUF.
 */
class CudaFamiliesTest {
  private static final Path TINY =
      Path.of("../runtime/src/test/resources/io/fletch/runtime/arch/tiny");
  private static final int ROWS = 9;

  @TempDir Path folder;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  static List<String> families() throws IOException {
    try (Stream<Path> files = Files.list(TINY)) {
      return files.map(f -> f.getFileName().toString().replace(".json", "")).sorted().toList();
    }
  }

  /** Writes configuration and random weights; the result is what to open. */
  static Path write(Path folder, String name) throws IOException {
    Map<String, Object> all = JSON.std.mapFrom(TINY.resolve(name + ".json").toFile());
    if (name.startsWith("falcon")) {
      return falcon(folder, (Map<?, ?>) all.get("config"));
    }
    checkpoint(folder, all);
    return folder;
  }

  private static int number(Map<?, ?> config, String key) {
    return ((Number) config.get(key)).intValue();
  }

  /** The new decoder has a norm for each unit, the old one a single one, and one key head. */
  private static Path falcon(Path folder, Map<?, ?> c) {
    boolean isNew = Boolean.TRUE.equals(c.get("new_decoder_architecture"));
    int width = number(c, "hidden_size");
    int heads = number(c, "num_attention_heads");
    int kv = isNew ? number(c, "num_kv_heads") : 1;
    int layers = number(c, "num_hidden_layers");
    Path file = folder.resolve("falcon.gguf");
    try (TensorStore store = TensorStore.create()) {
      GgufWriter out =
          new GgufWriter()
              .put("general.architecture", "falcon")
              .put("falcon.block_count", layers)
              .put("falcon.context_length", 256)
              .put("falcon.embedding_length", width)
              .put("falcon.feed_forward_length", 4 * width)
              .put("falcon.attention.head_count", heads)
              .put("falcon.attention.head_count_kv", kv)
              .put("falcon.attention.layer_norm_epsilon", 1e-5f);
      SplittableRandom random = new SplittableRandom(11);
      out.add(random(store, random, "token_embd.weight", number(c, "vocab_size"), width));
      for (int i = 0; i < layers; i++) {
        String p = "blk." + i + ".";
        for (String norm : isNew ? List.of("attn_norm", "attn_norm_2") : List.of("attn_norm")) {
          out.add(random(store, random, p + norm + ".weight", width));
          out.add(random(store, random, p + norm + ".bias", width));
        }
        int rows = width / heads * (heads + 2 * kv);
        out.add(random(store, random, p + "attn_qkv.weight", rows, width));
        out.add(random(store, random, p + "attn_output.weight", width, width));
        out.add(random(store, random, p + "ffn_up.weight", 4 * width, width));
        out.add(random(store, random, p + "ffn_down.weight", width, 4 * width));
      }
      out.add(random(store, random, "output_norm.weight", width));
      out.add(random(store, random, "output_norm.bias", width));
      out.write(file);
    }
    return file;
  }

  private static Tensor random(
      TensorStore store, SplittableRandom random, String name, long... shape) {
    Tensor t = store.allocate(name, TensorType.F32, shape);
    boolean norm = name.endsWith("norm.weight") || name.endsWith("norm_2.weight");
    for (long i = 0; i < t.elements(); i++) {
      float v = (float) ((norm ? 1 : 0) + 0.3 * (2 * random.nextDouble() - 1));
      t.segment().setAtIndex(ValueLayout.JAVA_FLOAT, i, v);
    }
    return t;
  }

  private static void checkpoint(Path folder, Map<String, Object> all) throws IOException {
    Files.writeString(folder.resolve("config.json"), JSON.std.asString(all.get("config")));
    Map<String, Object> header = new LinkedHashMap<>();
    long at = 0;
    for (Object entry : (List<?>) all.get("tensors")) {
      Map<?, ?> t = (Map<?, ?>) entry;
      List<?> shape = (List<?>) t.get("shape");
      long n = shape.stream().mapToLong(d -> ((Number) d).longValue()).reduce(1, (a, b) -> a * b);
      header.put(
          (String) t.get("name"),
          Map.of("dtype", "F32", "shape", shape, "data_offsets", List.of(at, at + 4 * n)));
      at += 4 * n;
    }
    byte[] text = JSON.std.asString(header).getBytes(StandardCharsets.UTF_8);
    ByteBuffer out =
        ByteBuffer.allocate(Math.toIntExact(8 + text.length + at)).order(ByteOrder.LITTLE_ENDIAN);
    out.putLong(text.length).put(text);
    SplittableRandom random = new SplittableRandom(11);
    for (Object entry : (List<?>) all.get("tensors")) {
      Map<?, ?> t = (Map<?, ?>) entry;
      double scale = ((Number) t.get("scale")).doubleValue();
      double offset = ((Number) t.get("offset")).doubleValue();
      Map<?, ?> place = (Map<?, ?>) header.get((String) t.get("name"));
      List<?> range = (List<?>) place.get("data_offsets");
      for (long i = (Long) range.get(0); i < (Long) range.get(1); i += 4) {
        out.putFloat((float) (offset + scale * (2 * random.nextDouble() - 1)));
      }
    }
    try (FileChannel to =
        FileChannel.open(
            folder.resolve("model.safetensors"),
            StandardOpenOption.CREATE,
            StandardOpenOption.WRITE)) {
      out.flip();
      while (out.hasRemaining()) {
        to.write(out);
      }
    }
  }

  @ParameterizedTest
  @MethodSource("families")
  void logitsAreThoseOfTheReference(String name) throws IOException {
    SoftGpu gpu = SoftGpu.reset().workers(2);
    try (WeightFile file = WeightFile.open(write(folder, name));
        TensorStore derived = TensorStore.create()) {
      HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
      WeightTensors weights =
          WeightTensors.of(file.format(), file.tensors(), declared.architecture(), derived);
      HyperParameters hp = weights.fit(declared);
      boolean isHidden = hp.encoder().isPresent() || name.endsWith("-embedding");
      Graph graph =
          isHidden
              ? ModelGraph.buildHidden(hp, weights, 64, name)
              : ModelGraph.build(hp, weights, 64, name);
      Backend cuda = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
      float[][] expected = run(new ReferenceBackend(), graph, declared);
      compare(expected, run(cuda, graph, declared));
      for (int layers = 1; layers < graph.kvLayers().size(); layers++) {
        Backend reference = new ReferenceBackend();
        float[][] split = run(new SplitBackend(reference, reference, layers), graph, declared);
        assertArrayEquals(expected, split, "cut before layer " + layers);
      }
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  /** All rows together, then the last one alone again, which must give the same bits. */
  static float[][] run(Backend backend, Graph graph, HyperParameters hp) {
    int[] tokens = new SplittableRandom(3).ints(ROWS, 0, graph.vocabulary()).toArray();
    try (Executable e = backend.compile(graph, ROWS);
        KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch batch = e.newBatch(ROWS, ROWS)) {
      int block = hp.diffusionBlock();
      Span.Own own =
          block > 0
              ? Span.Own.BLOCK_CAUSAL
              : hp.causal() ? Span.Own.CAUSAL : Span.Own.BIDIRECTIONAL;
      batch.add(new Span(kv, ROWS, 0, 0, 0, 0, 0, own, block), tokens, 0);
      for (int r = 0; r < ROWS; r++) {
        batch.wantLogits(r);
      }
      e.forward(batch);
      float[][] logits = new float[ROWS][graph.logits().width()];
      for (int r = 0; r < ROWS; r++) {
        batch.logits(r, logits[r]);
      }
      if (own == Span.Own.CAUSAL) {
        kv.length(ROWS - 1);
        batch.clear();
        batch.append(kv, tokens, ROWS - 1, 1);
        batch.wantLogits(0);
        e.forward(batch);
        float[] alone = new float[graph.logits().width()];
        batch.logits(0, alone);
        assertArrayEquals(logits[ROWS - 1], alone, backend.name() + ": the row alone");
      }
      return logits;
    }
  }

  static void compare(float[][] expected, float[][] actual) {
    for (int r = 0; r < expected.length; r++) {
      double error = 0;
      double size = 0;
      for (int i = 0; i < expected[r].length; i++) {
        error = Math.max(error, Math.abs(expected[r][i] - actual[r][i]));
        size = Math.max(size, Math.abs(expected[r][i]));
      }
      assertTrue(error <= 1e-4 * size, "row " + r + ": error=" + error + " of size=" + size);
    }
  }
}
