package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.Pooling;
import io.fletch.graph.Activation;
import io.fletch.quant.Metadata;
import io.fletch.quant.WeightFile;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Everything that the graph and the decode loop need to know about a model besides its weights.
 * Read from metadata by {@link #read}, then fitted to the tensors' shapes by {@link
 * WeightTensors#fit}.
 *
 * @param architecture the family
 * @param contextLength tokens the model was made for
 * @param embeddingLength width of the residual stream
 * @param vocabulary rows of the embedding matrix; 0 until known
 * @param normEps epsilon of the norms
 * @param embeddingScale factor on embeddings
 * @param logitScale factor on logits
 * @param logitSoftCap cap of the logits; 0 for none
 * @param normOffset added to norm weights at load (1 for Hugging Face Gemma)
 * @param tiedOutput whether the embedding matrix is the output matrix even if there is another
 * @param diffusion whether rows see later rows and text is made by unmasking
 * @param shiftLogits diffusion: the logits of row i predict position i + 1
 * @param maskToken diffusion: the mask
 * @param norm kind of the norms on the residual stream
 * @param diffusionBlock diffusion: positions per block of a block-causal model; 0 where every
 *     position sees every other
 * @param causal whether a position sees none after it
 * @param encoder what only models have that give hidden states and no logits
 * @param pooling what the file says about making one vector of a text's hidden states
 * @param blocks the layers
 */
public record HyperParameters(
    Architecture architecture,
    int contextLength,
    int embeddingLength,
    int vocabulary,
    float normEps,
    float embeddingScale,
    float logitScale,
    float logitSoftCap,
    float normOffset,
    boolean tiedOutput,
    boolean diffusion,
    boolean shiftLogits,
    OptionalInt maskToken,
    Norm norm,
    int diffusionBlock,
    boolean causal,
    Optional<Encoder> encoder,
    Optional<Pooling> pooling,
    List<BlockSpec> blocks) {
  /**
   * A model without an output matrix, whose embeddings are normalised.
   *
   * @param learnedPositions whether a table of positions is added to the embeddings
   */
  public record Encoder(boolean learnedPositions) {}

  /** Kinds of norms. */
  public enum Norm {
    RMS,
    /** With mean and, where the file has one, bias. */
    LAYER
  }

  static final int MAX_LAYERS = 4096;
  static final int MAX_WIDTH = 1 << 20;
  static final int MAX_VOCABULARY = 1 << 24;

  /** Checks the ranges. */
  public HyperParameters {
    Objects.requireNonNull(architecture, "architecture");
    Objects.requireNonNull(maskToken, "maskToken");
    Objects.requireNonNull(norm, "norm");
    Objects.requireNonNull(encoder, "encoder");
    Objects.requireNonNull(pooling, "pooling");
    if (diffusion && causal) {
      throw new FletchException("positions of a diffusion model see those after them");
    }
    blocks = List.copyOf(blocks);
    if (diffusionBlock < 0 || diffusionBlock > 0 && !diffusion) {
      throw new FletchException(
          "diffusion block: expected >= 0, and 0 unless it is a diffusion model, actual="
              + diffusionBlock);
    }
    if (!(normEps >= 0 && normEps < 1)) {
      throw new FletchException("epsilon of the norms: expected=[0, 1) actual=" + normEps);
    }
    if (diffusion && maskToken.isEmpty()) {
      throw new FletchException("a diffusion model needs a mask token: none is declared");
    }
  }

  /**
   * Reads the hyper-parameters of a weight file.
   *
   * @throws FletchException if the architecture or one of its settings is missing, out of range or
   *     not supported; the message names it
   * @throws io.fletch.quant.WeightFileException if a value has the wrong type
   */
  public static HyperParameters read(WeightFile.Format format, Metadata metadata) {
    HyperParameters hp =
        switch (format) {
          case GGUF, ARROW -> GgufHyperParameters.read(metadata);
          case SAFETENSORS -> HfHyperParameters.read(metadata);
        };
    return hp.withUnits(metadata).withOptions(metadata);
  }

  /**
   * Feed-forward units as options describe them: the activation of GGUF and Arrow files, whose
   * metadata have no key for it, and how many of its results count (ELAS, specs weights 5.1).
   */
  private HyperParameters withUnits(Metadata metadata) {
    Optional<Activation> activation =
        metadata
            .string("fletch.hidden_act")
            .map(name -> HfHyperParameters.activation("fletch.hidden_act", name));
    Optional<BlockSpec.Keep> keep =
        metadata.string("fletch.activation_sparsity").map(HyperParameters::keep);
    if (activation.isEmpty() && keep.isEmpty()) {
      return this;
    }
    List<BlockSpec> changed =
        blocks.stream()
            .map(b ->
                b.withUnits(
                    b.attention(),
                    b.feedForward().map(f -> f.with(activation.orElse(f.activation()), keep))))
            .toList();
    return withShapes(vocabulary, changed);
  }

  private static BlockSpec.Keep keep(String text) {
    Matcher m = Pattern.compile("(\\d{1,3}):(\\d{1,3})").matcher(text);
    if (!m.matches()) {
      throw new FletchException("fletch.activation_sparsity: expected=N:M actual=" + text);
    }
    return new BlockSpec.Keep(Integer.parseInt(m.group(1)), Integer.parseInt(m.group(2)));
  }

  /**
   * What files of research code do not say and their users must (specs weights 5.2): LayerNorm
   * Scaling, and DeepNorm's factor on the residual of layers whose norms come after the units.
   */
  private HyperParameters withOptions(Metadata metadata) {
    boolean scaled = metadata.bool("fletch.layernorm_scaling").orElse(false);
    double alpha = metadata.number("fletch.residual_alpha").orElse(1.0);
    if (!(alpha > 0 && alpha < 1e6)) {
      throw new FletchException("fletch.residual_alpha: expected=(0, 1e6) actual=" + alpha);
    }
    if (!scaled && alpha == 1) {
      return this;
    }
    List<BlockSpec> changed = new java.util.ArrayList<>();
    for (BlockSpec b : blocks) {
      if (b.norms() != BlockSpec.Norms.PRE) {
        throw new FletchException(
            "fletch.layernorm_scaling, fletch.residual_alpha: norms of the architecture:"
                + " expected=PRE actual="
                + b.norms());
      }
      float norm = scaled ? (float) (1 / Math.sqrt(changed.size() + 1)) : 1;
      changed.add(
          b.withForm(b.norms(), (float) alpha, b.attentionScale(), b.feedForwardScale(), 1, norm));
    }
    return withShapes(vocabulary, changed);
  }

  /** Whether the file says that its vectors are what it is for, not text. */
  public boolean isEmbedding() {
    return encoder.isPresent() || pooling.filter(p -> p != Pooling.NONE).isPresent();
  }

  HyperParameters withShapes(int newVocabulary, List<BlockSpec> newBlocks) {
    return new HyperParameters(
        architecture,
        contextLength,
        embeddingLength,
        newVocabulary,
        normEps,
        embeddingScale,
        logitScale,
        logitSoftCap,
        normOffset,
        tiedOutput,
        diffusion,
        shiftLogits,
        maskToken,
        norm,
        diffusionBlock,
        causal,
        encoder,
        pooling,
        newBlocks);
  }
}
