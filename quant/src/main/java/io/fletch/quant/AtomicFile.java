package io.fletch.quant;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * A file that appears under its name only when it is complete: it is written beside its target
 * under a temporary name, forced to the disk, and renamed. Closing it before {@link #commit} leaves
 * nothing behind. Confined to one thread.
 *
 * <p>A process that is killed leaves the temporary file. It is locked while it is written, so the
 * next writer of the same target knows that nobody writes it any more, and removes it. Where files
 * cannot be locked it stays.
 */
final class AtomicFile implements AutoCloseable {
  /** An NIO buffer cannot be larger than 2 GiB; a piece this large costs nothing per byte. */
  private static final long PIECE = 64L << 20;

  /** Temporary files of this process: the system does not tell its own locks apart. */
  private static final Set<Path> OWN = ConcurrentHashMap.newKeySet();

  private static final String SUFFIX = "[0-9a-f]{16}";

  private final Path target;
  private final Path temporary;
  private final FileChannel channel;
  private boolean complete;
  private boolean moved;

  /** Removes what killed writers of the target left, and begins a file. */
  AtomicFile(Path target) throws IOException {
    this(target, true);
  }

  /**
   * Begins a file.
   *
   * @param clean whether to look for leftovers, which lists the folder: not for each of thousands
   *     of files in one that is removed as a whole
   */
  AtomicFile(Path target, boolean clean) throws IOException {
    this.target = target.toAbsolutePath();
    if (clean) {
      removeLeftovers(this.target);
    }
    Begun begun = begin(this.target);
    while (!begun.isOurs()) {
      begun.channel.close();
      OWN.remove(begun.path);
      begun = begin(this.target);
    }
    temporary = begun.path;
    channel = begun.channel;
  }

  /** A temporary file and the channel that writes it, not yet known to be kept. */
  record Begun(Path path, FileChannel channel) {
    /**
     * Locks it until the channel is closed; false if another writer took it for a leftover before.
     * Where files cannot be locked nobody does.
     */
    boolean isOurs() {
      try {
        return channel.tryLock() != null && Files.exists(path);
      } catch (IOException _) {
        return true;
      }
    }
  }

  static Begun begin(Path target) throws IOException {
    String suffix = HexFormat.of().toHexDigits(ThreadLocalRandom.current().nextLong());
    Path path = target.resolveSibling("." + target.getFileName() + "." + suffix + ".tmp");
    OWN.add(path);
    try {
      return new Begun(
          path, FileChannel.open(path, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE));
    } catch (IOException | RuntimeException e) {
      OWN.remove(path);
      throw e;
    }
  }

  /** Removes temporary files of the target that died with their writers. */
  private static void removeLeftovers(Path target) {
    String name = Pattern.quote("." + target.getFileName() + ".") + SUFFIX + "\\.tmp";
    List<Path> left = new ArrayList<>();
    try (Stream<Path> files = Files.list(target.getParent())) {
      files
          .filter(p -> p.getFileName().toString().matches(name))
          .filter(p -> Files.isRegularFile(p, LinkOption.NOFOLLOW_LINKS))
          .forEach(left::add);
    } catch (IOException | UncheckedIOException _) {
      return; // A folder that lists nothing can still take files.
    }
    for (Path file : left) {
      if (!OWN.contains(file)) {
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
          if (channel.tryLock() != null) {
            Files.deleteIfExists(file);
          }
        } catch (IOException | OverlappingFileLockException _) {
          // Somebody else's, or gone: not what the new file needs.
        }
      }
    }
  }

  /** Bytes written so far. */
  long position() throws IOException {
    return channel.position();
  }

  void write(byte[] bytes) throws IOException {
    writeAll(ByteBuffer.wrap(bytes));
  }

  void write(MemorySegment bytes) throws IOException {
    for (long at = 0; at < bytes.byteSize(); at += PIECE) {
      MemorySegment piece = bytes.asSlice(at, Math.min(PIECE, bytes.byteSize() - at));
      writeAll(
          piece.isNative()
              ? piece.asByteBuffer()
              : ByteBuffer.wrap(piece.toArray(ValueLayout.JAVA_BYTE)));
    }
  }

  private void writeAll(ByteBuffer buffer) throws IOException {
    while (buffer.hasRemaining()) {
      channel.write(buffer);
    }
  }

  /** Writes zeros up to a multiple of {@code alignment}. */
  void pad(long alignment) throws IOException {
    long count = -channel.position() & alignment - 1;
    byte[] zeros = new byte[(int) Math.min(count, 1 << 16)];
    for (long left = count; left > 0; left -= zeros.length) {
      writeAll(ByteBuffer.wrap(zeros, 0, (int) Math.min(left, zeros.length)));
    }
  }

  /**
   * Overwrites the first bytes, which until now kept the file from being taken for a whole one, and
   * ends writing.
   */
  void complete(byte[] start) throws IOException {
    ByteBuffer buffer = ByteBuffer.wrap(start);
    for (long at = 0; buffer.hasRemaining(); ) {
      at += channel.write(buffer, at);
    }
    channel.force(true);
    complete = true;
  }

  /** Gives the file its name, replacing a file that has it. */
  void commit() throws IOException {
    if (!complete) {
      throw new IllegalStateException("not complete: " + temporary);
    }
    Files.move(temporary, target, StandardCopyOption.ATOMIC_MOVE);
    moved = true;
    channel.close();
  }

  @Override
  public void close() throws IOException {
    try {
      channel.close();
    } finally {
      if (!moved) {
        Files.deleteIfExists(temporary);
      }
      OWN.remove(temporary);
    }
  }
}
