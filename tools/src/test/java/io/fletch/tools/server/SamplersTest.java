package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.sampling.SamplerExtras;
import io.fletch.sampling.SamplingOptions;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The samplers of llama.cpp's server in a request. */
class SamplersTest {
  private static SamplerExtras of(String json, SamplerExtras defaults) {
    return Samplers.of(Wire.parse(json.getBytes(StandardCharsets.UTF_8)), defaults);
  }

  @Test
  void allFieldsAreRead() {
    SamplerExtras expected =
        SamplerExtras.NONE
            .withTypicalP(0.9f)
            .withTopNSigma(1.5f)
            .withDynamicTemperature(0.25f, 2)
            .withXtc(0.5f, 0.2f)
            .withDry(new SamplerExtras.Dry(0.8f, 2, 3, 100, List.of("\n", ";")))
            .withMirostat(4, 0.2f);
    assertEquals(
        expected,
        of(
            "{\"typical_p\":0.9,\"top_n_sigma\":1.5,\"dynatemp_range\":0.25,\"dynatemp_exponent\":2,"
                + "\"xtc_probability\":0.5,\"xtc_threshold\":0.2,\"dry_multiplier\":0.8,"
                + "\"dry_base\":2,\"dry_allowed_length\":3,\"dry_penalty_last_n\":100,"
                + "\"dry_sequence_breakers\":[\"\\n\",\";\"],\"mirostat\":2,\"mirostat_tau\":4,"
                + "\"mirostat_eta\":0.2}",
            SamplerExtras.NONE));
    // What a request does not name is the server's; what it names as off is off.
    assertEquals(expected, of("{}", expected));
    assertEquals(
        SamplerExtras.NONE,
        of(
            "{\"typical_p\":1,\"top_n_sigma\":0,\"dynatemp_range\":0,\"xtc_probability\":0,"
                + "\"dry_multiplier\":0,\"mirostat\":0}",
            expected));
  }

  @Test
  void requestsTakeThem() {
    try (Model model = Model.demo("demo-small", ModelOptions.defaults().withThreads(1))) {
      String json =
          "{\"prompt\":\"Hi\",\"typical_p\":0.5,\"mirostat\":2,\"repeat_penalty\":1.5,"
              + "\"repeat_last_n\":7}";
      SamplingOptions sampling =
          Request.completion(
                  Wire.parse(json.getBytes(StandardCharsets.UTF_8)),
                  model,
                  SamplingOptions.defaults())
              .options()
              .sampling();
      assertEquals(SamplerExtras.NONE.withTypicalP(0.5f).withMirostat(5, 0.1f), sampling.extras());
      assertEquals(1.5f, sampling.repetitionPenalty());
      assertEquals(7, sampling.penaltyWindow());
    }
  }

  @Test
  void wrongValuesAreRefusedByName() {
    for (String wrong :
        new String[] {
          "\"typical_p\":0",
          "\"top_n_sigma\":-1",
          "\"dynatemp_exponent\":0",
          "\"xtc_probability\":1.5",
          "\"dry_allowed_length\":0",
          "\"dry_sequence_breakers\":[\"\"]",
          "\"mirostat\":1",
          "\"mirostat_eta\":\"x\""
        }) {
      ApiException e =
          assertThrows(ApiException.class, () -> of("{" + wrong + "}", SamplerExtras.NONE), wrong);
      String name = wrong.substring(1, wrong.indexOf('"', 1));
      assertTrue(e.getMessage().startsWith(name + ": expected="), e.getMessage());
    }
  }
}
