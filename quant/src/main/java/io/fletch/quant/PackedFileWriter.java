package io.fletch.quant;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;

/**
 * Writes a {@link PackedFile} under a temporary name, which it loses only in {@link #publish}, when
 * every byte is on the disk: whoever finds the file under its own name finds all of it.
 *
 * <p>Matrices are declared first, then their chunks are written in any order by any threads, each
 * exactly once; the rest is for one thread. After {@link #finish} the temporary file can be opened
 * as a {@link PackedFile}, and stays the same when it gets its name.
 */
public final class PackedFileWriter implements AutoCloseable {
  private final Path target;
  private final Path temporary;
  private final FileChannel channel;
  private final String identity;
  private final List<PackedFile.Entry> entries;
  private final List<int[]> checksums = new ArrayList<>();
  private final long fileBytes;
  private boolean finished;
  private boolean published;

  /**
   * A matrix to write.
   *
   * @param name of the tensor
   * @param kernel that packs it
   * @param bytes its length, above 0
   * @param chunk bytes of a chunk, above 0; the last one may be shorter
   */
  public record Matrix(String name, String kernel, long bytes, long chunk) {
    /** Checks sizes; a chunk is no larger than the matrix. */
    public Matrix {
      if (bytes <= 0 || chunk <= 0) {
        throw new IllegalArgumentException("empty: bytes=" + bytes + " chunk=" + chunk);
      }
      chunk = Math.min(chunk, bytes);
    }
  }

  /**
   * Creates the temporary file.
   *
   * @param temporary does not exist, in the folder of the target
   * @throws IOException if it cannot be created
   */
  public PackedFileWriter(Path target, Path temporary, String identity, List<Matrix> matrices)
      throws IOException {
    this.target = target;
    this.temporary = temporary;
    this.identity = identity;
    List<PackedFile.Entry> none = new ArrayList<>();
    for (Matrix m : matrices) {
      none.add(new PackedFile.Entry(m.name, m.kernel, 0, m.bytes, m.chunk));
      checksums.add(new int[none.getLast().chunks()]);
    }
    // The length of the header does not depend on its numbers.
    long end = PackedFile.header(identity, 0, none, checksums).length;
    end = Math.ceilDiv(end, PackedFile.DATA) * PackedFile.DATA;
    List<PackedFile.Entry> placed = new ArrayList<>();
    for (Matrix m : matrices) {
      long start = Math.ceilDiv(end, PackedFile.ALIGNMENT) * PackedFile.ALIGNMENT;
      placed.add(new PackedFile.Entry(m.name, m.kernel, start, m.bytes, m.chunk));
      end = start + m.bytes;
    }
    fileBytes = end;
    entries = List.copyOf(placed);
    channel = FileChannel.open(temporary, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE);
  }

  /** The matrices in their places. */
  public List<PackedFile.Entry> entries() {
    return entries;
  }

  /**
   * Writes chunk {@code chunk} of matrix {@code index}; different chunks by any threads at once.
   *
   * @throws IOException if the disk is full, or fails
   */
  public void write(int index, int chunk, MemorySegment bytes) throws IOException {
    PackedFile.Entry e = entries.get(index);
    long from = chunk * e.chunk();
    long expected = Math.min(e.chunk(), e.bytes() - from);
    if (bytes.byteSize() != expected) {
      throw new IllegalArgumentException(
          e.name() + ": chunk bytes: expected=" + expected + " actual=" + bytes.byteSize());
    }
    checksums.get(index)[chunk] = PackedFile.checksum(bytes);
    put(bytes.asByteBuffer(), e.offset() + from);
  }

  private void put(ByteBuffer b, long at) throws IOException {
    long to = at;
    while (b.hasRemaining()) {
      to += channel.write(b, to);
    }
  }

  /** Writes the header, after all chunks. The file is not yet safe from a crash. */
  public void finish() throws IOException {
    put(ByteBuffer.wrap(PackedFile.header(identity, fileBytes, entries, checksums)), 0);
    finished = true;
  }

  /** Waits until the disk has everything and gives the file its name. */
  public void publish() throws IOException {
    if (!finished) {
      throw new IllegalStateException("not finished: " + temporary);
    }
    channel.force(true);
    channel.close();
    Files.move(temporary, target, StandardCopyOption.ATOMIC_MOVE);
    published = true;
  }

  /** Ends writing; a file that has not got its name is removed. */
  @Override
  public void close() throws IOException {
    try {
      channel.close();
    } finally {
      if (!published) {
        Files.deleteIfExists(temporary);
      }
    }
  }
}
