package io.fletch.quant;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.concurrent.ThreadLocalRandom;

/**
 * A file that appears under its name only when it is complete: it is written beside its target
 * under a temporary name, forced to the disk, and renamed. Closing it before {@link #commit} leaves
 * nothing behind. Confined to one thread.
 */
final class AtomicFile implements AutoCloseable {
  /** An NIO buffer cannot be larger than 2 GiB; a piece this large costs nothing per byte. */
  private static final long PIECE = 64L << 20;

  private final Path target;
  private final Path temporary;
  private final FileChannel channel;
  private boolean complete;
  private boolean moved;

  AtomicFile(Path target) throws IOException {
    this.target = target.toAbsolutePath();
    String suffix = Long.toUnsignedString(ThreadLocalRandom.current().nextLong(), 36);
    this.temporary =
        this.target.resolveSibling("." + this.target.getFileName() + "." + suffix + ".tmp");
    this.channel =
        FileChannel.open(temporary, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE);
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
    channel.close();
    complete = true;
  }

  /** Gives the file its name, replacing a file that has it. */
  void commit() throws IOException {
    if (!complete) {
      throw new IllegalStateException("not complete: " + temporary);
    }
    Files.move(temporary, target, StandardCopyOption.ATOMIC_MOVE);
    moved = true;
  }

  @Override
  public void close() throws IOException {
    try {
      channel.close();
    } finally {
      if (!moved) {
        Files.deleteIfExists(temporary);
      }
    }
  }
}
