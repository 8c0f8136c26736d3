package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** Real files, where the shared folder is present. */
class SharedModelsTest {
  private static Path model(String name) {
    Path path = Path.of("../../shared/models", name);
    assumeTrue(Files.exists(path), "skipped: no " + path.toAbsolutePath().normalize());
    return path;
  }

  @Test
  void readsGguf() {
    try (WeightFile file = WeightFile.open(model("ar-small-F32.gguf"))) {
      assertEquals(WeightFile.Format.GGUF, file.format());
      assertEquals("qwen3", file.metadata().string("general.architecture").orElseThrow());
      assertEquals(4, file.metadata().integer("qwen3.block_count").orElseThrow());
      Tensor embedding = file.tensor("token_embd.weight").orElseThrow();
      assertEquals(1024, embedding.rows());
      assertEquals(128, embedding.cols());
      file.tensors().values().forEach(Dequantizer::checkFinite);
      assertEquals(1024, file.metadata().strings("tokenizer.ggml.tokens").orElseThrow().length);
    }
  }

  @Test
  void quantizedFilesAreCloseToTheirSource() {
    try (WeightFile half = WeightFile.open(model("ar-small-F16.gguf"));
        WeightFile q8 = WeightFile.open(model("ar-small-Q8_0.gguf"));
        WeightFile full = WeightFile.open(model("ar-small-F32.gguf"))) {
      assertEquals(full.tensors().keySet(), half.tensors().keySet());
      assertEquals(full.tensors().keySet(), q8.tensors().keySet());
      for (Tensor t : full.tensors().values()) {
        float[] expected = Dequantizer.toFloats(t);
        float[] f16 = Dequantizer.toFloats(half.tensor(t.name()).orElseThrow());
        float[] q = Dequantizer.toFloats(q8.tensor(t.name()).orElseThrow());
        float max = 0;
        for (float v : expected) {
          max = Math.max(max, Math.abs(v));
        }
        for (int i = 0; i < expected.length; i++) {
          assertEquals(expected[i], f16[i], Math.abs(expected[i]) / 2000 + 1e-7f, t.name());
          assertEquals(expected[i], q[i], max / 127, t.name());
        }
      }
    }
  }

  @Test
  void safetensorsFolderEqualsItsGguf() {
    try (WeightFile folder = WeightFile.open(model("ar-small"));
        WeightFile gguf = WeightFile.open(model("ar-small-F16.gguf"))) {
      assertEquals(WeightFile.Format.SAFETENSORS, folder.format());
      assertEquals("qwen3", folder.metadata().string("model_type").orElseThrow());
      assertEquals(10000.0, folder.metadata().number("rope_theta").orElseThrow());
      assertEquals("pt", folder.metadata().string("__metadata__.format").orElseThrow());
      Tensor a = folder.tensor("model.layers.3.mlp.down_proj.weight").orElseThrow();
      Tensor b = gguf.tensor("blk.3.ffn_down.weight").orElseThrow();
      assertArrayEquals(a.shape(), b.shape());
      assertArrayEquals(Dequantizer.toFloats(a), Dequantizer.toFloats(b));
    }
  }

  @Test
  void useAfterCloseIsAnException() {
    WeightFile file = WeightFile.open(model("ar-small-F16.gguf"));
    Tensor t = file.tensors().values().iterator().next();
    file.close();
    file.close();
    assertThrows(IllegalStateException.class, () -> t.segment().get(ByteCursor.SHORT, 0));
    assertThrows(IllegalStateException.class, () -> t.buffer().getByte(0));
    assertThrows(IllegalStateException.class, () -> file.metadata().string("general.name"));
    assertTrue(t.buffer().refCnt() == 0);
  }
}
