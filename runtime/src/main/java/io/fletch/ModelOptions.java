package io.fletch;

import java.util.Objects;

/**
 * How a model is opened. Immutable; start from {@link #defaults()} and change with the {@code with}
 * methods.
 *
 * @param contextLength most tokens of a session, prompt and answer together; 0 for the model's own
 *     limit or 4096, whichever is less; more than the model's own limit is cut to it, with a
 *     warning
 * @param threads worker threads; 0 for one per physical core available to the process
 * @param backend which backend runs the model
 * @param kernels which CPU kernels; {@code AUTO} takes the fastest that the machine and the flags
 *     allow and logs why
 * @param weights how CPU weights are laid out
 * @param kvType element type of the KV cache
 * @param prefillChunk most rows of one forward pass
 * @param progress hears how far loading is
 */
public record ModelOptions(
    int contextLength,
    int threads,
    Backend backend,
    Kernels kernels,
    Weights weights,
    KvType kvType,
    int prefillChunk,
    LoadProgress progress) {
  /** Backends. */
  public enum Backend {
    /** Fast CPU kernels. */
    CPU,
    /** Plain float32 Java; the oracle of the tests, very slow. */
    REFERENCE
  }

  /** CPU kernel sets. */
  public enum Kernels {
    AUTO,
    /** Plain Java. */
    SCALAR,
    /** The Vector API; needs {@code --add-modules jdk.incubator.vector}. */
    VECTOR,
    /** Emitted machine code; needs native access. */
    NATIVE
  }

  /** Weight layouts. */
  public enum Weights {
    /** Packed where that is faster and quickly done, else as mapped. */
    AUTO,
    /** As in the file, mapped: instant start. */
    MAPPED,
    /** Repacked for speed at load. */
    PACKED
  }

  /** KV cache element types. */
  public enum KvType {
    F32,
    F16,
    Q8_0
  }

  /** Hears how far loading is; called by the thread that opens the model. */
  @FunctionalInterface
  public interface LoadProgress {
    /** Hears nothing. */
    LoadProgress NONE = (done, total) -> {};

    /** {@code done} of {@code total} bytes of matrices are ready for use. */
    void prepared(long done, long total);
  }

  /** Checks ranges. */
  public ModelOptions {
    Objects.requireNonNull(backend, "backend");
    Objects.requireNonNull(kernels, "kernels");
    Objects.requireNonNull(weights, "weights");
    Objects.requireNonNull(kvType, "kvType");
    Objects.requireNonNull(progress, "progress");
    if (contextLength < 0 || threads < 0 || threads > 1024 || prefillChunk < 1) {
      throw new IllegalArgumentException(
          "out of range: contextLength="
              + contextLength
              + " threads="
              + threads
              + " prefillChunk="
              + prefillChunk);
    }
  }

  /** The defaults: CPU, everything automatic, F16 cache. */
  public static ModelOptions defaults() {
    return new ModelOptions(
        0, 0, Backend.CPU, Kernels.AUTO, Weights.AUTO, KvType.F16, 256, LoadProgress.NONE);
  }

  /** With another context length. */
  public ModelOptions withContextLength(int value) {
    return new ModelOptions(
        value, threads, backend, kernels, weights, kvType, prefillChunk, progress);
  }

  /** With another number of threads. */
  public ModelOptions withThreads(int value) {
    return new ModelOptions(
        contextLength, value, backend, kernels, weights, kvType, prefillChunk, progress);
  }

  /** With another backend. */
  public ModelOptions withBackend(Backend value) {
    return new ModelOptions(
        contextLength, threads, value, kernels, weights, kvType, prefillChunk, progress);
  }

  /** With other kernels. */
  public ModelOptions withKernels(Kernels value) {
    return new ModelOptions(
        contextLength, threads, backend, value, weights, kvType, prefillChunk, progress);
  }

  /** With another weight layout. */
  public ModelOptions withWeights(Weights value) {
    return new ModelOptions(
        contextLength, threads, backend, kernels, value, kvType, prefillChunk, progress);
  }

  /** With another cache type. */
  public ModelOptions withKvType(KvType value) {
    return new ModelOptions(
        contextLength, threads, backend, kernels, weights, value, prefillChunk, progress);
  }

  /** With another prefill chunk. */
  public ModelOptions withPrefillChunk(int value) {
    return new ModelOptions(
        contextLength, threads, backend, kernels, weights, kvType, value, progress);
  }

  /** With a listener. */
  public ModelOptions withProgress(LoadProgress value) {
    return new ModelOptions(
        contextLength, threads, backend, kernels, weights, kvType, prefillChunk, value);
  }
}
