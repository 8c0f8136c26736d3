package io.fletch.tools.server;

import io.fletch.sampling.SamplerExtras;
import io.fletch.sampling.SamplerExtras.Dry;
import io.fletch.sampling.SamplerExtras.DynamicTemperature;
import io.fletch.sampling.SamplerExtras.Mirostat;
import io.fletch.sampling.SamplerExtras.Xtc;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/**
 * The samplers beyond OpenAI's in a request, under the names that llama.cpp's server gives them.
 */
final class Samplers {
  /** The fields of all of them. */
  static final Set<String> FIELDS =
      Set.of(
          "typical_p",
          "top_n_sigma",
          "dynatemp_range",
          "dynatemp_exponent",
          "xtc_probability",
          "xtc_threshold",
          "dry_multiplier",
          "dry_base",
          "dry_allowed_length",
          "dry_penalty_last_n",
          "dry_sequence_breakers",
          "mirostat",
          "mirostat_tau",
          "mirostat_eta");

  private static final float MOST = Float.MAX_VALUE;
  private static final float LEAST = Float.MIN_VALUE;

  private Samplers() {}

  /**
   * What a request asks for. A sampler whose first field it does not have is as the server has it;
   * all fields are checked, also those of a sampler that is off.
   */
  static SamplerExtras of(Wire body, SamplerExtras defaults) {
    return new SamplerExtras(
        real(body, "typical_p", defaults.typicalP(), LEAST, 1),
        real(body, "top_n_sigma", defaults.topNSigma(), 0, MOST),
        temperature(body).or(() -> kept(body, "dynatemp_range", defaults.dynamicTemperature())),
        xtc(body).or(() -> kept(body, "xtc_probability", defaults.xtc())),
        dry(body).or(() -> kept(body, "dry_multiplier", defaults.dry())),
        mirostat(body).or(() -> kept(body, "mirostat", defaults.mirostat())));
  }

  private static <T> Optional<T> kept(Wire body, String key, Optional<T> otherwise) {
    return body.has(key) ? Optional.empty() : otherwise;
  }

  private static Optional<DynamicTemperature> temperature(Wire body) {
    float range = real(body, "dynatemp_range", 0, 0, MOST);
    float exponent = real(body, "dynatemp_exponent", 1, LEAST, MOST);
    return range == 0 ? Optional.empty() : Optional.of(new DynamicTemperature(range, exponent));
  }

  private static Optional<Xtc> xtc(Wire body) {
    float probability = real(body, "xtc_probability", 0, 0, 1);
    float threshold = real(body, "xtc_threshold", 0.1f, LEAST, 1);
    return probability == 0 ? Optional.empty() : Optional.of(new Xtc(probability, threshold));
  }

  private static Optional<Dry> dry(Wire body) {
    Dry usual = Dry.of(1);
    float multiplier = real(body, "dry_multiplier", 0, 0, MOST);
    float base = real(body, "dry_base", usual.base(), 1, MOST);
    int allowed =
        (int) body.whole("dry_allowed_length", usual.allowedLength(), 1, Integer.MAX_VALUE);
    int last = (int) body.whole("dry_penalty_last_n", usual.lastTokens(), -1, Integer.MAX_VALUE);
    List<String> breakers = usual.breakers();
    if (body.has("dry_sequence_breakers")) {
      List<?> given = body.list("dry_sequence_breakers");
      if (given.size() > 64
          || !given.stream().allMatch(t -> t instanceof String s && !s.isEmpty())) {
        throw body.wrong("dry_sequence_breakers", "an array of up to 64 texts", given);
      }
      breakers = given.stream().map(String.class::cast).toList();
    }
    return multiplier == 0
        ? Optional.empty()
        : Optional.of(new Dry(multiplier, base, allowed, last, breakers));
  }

  private static Optional<Mirostat> mirostat(Wire body) {
    long version = body.whole("mirostat", 0, 0, 2);
    if (version == 1) {
      throw body.wrong("mirostat", "0 or 2", version);
    }
    float tau = real(body, "mirostat_tau", 5, LEAST, MOST);
    float eta = real(body, "mirostat_eta", 0.1f, LEAST, MOST);
    return version == 0 ? Optional.empty() : Optional.of(new Mirostat(tau, eta));
  }

  private static float real(Wire body, String key, float otherwise, float least, float most) {
    return (float) body.real(key, otherwise, least, most);
  }
}
