package io.fletch.runtime.tokenizer;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Tokenizer;
import org.junit.jupiter.api.Test;

/** Damaged tokenizer metadata ends in an exception that names the key. */
class HostileMetadataTest {
  private static void refused(MapMetadata metadata, String... parts) {
    FletchException e = assertThrows(FletchException.class, () -> Tokenizers.fromGguf(metadata));
    for (String part : parts) {
      assertTrue(e.getMessage().contains(part), e.getMessage());
    }
  }

  @Test
  void smallOneWorks() {
    Tokenizer tokenizer = Tokenizers.fromGguf(MapMetadata.small());
    assertArrayEquals(new int[] {256, 258}, tokenizer.encode("hello"));
    assertArrayEquals(new int[] {260, 259, 261}, tokenizer.encode("<s>><s><word>"));
    assertEquals(261, tokenizer.encode("<word>", false, false)[0]);
    assertEquals(3, tokenizer.encode("<s>", false, false).length);
    assertEquals("hello<word>", tokenizer.decode(new int[] {259, 256, 258, 261}));
    assertEquals("<s>he", tokenizer.decode(new int[] {259, 256}, true));
    assertThrows(FletchException.class, () -> tokenizer.decode(new int[] {262}));
    assertThrows(FletchException.class, () -> tokenizer.token(-1));
  }

  @Test
  void refusals() {
    String prefix = "tokenizer.ggml.";
    refused(new MapMetadata(), prefix + "model");
    refused(MapMetadata.small().with(prefix + "model", "t5"), prefix + "model", "t5");
    refused(MapMetadata.small().with(prefix + "pre", "nonsense"), prefix + "pre", "nonsense");
    refused(MapMetadata.small().with(prefix + "tokens", new String[0]), prefix + "tokens");
    refused(
        MapMetadata.small().with(prefix + "merges", new String[] {"h e", "x yz"}),
        prefix + "merges[1]",
        "x yz");
    refused(MapMetadata.small().with(prefix + "merges", new String[] {"he"}), "merges[0]");
    refused(MapMetadata.small().with(prefix + "token_type", new long[3]), "token_type", "262", "3");
    long[] types = new long[262];
    types[5] = 77;
    refused(MapMetadata.small().with(prefix + "token_type", types), "token_type[5]", "77");
    refused(MapMetadata.small().with(prefix + "eos_token_id", 262L), "eos_token_id", "261", "262");
    refused(MapMetadata.small().with(prefix + "mask_token_id", -1L), "mask_token_id", "-1");
    refused(MapMetadata.small().with(prefix + "add_eos_token", true), "add_eos_token");
    String[] repeated = MapMetadata.small().strings(prefix + "tokens").orElseThrow().clone();
    repeated[258] = repeated[256];
    refused(MapMetadata.small().with(prefix + "tokens", repeated), "tokens[258]", "tokens[256]");
    refused(
        MapMetadata.small()
            .with(prefix + "model", "llama")
            .with(prefix + "scores", new float[] {1}),
        "scores");
  }
}
