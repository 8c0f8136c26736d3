package io.fletch.ffm;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/**
 * A file mapped as a whole, of any size. The mapping is private (copy-on-write), so that a stray
 * write changes neither the file nor, as a write to a read-only mapping would, ends the process.
 *
 * <p>Usable by any thread until {@link #close()}, which is costly (it stops all threads once) and
 * must be called exactly once. Truncating the file while it is mapped is undefined: the JVM reports
 * it as an {@link InternalError} on access.
 */
public final class MappedFile implements AutoCloseable {
  private final Path path;
  private final Arena arena;
  private final MemorySegment segment;

  private MappedFile(Path path, Arena arena, MemorySegment segment) {
    this.path = path;
    this.arena = arena;
    this.segment = segment;
  }

  /**
   * Maps a regular file.
   *
   * @throws UncheckedIOException if it cannot be opened or mapped, or is not a regular file
   */
  public static MappedFile open(Path path) {
    Arena arena = Arena.ofShared();
    try {
      if (!Files.isRegularFile(path)) {
        throw new IOException(
            (Files.exists(path) ? "not a regular file: " : "no such file: ") + path);
      }
      try (FileChannel channel =
          FileChannel.open(path, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
        return map(path, arena, channel);
      } catch (java.nio.file.FileSystemException e) {
        // PRIVATE wants a writable channel; a file that we may only read is mapped read-only.
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
          return new MappedFile(
              path, arena, channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size(), arena));
        }
      }
    } catch (IOException e) {
      arena.close();
      throw new UncheckedIOException(e);
    } catch (RuntimeException | Error e) {
      arena.close();
      throw e;
    }
  }

  private static MappedFile map(Path path, Arena arena, FileChannel channel) throws IOException {
    return new MappedFile(
        path, arena, channel.map(FileChannel.MapMode.PRIVATE, 0, channel.size(), arena));
  }

  /** The file. */
  public Path path() {
    return path;
  }

  /** All bytes of the file. */
  public MemorySegment segment() {
    return segment;
  }

  /**
   * Takes the pages read so far out of the memory of this process; the system keeps them cached
   * while it has room, so reading them again is cheap. Changes nothing that can be seen in {@link
   * #segment()}, apart from stray writes, which are undone. Does nothing without native access.
   */
  public void dropPages() {
    if (NativeAccess.libc() && segment.byteSize() > 0) {
      // An advice: what the system does not take it leaves.
      Libc.madvise(segment.address(), segment.byteSize(), Libc.MADV_DONTNEED);
    }
  }

  @Override
  public void close() {
    arena.close();
  }
}
