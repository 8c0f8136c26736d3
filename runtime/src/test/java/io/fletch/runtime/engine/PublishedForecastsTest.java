package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.UnitForecasts;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.StandIn;
import io.fletch.graph.StandInPass;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.MapMetadata;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.TinyModel;
import io.fletch.runtime.arch.TinyWeights;
import io.fletch.runtime.arch.WeightTensors;
import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Published shapes against PyTorch: runtime/src/test/python/tiny_forecasts.py. */
class PublishedForecastsTest {
  private static final int UNITS = 5;

  @TempDir static Path folder;
  private static Map<String, Object> oracle;

  /** A tensor of a file. */
  private record Part(long[] shape, float[] values) {}

  @BeforeAll
  static void read() throws IOException {
    try (InputStream in = PublishedForecastsTest.class.getResourceAsStream("forecasts.json")) {
      oracle = JSON.std.mapFrom(in.readAllBytes());
    }
  }

  private static Map<String, Part> parts() {
    Map<String, Part> parts = new LinkedHashMap<>();
    for (Object entry : (List<?>) oracle.get("tensors")) {
      Map<?, ?> t = (Map<?, ?>) entry;
      String name = (String) t.get("name");
      long[] shape =
          ((List<?>) t.get("shape")).stream().mapToLong(d -> ((Number) d).longValue()).toArray();
      double scale = ((Number) t.get("scale")).doubleValue();
      parts.put(name, new Part(shape, TinyWeights.values(name, shape, scale, 0)));
    }
    return parts;
  }

  private static Path write(
      String name, TensorType type, Map<String, String> metadata, Map<String, Part> parts) {
    Path path = folder.resolve(name + ".safetensors");
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      metadata.forEach(writer::put);
      parts.forEach((tensor, p) -> writer.add(tensor(store, tensor, type, p)));
      writer.write(path);
    }
    return path;
  }

  private static Tensor tensor(TensorStore store, String name, TensorType type, Part p) {
    if (type == TensorType.F32) {
      return store.floats(name, p.values(), p.shape());
    }
    Tensor t = store.allocate(name, type, p.shape());
    for (int i = 0; i < p.values().length; i++) {
      short half =
          type == TensorType.F16
              ? Float.floatToFloat16(p.values()[i])
              : (short) (Float.floatToRawIntBits(p.values()[i]) + 0x8000 >>> 16);
      t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, half);
    }
    return t;
  }

  private static List<StandIn> read(Path path, WeightFile file) {
    return PublishedForecasts.read(path, file, "this");
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 1, 2})
  void logitsAreThoseOfPyTorch(int number) throws IOException {
    Map<?, ?> oneCase = (Map<?, ?>) ((List<?>) oracle.get("cases")).get(number);
    Map<String, String> metadata =
        Map.of(
            "activation", (String) oneCase.get("activation"),
            "router_input", (String) oneCase.get("router_input"),
            "model", "this");
    TinyModel tiny = TinyModel.read("llama");
    for (TensorType type : List.of(TensorType.F32, TensorType.F16, TensorType.BF16)) {
      Path path = write("case" + number + type, type, metadata, parts());
      try (TensorStore store = TensorStore.create();
          WeightFile file = WeightFile.open(path)) {
        HyperParameters declared =
            HyperParameters.read(WeightFile.Format.SAFETENSORS, MapMetadata.of(tiny.config()));
        WeightTensors weights =
            WeightTensors.of(
                WeightFile.Format.SAFETENSORS, tiny.tensors(store), declared.architecture(), store);
        Graph plain = ModelGraph.build(weights.fit(declared), weights, 64, "tiny");
        List<StandIn> standIns = read(path, file);
        assertEquals(UNITS, standIns.size());
        Graph graph = StandInPass.apply(plain, standIns);
        double bound =
            switch (type) {
              case F32 -> 1e-4;
              case F16 -> 4e-3;
              default -> 4e-2;
            };
        for (Backend backend :
            List.<Backend>of(
                new ReferenceBackend(),
                new CpuBackend(CpuBackend.Options.defaults().withThreads(2)))) {
          try (Executable e = backend.compile(graph, tiny.ids().length)) {
            compare(backend.name() + " " + type, e, tiny.ids(), oneCase, bound);
          }
        }
      }
    }
  }

  private static void compare(
      String what, Executable e, int[] ids, Map<?, ?> oneCase, double bound) {
    int n = ids.length;
    float[] row = new float[e.graph().vocabulary()];
    try (KvCache kv = e.newKvCache(n, KvCache.Type.F32);
        Batch batch = e.newBatch(n, n)) {
      batch.append(kv, ids, 0, n);
      for (int r = 0; r < n; r++) {
        batch.wantLogits(r);
        batch.routeUnits(r, 0, Gate.SUBSTITUTE);
      }
      e.forward(batch);
      int approximated = 0;
      for (int r = 0; r < n; r++) {
        for (int u = 0; u < UNITS; u++) {
          // All units in order, but the last layer's attention.
          int layer = u / 2;
          Gate.Unit unit = u % 2 == 1 || layer == 2 ? Gate.Unit.FFN : Gate.Unit.ATTENTION;
          int expected =
              ((Number) ((List<?>) ((List<?>) oneCase.get("routed")).get(u)).get(r)).intValue();
          boolean actual = batch.decided(layer, unit, r) == Gate.SUBSTITUTE;
          assertEquals(expected == 1, actual, what + " unit " + u + " row " + r);
          approximated += expected;
        }
        batch.logits(r, row);
        List<?> expected = (List<?>) ((List<?>) oneCase.get("logits")).get(r);
        double error = 0;
        double size = 0;
        for (int i = 0; i < row.length; i++) {
          double v = ((Number) expected.get(i)).doubleValue();
          error = Math.max(error, Math.abs(row[i] - v));
          size = Math.max(size, Math.abs(v));
        }
        assertTrue(error <= bound * size, what + " row " + r + ": " + error + " of " + size);
      }
      assertTrue(approximated > n && approximated < (UNITS - 1) * n, "both kinds: " + approximated);
    }
  }

  /** The way of the command line: the file beside a model that is opened, on its own layers. */
  @Test
  void aModelRunsWithThem() {
    int width;
    int layers;
    ModelOptions plain = TestModels.options(ModelOptions.Backend.CPU).withContextLength(64);
    int[] ids = {5, 17, 33, 12, 8, 40};
    float[][] dense;
    try (Model model = TestModels.open("demo-small", plain);
        Session session = model.newSession()) {
      width = model.info().embeddingLength();
      layers = model.info().layers();
      dense = session.logits(ids);
    }
    Map<String, Part> parts = new LinkedHashMap<>();
    for (int l = 0; l < layers; l++) {
      for (String kind : List.of("attention", "mlp")) {
        String router = "model.layers." + l + ".router_" + kind + ".weight_predictor";
        String lff = "model.layers." + l + ".lw_" + kind.replace("attention", "attn");
        put(parts, router, 2, width);
        put(parts, lff + ".linear1", 8, width);
        put(parts, lff + ".linear2", width, 8);
      }
    }
    Path path = write("demo-small", TensorType.F32, Map.of(), parts);
    UnitForecasts policy = UnitForecasts.of(path);
    float inf = Float.POSITIVE_INFINITY;
    for (UnitForecasts p : List.of(policy, policy.withThreshold(-inf), policy.withThreshold(inf))) {
      try (Model model = TestModels.open("demo-small", plain.withUnits(List.of(p)));
          Session session = model.newSession()) {
        UnitScores.Run run = UnitScores.of(session, ids, 0);
        long all = 2L * layers * ids.length;
        long got = run.units().approximated();
        if (p.threshold() == 0) {
          assertTrue(0 < got && got < all, "some: " + got);
        } else {
          assertEquals(p.threshold() == inf ? all : 0, got);
        }
        boolean same = java.util.Arrays.deepEquals(dense, run.logits());
        assertEquals(p.threshold() == -inf, same);
      }
    }
    Path bound = write("bound", TensorType.F32, Map.of("model", "another"), parts);
    ModelOptions routed = plain.withUnits(List.of(UnitForecasts.of(bound)));
    FletchException e =
        assertThrows(FletchException.class, () -> TestModels.open("demo-small", routed));
    assertTrue(e.getMessage().contains("made for another model"), e.getMessage());
    ModelOptions wide = plain.withUnits(List.of(policy));
    e = assertThrows(FletchException.class, () -> TestModels.open("demo", wide));
    assertTrue(e.getMessage().contains("width"), e.getMessage());
  }

  private static void put(Map<String, Part> parts, String name, int out, int in) {
    parts.put(
        name + ".weight",
        new Part(
            new long[] {out, in},
            TinyWeights.values(name + ".weight", new long[] {out, in}, 0.1, 0)));
    parts.put(
        name + ".bias",
        new Part(new long[] {out}, TinyWeights.values(name + ".bias", new long[] {out}, 0.1, 0)));
  }

  @Test
  void filesThatDoNotFitAreRefused() {
    Map<String, Part> parts = parts();
    String at = "model.layers.1.";
    refused(without(parts, at + "lw_mlp.linear2.bias"), Map.of(), "linear2");
    refused(
        without(parts, at + "router_mlp.weight_predictor.weight"), Map.of(), "weight_predictor");
    refused(without(parts, at + "router_mlp.hidden_layer.bias"), Map.of(), "hidden_layer");
    // A hidden layer that is left out altogether leaves a predictor of another width.
    Map<String, Part> flat = without(parts, at + "router_mlp.hidden_layer.bias");
    flat.remove(at + "router_mlp.hidden_layer.weight");
    refused(flat, Map.of(), "width");
    refused(with(parts, at + "lw_mlp.linear3.weight", new long[] {1}), Map.of(), "linear3");
    refused(with(parts, at + "block.mlp.down_proj.weight", new long[] {1, 1}), Map.of(), "block");
    refused(with(parts, "layers.1.lw_mlp.linear1.bias", new long[] {6}), Map.of(), "twice");
    // Three classes, as an unpublished form has.
    refused(
        with(parts, at + "router_mlp.weight_predictor.weight", new long[] {3, 10}),
        Map.of(),
        "weight_predictor");
    refused(Map.of("x", new Part(new long[] {1}, new float[1])), Map.of(), "x");
    refused(parts, Map.of("activation", "relu"), "activation");
    refused(parts, Map.of("router_input", "logits"), "router_input");
    refused(parts, Map.of("model", "that"), "another model");
  }

  private static Map<String, Part> without(Map<String, Part> parts, String name) {
    Map<String, Part> rest = new LinkedHashMap<>(parts);
    assertTrue(Optional.ofNullable(rest.remove(name)).isPresent());
    return rest;
  }

  private static Map<String, Part> with(Map<String, Part> parts, String name, long[] shape) {
    Map<String, Part> more = new LinkedHashMap<>(parts);
    int n = 1;
    for (long d : shape) {
      n *= (int) d;
    }
    more.put(name, new Part(shape, new float[n]));
    return more;
  }

  private static void refused(Map<String, Part> parts, Map<String, String> metadata, String named) {
    Path path = write("bad", TensorType.F32, metadata, parts);
    try (WeightFile file = WeightFile.open(path)) {
      FletchException e = assertThrows(FletchException.class, () -> read(path, file));
      assertTrue(e.getMessage().contains(named), e.getMessage());
      assertTrue(e.getMessage().startsWith(path.toString()), e.getMessage());
    }
  }
}
