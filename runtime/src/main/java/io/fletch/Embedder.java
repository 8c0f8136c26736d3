package io.fletch;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/**
 * An open embedding model: texts to vectors whose directions tell how alike the texts are. It owns
 * weights, kernels and worker threads until it is closed.
 *
 * <p><b>Texts.</b> A text is encoded as {@link Tokenizer#encode(String)} does, with the special
 * tokens that the model puts around it; special tokens written in it are recognised. A prefix that
 * a model wants before queries or documents is the caller's to write.
 *
 * <p><b>Threads.</b> All methods may be called by any number of threads at once, platform or
 * virtual. Texts that wait at the same time, of one call or of several, share forward passes in the
 * order in which they came. A text's vector is the same, bit for bit, whatever runs beside it.
 *
 * <p><b>Close.</b> {@link #close()} waits for the calls that have begun; later ones get an {@link
 * IllegalStateException}.
 */
public interface Embedder extends AutoCloseable {
  /**
   * Opens a model file or folder, GGUF or safetensors with config.json and tokenizer.json (and the
   * settings of sentence-transformers, where they lie beside it): {@code bert}, {@code nomic-bert},
   * or any autoregressive family, whose last hidden states it then gives.
   *
   * @throws FletchException if it cannot be run or is a diffusion model
   * @throws java.io.UncheckedIOException if reading fails
   */
  static Embedder open(Path path) {
    return open(path, EmbedderOptions.defaults());
  }

  /** Opens a model with options. */
  static Embedder open(Path path, EmbedderOptions options) {
    return Models.openEmbedder(path, options);
  }

  /**
   * Whether a file or folder says that it is an embedding model: an encoder, a pooling in its
   * metadata, or the settings of sentence-transformers beside it. Reads no weights.
   *
   * @throws FletchException if it cannot be read
   * @throws java.io.UncheckedIOException if reading fails
   */
  static boolean isEmbeddingModel(Path path) {
    return Models.isEmbeddingModel(path);
  }

  /** Name for people. */
  String name();

  /** What it is made of and gives. */
  Info info();

  /** The tokenizer. */
  Tokenizer tokenizer();

  /**
   * The vector of a text, {@link Info#dimensions} elements.
   *
   * @throws FletchException if the text has too many tokens ({@link EmbedderOptions#overlong}) or
   *     none at all, if the pooling is {@link Pooling#NONE}, or if a kernel failed
   */
  float[] embed(String text);

  /** The vectors of texts, in their order; as {@link #embed(String)} for each. */
  List<float[]> embed(List<String> texts);

  /**
   * The vectors of texts that are token ids, special tokens included, in their order.
   *
   * @throws FletchException as {@link #embed(String)}, whatever {@link EmbedderOptions#overlong}
   *     says, and if an id is not one of the tokenizer's
   */
  List<float[]> embedTokens(List<int[]> texts);

  /**
   * A vector per token of {@link #tokens}, {@link Info#dimensions} elements each, whatever the
   * pooling.
   *
   * @throws FletchException as {@link #embed(String)}
   */
  float[][] tokenVectors(String text);

  /**
   * The token ids that a text is run as, cut if it is too long and the options say so.
   *
   * @throws FletchException if it is too long and they do not
   */
  int[] tokens(String text);

  /** One line: backend, kernels, threads, and why. */
  String backendDescription();

  /** Waits for the calls that have begun and releases the weights; a second time does nothing. */
  @Override
  void close();

  /**
   * Cosine of the angle between two vectors, 1 for the same direction; 0 if one of them is zero.
   *
   * @throws IllegalArgumentException if their lengths differ
   */
  static double similarity(float[] a, float[] b) {
    if (a.length != b.length) {
      throw new IllegalArgumentException("lengths differ: " + a.length + " and " + b.length);
    }
    double dot = 0;
    double aa = 0;
    double bb = 0;
    for (int i = 0; i < a.length; i++) {
      dot += (double) a[i] * b[i];
      aa += (double) a[i] * a[i];
      bb += (double) b[i] * b[i];
    }
    return aa == 0 || bb == 0 ? 0 : dot / Math.sqrt(aa * bb);
  }

  /**
   * The first elements of a vector, with length 1: what {@link EmbedderOptions#dimensions} gives.
   *
   * @throws IllegalArgumentException unless {@code 1 <= dimensions <= vector.length}
   */
  static float[] shortened(float[] vector, int dimensions) {
    if (dimensions < 1 || dimensions > vector.length) {
      throw new IllegalArgumentException(
          "dimensions: expected=[1, " + vector.length + "] actual=" + dimensions);
    }
    float[] out = Arrays.copyOf(vector, dimensions);
    normalize(out);
    return out;
  }

  /** Gives a vector length 1; one of zeros stays as it is. */
  static void normalize(float[] vector) {
    double squares = 0;
    for (float x : vector) {
      squares += (double) x * x;
    }
    if (squares > 0) {
      double factor = 1 / Math.sqrt(squares);
      for (int i = 0; i < vector.length; i++) {
        vector[i] = (float) (vector[i] * factor);
      }
    }
  }

  /**
   * What an embedding model is made of and gives.
   *
   * @param architecture for example {@code bert}
   * @param pooling how vectors of texts are made
   * @param dimensions elements of a vector
   * @param normalized whether vectors have length 1
   * @param causal whether tokens see only those before them
   * @param embeddingLength width of the residual stream: the most dimensions
   * @param maxTokens most tokens of a text, special ones included
   * @param layers blocks
   * @param parameters number of weights
   * @param weightBytes bytes of all tensors
   * @param mainType the most common weight type, for example {@code F16}
   */
  record Info(
      String architecture,
      Pooling pooling,
      int dimensions,
      boolean normalized,
      boolean causal,
      int embeddingLength,
      int maxTokens,
      int layers,
      long parameters,
      long weightBytes,
      String mainType) {}
}
