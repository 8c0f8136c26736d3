package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.SyntheticModel.Mix;
import io.fletch.quant.SyntheticModel.Shape;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class SyntheticModelTest {
  private static final Shape TINY =
      new Shape("tiny", "llama", 9, 256, 512, 8, 2, 32, 2048, 512, 10000f, true, true, true);

  @TempDir Path folder;

  @ParameterizedTest
  @EnumSource(Mix.class)
  void valuesAreFiniteCentredAndOfTheRightSpread(Mix mix) {
    Path path = folder.resolve("m.gguf");
    SyntheticModel.write(path, TINY.withLayers(2), mix, 7);
    try (WeightFile file = WeightFile.open(path)) {
      for (Tensor t : file.tensors().values()) {
        Dequantizer.checkFinite(t);
        if (t.rank() == 2) {
          float[] values = Dequantizer.toFloats(t);
          double mean = 0;
          double square = 0;
          for (float v : values) {
            mean += v;
            square += (double) v * v;
          }
          mean /= values.length;
          double spread = t.name().startsWith("token_embd") ? 0.02 : 1 / Math.sqrt(t.cols());
          assertEquals(spread, Math.sqrt(square / values.length), spread * 0.4, t.toString());
          assertEquals(0, mean, spread / 8, t.toString());
        }
      }
    }
  }

  @Test
  void mediumMixesFavourSomeLayers() {
    Path path = folder.resolve("m.gguf");
    SyntheticModel.write(path, TINY, Mix.Q4_K_M, 7);
    try (WeightFile file = WeightFile.open(path)) {
      assertEquals(TensorType.Q6_K, file.tensor("token_embd.weight").orElseThrow().type());
      assertEquals(TensorType.Q6_K, file.tensor("blk.0.attn_v.weight").orElseThrow().type());
      assertEquals(TensorType.Q4_K, file.tensor("blk.1.attn_v.weight").orElseThrow().type());
      assertEquals(TensorType.Q4_K, file.tensor("blk.0.attn_q.weight").orElseThrow().type());
    }
  }

  @Test
  void sameSeedSameFile() throws IOException {
    List<byte[]> files =
        List.of(1L, 1L, 2L).stream()
            .map(seed -> {
              Path path = folder.resolve("seed.gguf");
              SyntheticModel.write(path, TINY.withLayers(1), Mix.Q4_0, seed);
              return readAll(path);
            })
            .toList();
    assertArrayEquals(files.get(0), files.get(1));
    assertNotEquals(Arrays.hashCode(files.get(0)), Arrays.hashCode(files.get(2)));
    try (var left = Files.list(folder)) {
      assertEquals(1, left.count(), "temporary files left");
    }
  }

  @Test
  void bytePairMergesAreConsistent() {
    Path path = folder.resolve("m.gguf");
    SyntheticModel.write(path, TINY, Mix.Q4_0, 7);
    try (WeightFile file = WeightFile.open(path)) {
      String[] tokens = file.metadata().strings("tokenizer.ggml.tokens").orElseThrow();
      Set<String> all = new HashSet<>(Arrays.asList(tokens));
      assertEquals(2048, all.size());
      assertTrue(all.contains("Ġ") && all.contains("Ċ") && all.contains("Ń") && all.contains("ÿ"));
      for (String merge : file.metadata().strings("tokenizer.ggml.merges").orElseThrow()) {
        String[] parts = merge.split(" ");
        assertTrue(all.contains(parts[0]) && all.contains(parts[1]), merge);
        assertTrue(all.contains(parts[0] + parts[1]), merge);
      }
    }
  }

  @Test
  void rowsThatAreNoMultipleOf256FallBack() {
    Path path = folder.resolve("m.gguf");
    SyntheticModel.write(path, Shape.STORIES.withLayers(1), Mix.Q4_K_M, 7);
    try (WeightFile file = WeightFile.open(path)) {
      assertEquals(TensorType.Q5_0, file.tensor("blk.0.attn_q.weight").orElseThrow().type());
      assertEquals(TensorType.Q8_0, file.tensor("token_embd.weight").orElseThrow().type());
      assertEquals(32000, file.metadata().floats("tokenizer.ggml.scores").orElseThrow().length);
    }
  }

  private static byte[] readAll(Path path) {
    try {
      return Files.readAllBytes(path);
    } catch (IOException e) {
      throw new AssertionError(e);
    }
  }
}
