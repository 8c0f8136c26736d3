package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Activation;
import io.fletch.graph.RopeSpec;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.util.List;
import java.util.OptionalInt;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Configurations as published with real models. */
class HfHyperParametersTest {
  private static HyperParameters read(MapMetadata metadata) {
    return HyperParameters.read(WeightFile.Format.SAFETENSORS, metadata);
  }

  private static HyperParameters read(String config) throws IOException {
    return read(MapMetadata.config(config));
  }

  private static BlockSpec.Attention attention(HyperParameters hp, int layer) {
    return hp.blocks().get(layer).attention().orElseThrow();
  }

  @ParameterizedTest
  @CsvSource({
    "llama-3.2-1b,    llama,  16, 2048, 32, 8,  64,  8192,  128256, true,  500000",
    "mistral-7b-v0.1, llama,  32, 4096, 32, 8,  128, 14336, 32000,  false, 10000",
    "qwen2.5-0.5b,    qwen2,  24, 896,  14, 2,  64,  4864,  151936, true,  1000000",
    "qwen3-0.6b,      qwen3,  28, 1024, 16, 8,  128, 3072,  151936, true,  1000000",
    "smollm2-135m,    llama,  30, 576,  9,  3,  64,  1536,  49152,  true,  100000",
    "llada-8b,        llada,  32, 4096, 32, 32, 128, 12288, 126464, false, 500000",
    "dream-7b,        dream,  28, 3584, 28, 4,  128, 18944, 152064, false, 1000000",
    "gemma-2-2b,      gemma2, 26, 2304, 8,  4,  256, 9216,  256000, true,  10000",
    "gemma-3-1b,      gemma3, 26, 1152, 4,  1,  256, 6912,  262144, true,  10000",
  })
  void readsShapes(
      String config,
      String architecture,
      int layers,
      int width,
      int heads,
      int kvHeads,
      int headDim,
      int inner,
      int vocabulary,
      boolean tied,
      double ropeBase)
      throws IOException {
    HyperParameters hp = read(config);
    assertEquals(architecture, hp.architecture().id());
    assertEquals(layers, hp.blocks().size());
    assertEquals(width, hp.embeddingLength());
    assertEquals(vocabulary, hp.vocabulary());
    assertEquals(tied, hp.tiedOutput());
    for (int i = 0; i < layers; i++) {
      BlockSpec.Attention a = attention(hp, i);
      assertEquals(heads, a.heads());
      assertEquals(kvHeads, a.kvHeads());
      assertEquals(headDim, a.keyDim());
      assertEquals(headDim, a.valueDim());
      assertEquals((float) (1 / Math.sqrt(headDim)), a.scale());
      assertEquals(RopeSpec.Style.NEOX, a.rope().orElseThrow().style());
      assertEquals(headDim, a.rope().orElseThrow().rotated());
      assertEquals(inner, hp.blocks().get(i).feedForward().orElseThrow().width());
    }
    assertEquals(ropeBase, attention(hp, 0).rope().orElseThrow().base());
  }

  @Test
  void llamaScalesFrequencies() throws IOException {
    assertEquals(
        new RopeScaling.Llama3(32, 1, 4, 8192),
        attention(read("llama-3.2-1b"), 3).rope().orElseThrow().scaling());
  }

  @Test
  void mistralHasWindowsEverywhereAndQwenNowhere() throws IOException {
    assertTrue(
        read("mistral-7b-v0.1").blocks().stream()
            .allMatch(b -> b.attention().orElseThrow().window() == 4096));
    assertTrue(
        read("qwen2.5-0.5b").blocks().stream()
            .allMatch(b -> b.attention().orElseThrow().window() == 0));
  }

  @Test
  void qwenWindowsBeginAtMaxWindowLayers() throws IOException {
    HyperParameters hp = read(MapMetadata.config("qwen2.5-0.5b").with("use_sliding_window", true));
    assertEquals(0, attention(hp, 20).window());
    assertEquals(32768, attention(hp, 21).window());
  }

  @Test
  void diffusionModelsHaveMasks() throws IOException {
    HyperParameters llada = read("llada-8b");
    assertTrue(llada.diffusion());
    assertFalse(llada.shiftLogits());
    assertEquals(OptionalInt.of(126336), llada.maskToken());
    HyperParameters dream = read("dream-7b");
    assertTrue(dream.diffusion());
    assertTrue(dream.shiftLogits());
    assertEquals(OptionalInt.of(151666), dream.maskToken());
  }

  @Test
  void gemma2AlternatesWindows() throws IOException {
    HyperParameters hp = read("gemma-2-2b");
    assertEquals(4096, attention(hp, 0).window());
    assertEquals(0, attention(hp, 1).window());
    assertEquals(50, attention(hp, 0).softCap());
    assertEquals(30, hp.logitSoftCap());
    assertEquals(48, hp.embeddingScale());
    assertEquals(1, hp.normOffset());
    assertEquals(BlockSpec.Norms.SANDWICH, hp.blocks().get(0).norms());
    assertEquals(Activation.GELU_TANH, hp.blocks().get(0).feedForward().orElseThrow().activation());
  }

  @Test
  void gemma3HasOneGlobalLayerInSix() throws IOException {
    HyperParameters hp = read("gemma-3-1b");
    for (int i = 0; i < 26; i++) {
      boolean isGlobal = i % 6 == 5;
      assertEquals(isGlobal ? 0 : 512, attention(hp, i).window());
      assertEquals(isGlobal ? 1e6 : 1e4, attention(hp, i).rope().orElseThrow().base());
      assertEquals(BlockSpec.QkNorm.HEAD, attention(hp, i).qkNorm());
    }
  }

  @Test
  void readsRopeParametersOfNewConfigurations() throws IOException {
    RopeParameters rope = attention(read("qwen3-yarn-v5"), 0).rope().orElseThrow();
    assertEquals(1e6, rope.base());
    RopeScaling.Yarn yarn = assertInstanceOf(RopeScaling.Yarn.class, rope.scaling());
    assertEquals(4, yarn.factor());
    assertEquals(32768, yarn.original());
    assertEquals(1 + 0.1 * Math.log(4), yarn.magnitude());
  }

  @Test
  void phi3ReadsLongRope() throws IOException {
    MapMetadata config =
        MapMetadata.config("llama-3.2-1b")
            .with("model_type", "phi3")
            .with("rope_scaling.rope_type", "longrope")
            .with("rope_scaling.short_factor", List.of(1.0, 1.5))
            .with("rope_scaling.long_factor", List.of(2.0, 2.5))
            .with("original_max_position_embeddings", 4096)
            .without("rope_scaling.original_max_position_embeddings");
    RopeScaling.LongRope scaling =
        assertInstanceOf(
            RopeScaling.LongRope.class, attention(read(config), 0).rope().orElseThrow().scaling());
    assertEquals(4096, scaling.original());
    // 131072 / 4096 = 32 = 2^5, 4096 = 2^12
    assertEquals(Math.sqrt(1 + 5.0 / 12), scaling.magnitude(), 1e-12);
    assertTrue(attention(read(config), 0).fusedQkv());
  }

  @ParameterizedTest
  @CsvSource({"silu, SILU", "gelu, GELU_ERF", "gelu_pytorch_tanh, GELU_TANH", "relu, RELU"})
  void namesOfActivationsAreThoseOfTransformers(String name, Activation activation)
      throws IOException {
    HyperParameters hp = read(MapMetadata.config("llama-3.2-1b").with("hidden_act", name));
    assertEquals(activation, hp.blocks().get(0).feedForward().orElseThrow().activation());
  }

  @ParameterizedTest
  @CsvSource({
    "model_type,              mamba,  model_type",
    "hidden_act,              mish,   hidden_act",
    "rope_scaling.rope_type,  dynamic, rope_type",
    "quantization_config.bits, 4,     quantization_config",
  })
  void refusesWhatIsNotSupported(String key, String value, String named) throws IOException {
    MapMetadata config = MapMetadata.config("llama-3.2-1b").with(key, value);
    FletchException e = assertThrows(FletchException.class, () -> read(config));
    assertTrue(e.getMessage().contains(named), e.getMessage());
  }

  @ParameterizedTest
  @CsvSource({
    "num_hidden_layers, 0",
    "num_hidden_layers, 1000000000",
    "hidden_size, -1",
    "num_attention_heads, 0",
    "num_attention_heads, 4611686018427387904",
    "num_key_value_heads, 5",
    "vocab_size, 0",
    "head_dim, 2147483647",
    "head_dim, 63",
    "max_position_embeddings, 0",
    "intermediate_size, 0",
  })
  void refusesHostileSizes(String key, long value) throws IOException {
    MapMetadata config = MapMetadata.config("llama-3.2-1b").with(key, value);
    FletchException e = assertThrows(FletchException.class, () -> read(config));
    assertTrue(e.getMessage().contains(Long.toString(value)), e.getMessage());
  }

  @ParameterizedTest
  @CsvSource({"rope_theta, 0.5", "rope_theta, -1", "rope_scaling.factor, 0", "rms_norm_eps, 7"})
  void refusesHostileNumbers(String key, double value) throws IOException {
    MapMetadata config = MapMetadata.config("llama-3.2-1b").with(key, value);
    assertThrows(FletchException.class, () -> read(config));
  }

  @Test
  void refusesHeadsThatDoNotDivide() throws IOException {
    MapMetadata config = MapMetadata.config("qwen2.5-0.5b").with("num_attention_heads", 15);
    FletchException e = assertThrows(FletchException.class, () -> read(config));
    assertTrue(e.getMessage().contains("896") && e.getMessage().contains("15"), e.getMessage());
  }

  @Test
  void refusesLladaVariants() throws IOException {
    MapMetadata config = MapMetadata.config("llada-8b").with("block_type", "sequential");
    assertTrue(
        assertThrows(FletchException.class, () -> read(config))
            .getMessage()
            .contains("block_type"));
    MapMetadata noMask = MapMetadata.config("llada-8b").without("mask_token_id");
    assertTrue(
        assertThrows(FletchException.class, () -> read(noMask))
            .getMessage()
            .contains("mask_token_id"));
  }
}
