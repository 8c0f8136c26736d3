package io.fletch.quant;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;

/**
 * A file that appears under its name only when it is complete: it is written beside its target as a
 * {@link TemporaryFile}, forced to the disk, and renamed. Closing it before {@link #commit} leaves
 * nothing behind; what a killed process left is removed by the next writer of the same target.
 * Confined to one thread.
 */
public final class AtomicFile implements AutoCloseable {
  /** An NIO buffer cannot be larger than 2 GiB; a piece this large costs nothing per byte. */
  private static final long PIECE = 64L << 20;

  private final Path target;
  private final TemporaryFile temporary;
  private final FileChannel channel;
  private boolean complete;

  /** Removes what killed writers of the target left, and begins a file. */
  public AtomicFile(Path target) throws IOException {
    this(target, true, false);
  }

  /**
   * Begins a file.
   *
   * @param clean whether to look for leftovers, which lists the folder: not for each of thousands
   *     of files in one that is removed as a whole
   */
  AtomicFile(Path target, boolean clean) throws IOException {
    this(target, clean, false);
  }

  private AtomicFile(Path target, boolean clean, boolean isPrivate) throws IOException {
    this.target = target.toAbsolutePath();
    if (clean) {
      TemporaryFile.removeLeftovers(this.target);
    }
    temporary = TemporaryFile.beside(this.target, isPrivate);
    channel = temporary.channel();
  }

  /** As {@link #AtomicFile(Path)}; other users must not read the file. */
  public static AtomicFile ofOwner(Path target) throws IOException {
    return new AtomicFile(target, true, true);
  }

  /** Bytes written so far. */
  long position() throws IOException {
    return channel.position();
  }

  /** Appends. */
  public void write(byte[] bytes) throws IOException {
    write(ByteBuffer.wrap(bytes));
  }

  void write(MemorySegment bytes) throws IOException {
    for (long at = 0; at < bytes.byteSize(); at += PIECE) {
      MemorySegment piece = bytes.asSlice(at, Math.min(PIECE, bytes.byteSize() - at));
      write(
          piece.isNative()
              ? piece.asByteBuffer()
              : ByteBuffer.wrap(piece.toArray(ValueLayout.JAVA_BYTE)));
    }
  }

  /** Appends what remains of a buffer. */
  public void write(ByteBuffer buffer) throws IOException {
    try {
      while (buffer.hasRemaining()) {
        channel.write(buffer);
      }
    } catch (IOException e) {
      // What the system says, such as that a disk is full, has no name.
      throw new IOException(target + ": " + e.getMessage(), e);
    }
  }

  /** Writes zeros up to a multiple of {@code alignment}. */
  void pad(long alignment) throws IOException {
    long count = -channel.position() & alignment - 1;
    byte[] zeros = new byte[(int) Math.min(count, 1 << 16)];
    for (long left = count; left > 0; left -= zeros.length) {
      write(ByteBuffer.wrap(zeros, 0, (int) Math.min(left, zeros.length)));
    }
  }

  /**
   * Overwrites the first bytes, which until now kept the file from being taken for a whole one, and
   * ends writing.
   */
  public void complete(byte[] start) throws IOException {
    ByteBuffer buffer = ByteBuffer.wrap(start);
    for (long at = 0; buffer.hasRemaining(); ) {
      at += channel.write(buffer, at);
    }
    channel.force(true);
    complete = true;
  }

  /** Gives the file its name, replacing a file that has it. */
  public void commit() throws IOException {
    if (!complete) {
      throw new IllegalStateException("not complete: " + target);
    }
    temporary.moveTo(target);
  }

  @Override
  public void close() throws IOException {
    temporary.close();
  }
}
