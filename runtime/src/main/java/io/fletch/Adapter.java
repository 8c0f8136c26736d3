package io.fletch;

import java.nio.file.Path;
import java.util.List;
import java.util.Objects;

/**
 * A low-rank adapter (LoRA, rsLoRA, DoRA, NLoRA, exported Uni-LoRA) that is registered with an open
 * model ({@link Model#adapter}), for sessions that list it ({@link Session#adapters(List)}). The
 * model's weights stay as they are; sessions with different adapters, and without, share forward
 * passes.
 *
 * <p>Immutable and thread-safe. It takes {@link #bytes} of memory until it is closed, or its model
 * is.
 */
public interface Adapter extends AutoCloseable {
  /** The model that it is for. */
  Model model();

  /** Its number within the model: 0 for the first that was registered, never used again. */
  int id();

  /**
   * Name for people: that of its file or folder without ending, with a number behind it where an
   * open adapter of the model has that name already.
   */
  String name();

  /** Where it was read from. */
  Path path();

  /** The largest rank of its matrices. */
  int rank();

  /** The layers that it changes, as GGUF files name them, for example {@code blk.0.attn_q}. */
  List<String> targets();

  /** SHA-256 of its files, hexadecimal. */
  String hash();

  /** Bytes of memory that its matrices take. */
  long bytes();

  /** This adapter with a scale. */
  default Scaled scaled(float scale) {
    return new Scaled(this, scale);
  }

  /**
   * Releases its memory. Closing it again does nothing.
   *
   * @throws IllegalStateException if a session lists it, in use or not: those that wait in a pool
   *     are closed by {@link SessionPool#evict}
   */
  @Override
  void close();

  /**
   * An adapter of a session.
   *
   * @param adapter the adapter
   * @param scale multiplies the adapter's own scale; finite, 0 for nothing
   */
  record Scaled(Adapter adapter, float scale) {
    /** Refuses what is not a number. */
    public Scaled {
      Objects.requireNonNull(adapter, "adapter");
      if (!Float.isFinite(scale)) {
        throw new IllegalArgumentException(
            adapter.name() + ": scale: expected=finite actual=" + scale);
      }
    }
  }
}
