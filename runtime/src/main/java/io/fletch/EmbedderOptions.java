package io.fletch;

import io.fletch.sampling.support.Ranges;
import java.util.Objects;
import java.util.Optional;

/**
 * How an embedding model is opened and what it makes of texts. Immutable; start from {@link
 * #defaults()} and change with the {@code with} methods.
 *
 * @param model backend, threads, kernels, longest text ({@link ModelOptions#contextLength}) and
 *     rows of a forward ({@link ModelOptions#prefillChunk}; more where a text must be in one);
 *     units and prefix cache do not apply
 * @param pooling how a text's vector is made; empty for what the file says and, where it says
 *     nothing, {@link Pooling#LAST} for models whose tokens see only those before them, else {@link
 *     Pooling#MEAN}
 * @param normalize whether vectors have length 1
 * @param dimensions elements of a vector: the first ones, before it is normalised, for models that
 *     were trained for that (Matryoshka); 0 for all
 * @param maxTokens most tokens of a text, special ones included; 0 for what the model says, never
 *     more than the context
 * @param overlong what becomes of a text with more
 */
public record EmbedderOptions(
    ModelOptions model,
    Optional<Pooling> pooling,
    boolean normalize,
    int dimensions,
    int maxTokens,
    Overlong overlong) {
  /** What becomes of a text with too many tokens. */
  public enum Overlong {
    /** An exception. */
    ERROR,
    /** Its beginning, with the special tokens that the model puts around a text. */
    TRUNCATE
  }

  /** Checks ranges. */
  public EmbedderOptions {
    Objects.requireNonNull(model, "model");
    Objects.requireNonNull(pooling, "pooling");
    Objects.requireNonNull(overlong, "overlong");
    Ranges.check("dimensions", dimensions, dimensions >= 0, ">= 0 (0 for all)");
    Ranges.check("maxTokens", maxTokens, maxTokens >= 0, ">= 0 (0 for the model's)");
    if (!model.units().isEmpty()) {
      throw new IllegalArgumentException(
          "units: an embedding model runs all of them: " + model.units());
    }
  }

  /** The defaults: CPU, float32 keys and values, vectors of length 1, too long is an error. */
  public static EmbedderOptions defaults() {
    return new EmbedderOptions(
        ModelOptions.defaults().withKvType(ModelOptions.KvType.F32),
        Optional.empty(),
        true,
        0,
        0,
        Overlong.ERROR);
  }

  /** With other options of the model. */
  public EmbedderOptions withModel(ModelOptions value) {
    return new EmbedderOptions(value, pooling, normalize, dimensions, maxTokens, overlong);
  }

  /** With that pooling, whatever the file says. */
  public EmbedderOptions withPooling(Pooling value) {
    return new EmbedderOptions(
        model, Optional.of(value), normalize, dimensions, maxTokens, overlong);
  }

  /** With vectors of length 1 or as they come. */
  public EmbedderOptions withNormalize(boolean value) {
    return new EmbedderOptions(model, pooling, value, dimensions, maxTokens, overlong);
  }

  /** With that many elements. */
  public EmbedderOptions withDimensions(int value) {
    return new EmbedderOptions(model, pooling, normalize, value, maxTokens, overlong);
  }

  /** With another limit of tokens. */
  public EmbedderOptions withMaxTokens(int value) {
    return new EmbedderOptions(model, pooling, normalize, dimensions, value, overlong);
  }

  /** With another way with long texts. */
  public EmbedderOptions withOverlong(Overlong value) {
    return new EmbedderOptions(model, pooling, normalize, dimensions, maxTokens, value);
  }
}
