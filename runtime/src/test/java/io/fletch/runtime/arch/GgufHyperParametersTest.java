package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Pooling;
import io.fletch.graph.Activation;
import io.fletch.graph.RopeSpec;
import io.fletch.quant.WeightFile;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class GgufHyperParametersTest {
  private static MapMetadata llama() {
    return MapMetadata.empty()
        .with("general.architecture", "llama")
        .with("llama.block_count", 3)
        .with("llama.context_length", 2048)
        .with("llama.embedding_length", 64)
        .with("llama.feed_forward_length", 160)
        .with("llama.attention.head_count", 4)
        .with("llama.attention.head_count_kv", 2)
        .with("llama.attention.layer_norm_rms_epsilon", 1e-5);
  }

  private static HyperParameters read(MapMetadata metadata) {
    return HyperParameters.read(WeightFile.Format.GGUF, metadata);
  }

  @Test
  void readsLlamaWithDefaults() {
    HyperParameters hp = read(llama());
    BlockSpec.Attention a = hp.blocks().get(2).attention().orElseThrow();
    assertEquals(16, a.keyDim());
    assertEquals(0.25f, a.scale());
    assertEquals(
        new RopeParameters(RopeSpec.Style.NORM, 16, 10000, new RopeScaling.None()),
        a.rope().orElseThrow());
    assertEquals(0, hp.vocabulary());
    assertEquals(1e-5f, hp.normEps());
  }

  @Test
  void readsWidthsPerLayer() {
    HyperParameters hp =
        read(
            llama()
                .with("llama.attention.head_count", List.of(4L, 0L, 2L))
                .with("llama.attention.head_count_kv", List.of(2L, 0L, 1L))
                .with("llama.feed_forward_length", List.of(160L, 96L, 0L)));
    assertEquals(4, hp.blocks().get(0).attention().orElseThrow().heads());
    assertEquals(Optional.empty(), hp.blocks().get(1).attention());
    assertEquals(2, hp.blocks().get(2).attention().orElseThrow().heads());
    assertEquals(96, hp.blocks().get(1).feedForward().orElseThrow().width());
    assertEquals(Optional.empty(), hp.blocks().get(2).feedForward());
  }

  @Test
  void readsYarn() {
    RopeScaling scaling =
        read(llama()
                .with("llama.rope.scaling.type", "yarn")
                .with("llama.rope.scaling.factor", 4.0)
                .with("llama.rope.scaling.original_context_length", 512))
            .blocks()
            .get(0)
            .attention()
            .orElseThrow()
            .rope()
            .orElseThrow()
            .scaling();
    assertEquals(new RopeScaling.Yarn(4, 512, 32, 1, 1, 1 + 0.1 * Math.log(4)), scaling);
  }

  @Test
  void readsLinearScalingUnderBothNames() {
    for (String key : List.of("llama.rope.scaling.factor", "llama.rope.scale_linear")) {
      assertEquals(
          new RopeScaling.Linear(2),
          read(llama().with(key, 2.0))
              .blocks()
              .get(0)
              .attention()
              .orElseThrow()
              .rope()
              .orElseThrow()
              .scaling());
    }
  }

  @Test
  void diffusionModelsNeedAMask() {
    MapMetadata llada = llama().with("general.architecture", "llada");
    List.copyOf(llada.entries().keySet()).stream()
        .filter(k -> k.startsWith("llama."))
        .forEach(k -> llada.with("llada." + k.substring(6), llada.entries().get(k)));
    FletchException e = assertThrows(FletchException.class, () -> read(llada));
    assertTrue(e.getMessage().contains("mask_token_id"), e.getMessage());
    HyperParameters hp = read(llada.with("tokenizer.ggml.mask_token_id", 7));
    assertTrue(hp.diffusion());
    assertEquals(7, hp.maskToken().orElseThrow());
  }

  @ParameterizedTest
  @CsvSource({
    "llama.expert_count, 5000",
    "llama.attention.clamp_kqv, 8",
    "llama.rope.dimension_count, 8",
    "llama.attention.head_count, 3",
    "llama.attention.head_count_kv, 3",
    "llama.attention.head_count_kv, 0",
    "llama.block_count, 5000000000",
    "llama.block_count, -1",
    "llama.embedding_length, 63",
    "llama.feed_forward_length, 999999999999",
    "llama.rope.freq_base, 0",
  })
  void refuses(String key, long value) {
    FletchException e = assertThrows(FletchException.class, () -> read(llama().with(key, value)));
    assertTrue(e.getMessage().contains(Long.toString(value)), e.getMessage());
  }

  @Test
  void refusesArraysOfTheWrongLength() {
    FletchException e =
        assertThrows(
            FletchException.class,
            () -> read(llama().with("llama.feed_forward_length", List.of(1L, 2L))));
    assertTrue(
        e.getMessage().contains("llama.feed_forward_length")
            && e.getMessage().contains("expected=3"),
        e.getMessage());
  }

  @Test
  void letsNeutralValuesOfUnknownKeysPass() {
    assertEquals(3, read(llama().with("llama.attention.clamp_kqv", 0.0)).blocks().size());
  }

  @Test
  void namesAnUnknownArchitecture() {
    FletchException e =
        assertThrows(
            FletchException.class, () -> read(llama().with("general.architecture", "rwkv7")));
    assertTrue(
        e.getMessage().contains("rwkv7") && e.getMessage().contains("qwen3"), e.getMessage());
  }

  private static MapMetadata bert() {
    return MapMetadata.empty()
        .with("general.architecture", "bert")
        .with("bert.block_count", 2)
        .with("bert.context_length", 512)
        .with("bert.embedding_length", 64)
        .with("bert.feed_forward_length", 256)
        .with("bert.attention.head_count", 4)
        .with("bert.attention.layer_norm_epsilon", 1e-12)
        .with("bert.attention.causal", false)
        .with("bert.pooling_type", 2);
  }

  @Test
  void readsBert() {
    HyperParameters hp = read(bert());
    assertEquals(Optional.of(Pooling.CLS), hp.pooling());
    assertEquals(Optional.of(new HyperParameters.Encoder(true)), hp.encoder());
    assertTrue(hp.isEmbedding());
    assertFalse(hp.causal());
    BlockSpec block = hp.blocks().get(1);
    assertEquals(BlockSpec.Norms.POST, block.norms());
    assertEquals(Optional.empty(), block.attention().orElseThrow().rope());
    assertEquals(Activation.GELU_ERF, block.feedForward().orElseThrow().activation());
    assertFalse(block.feedForward().orElseThrow().gated());
  }

  @Test
  void readsPoolingOfAutoregressiveModels() {
    assertEquals(Optional.empty(), read(llama()).pooling());
    assertTrue(read(llama()).causal());
    for (Pooling p : Pooling.values()) {
      int type = List.of(Pooling.NONE, Pooling.MEAN, Pooling.CLS, Pooling.LAST).indexOf(p);
      HyperParameters hp = read(llama().with("llama.pooling_type", type));
      assertEquals(Optional.of(p), hp.pooling());
      assertEquals(p != Pooling.NONE, hp.isEmbedding());
    }
    assertFalse(read(llama().with("llama.attention.causal", false)).causal());
  }

  @Test
  void refusesEmbeddingModelsThatItCannotRun() {
    refused(bert().with("bert.pooling_type", 4), "bert.pooling_type");
    refused(bert().with("bert.pooling_type", 5), "bert.pooling_type");
    refused(bert().with("bert.attention.layer_norm_epsilon", 2.0), "epsilon");
    refused(bert().with("bert.use_gated_units", true), "bert.use_gated_units");
    refused(
        MapMetadata.empty()
            .with("general.architecture", "gemma3")
            .with("gemma3.block_count", 6)
            .with("gemma3.context_length", 2048)
            .with("gemma3.embedding_length", 64)
            .with("gemma3.feed_forward_length", 160)
            .with("gemma3.attention.head_count", 4)
            .with("gemma3.attention.sliding_window", 512)
            .with("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
            .with("gemma3.attention.causal", false),
        "sliding window");
  }

  private static void refused(MapMetadata metadata, String part) {
    FletchException e = assertThrows(FletchException.class, () -> read(metadata));
    assertTrue(e.getMessage().contains(part), e.getMessage());
  }
}
