package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Backend;
import io.fletch.graph.Graph;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.AdapterFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * What only adapters that are given at open may change, on the software GPU, alone and with the
 * first layer on the CPU, against the reference: embedding and output, single experts, matrices
 * whose rows grow (DoRA). {@code AdapterTargetsTest} compares the reference with changed matrices.
 */
class CudaAdapterTargetsTest {
  @TempDir Path folder;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  /** A PEFT adapter of rank 3 for modules of a checkpoint. */
  private Path adapter(WeightFile model, boolean dora, List<String> stems) throws IOException {
    Path peft = Files.createDirectories(folder.resolve("peft"));
    Files.writeString(
        peft.resolve("adapter_config.json"),
        "{\"peft_type\":\"LORA\",\"lora_alpha\":2,\"use_dora\":" + dora + "}");
    SplittableRandom random = new SplittableRandom(8);
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      for (String stem : stems) {
        Tensor base = model.tensors().get(stem + ".weight");
        String at = "base_model.model." + stem;
        if (stem.endsWith("embed_tokens")) {
          writer.add(random(store, random, at + ".lora_embedding_A", 3, base.rows()));
          writer.add(random(store, random, at + ".lora_embedding_B", base.cols(), 3));
        } else {
          writer.add(random(store, random, at + ".lora_A.weight", 3, base.cols()));
          writer.add(random(store, random, at + ".lora_B.weight", base.rows(), 3));
        }
        if (dora) {
          float[] lengths = numbers(random, base.rows(), 0.7, 1.7);
          writer.add(store.floats(at + ".lora_magnitude_vector", lengths, base.rows()));
        }
      }
      writer.write(peft.resolve("adapter_model.safetensors"));
    }
    return peft;
  }

  private static float[] numbers(SplittableRandom random, long n, double from, double to) {
    float[] x = new float[Math.toIntExact(n)];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextDouble(from, to);
    }
    return x;
  }

  private static Tensor random(
      TensorStore store, SplittableRandom random, String name, long rows, long cols) {
    return store.floats(name, numbers(random, rows * cols, -0.4, 0.4), rows, cols);
  }

  private static Graph graph(WeightFile file, TensorStore store, List<Path> adapters) {
    HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
    WeightTensors weights =
        WeightTensors.of(file.format(), file.tensors(), declared.architecture(), store);
    HyperParameters hp = weights.fit(declared);
    weights.adapt(
        adapters.stream().map(p -> AdapterFile.open(p, 0.7f, store, file.format(), hp)).toList());
    return ModelGraph.build(hp, weights, 64, "adapted");
  }

  @ParameterizedTest
  @CsvSource({
    "llama, false, model.embed_tokens lm_head",
    "qwen2, true, model.layers.0.self_attn.q_proj model.layers.1.mlp.up_proj lm_head",
    "qwen3moe, false, model.layers.1.mlp.experts.0.gate_proj model.layers.1.mlp.experts.2.gate_proj"
        + " model.layers.1.mlp.experts.5.up_proj model.layers.1.mlp.experts.1.down_proj"
  })
  void logitsAreThoseOfTheReference(String name, boolean dora, String stems) throws IOException {
    SoftGpu gpu = SoftGpu.reset().workers(2);
    try (WeightFile file = WeightFile.open(CudaFamiliesTest.write(folder, name));
        TensorStore store = TensorStore.create()) {
      HyperParameters hp = HyperParameters.read(file.format(), file.metadata());
      Graph graph = graph(file, store, List.of(adapter(file, dora, List.of(stems.split(" ")))));
      Backend reference = new ReferenceBackend();
      float[][] expected = CudaFamiliesTest.run(reference, graph, hp);
      float[][] plain = CudaFamiliesTest.run(reference, graph(file, store, List.of()), hp);
      assertFalse(Arrays.equals(plain[8], expected[8]), "the adapter changes nothing");
      Backend cuda = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
      CudaFamiliesTest.compare(expected, CudaFamiliesTest.run(cuda, graph, hp));
      assertTrue(graph.kvLayers().size() > 1);
      Backend cpu = new CpuBackend(CpuBackend.Options.defaults().withThreads(2));
      CudaFamiliesTest.compare(
          expected, CudaFamiliesTest.run(new SplitBackend(cpu, cuda, 1), graph, hp));
      assertArrayEquals(
          expected, CudaFamiliesTest.run(new SplitBackend(reference, reference, 1), graph, hp));
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }
}
