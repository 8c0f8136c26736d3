package io.fletch.quant;

import io.fletch.ffm.MappedFile;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.zip.CRC32C;
import org.apache.arrow.memory.ArrowBuf;

/**
 * A file of packed matrices, mapped: a cache that its program wrote and may always write anew. What
 * the bytes of a matrix mean is the affair of the kernels that packed it.
 *
 * <p>All numbers are little-endian:
 *
 * <pre>
 *    0  8 bytes  "FLTPACK1"
 *    8  u32      CRC-32C of the header from byte 12 on
 *   12  u32      bytes of the header
 *   16  u64      bytes of the file
 *   24  text     identity of the source and of the layout (text: u16 bytes, then UTF-8)
 *       u32      number of matrices
 *       matrix:  text name, text kernel, u64 offset, u64 bytes, u64 bytes of a chunk,
 *                u32 CRC-32C of each chunk
 *   ..  zeros up to {@link #DATA}, or the next multiple of it
 *   ..  matrices, each from a multiple of {@link #ALIGNMENT}, in order, without overlap
 * </pre>
 *
 * <p>The writer puts the header there last, waits until all of it is on the disk, and only then
 * gives the file its name. Reading checks the header, its checksum and the length of the file;
 * {@link #verify} checks a chunk of data. Immutable; safe for use by several threads until closed.
 */
public final class PackedFile implements AutoCloseable {
  /** The data of the first matrix starts at a multiple of this: a huge page. */
  public static final long DATA = 2L << 20;

  /** Matrices start at multiples of this: a page. */
  public static final long ALIGNMENT = 4096;

  static final byte[] MAGIC = "FLTPACK1".getBytes(StandardCharsets.US_ASCII);
  static final int CHECKED_FROM = 12;

  private static final int FIXED = 24;
  private static final int MAX_HEADER = 64 << 20;

  /**
   * A matrix of a packed file.
   *
   * @param name of the tensor
   * @param kernel that packed it, and for which it is
   * @param offset of its first byte in the file
   * @param bytes its length
   * @param chunk bytes that one checksum covers (the last chunk may be shorter)
   */
  public record Entry(String name, String kernel, long offset, long bytes, long chunk) {
    /** Number of chunks. */
    public int chunks() {
      return Math.toIntExact((bytes + chunk - 1) / chunk);
    }
  }

  private final ArrowMemory memory = new ArrowMemory();
  private final Path path;
  private final MemorySegment segment;
  private final ArrowBuf buffer;
  private final MappedFile file;
  private final String identity;
  private final List<Entry> entries;
  private final List<int[]> checksums;

  private PackedFile(MappedFile file, Header header) {
    this.file = file;
    path = file.path();
    segment = file.segment();
    identity = header.identity;
    entries = List.copyOf(header.entries);
    checksums = header.checksums;
    buffer = memory.wrap(segment, file::close);
  }

  /**
   * Maps a file and checks its header.
   *
   * @throws WeightFileException if it is not a whole, undamaged file of this format
   * @throws UncheckedIOException if it cannot be read
   */
  public static PackedFile open(Path path) {
    long size;
    try {
      size = Files.size(path);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    if (size < FIXED) {
      throw new WeightFileException(path + ": bytes: expected>=" + FIXED + " actual=" + size);
    }
    MappedFile file = MappedFile.open(path);
    Header header;
    try {
      header = new Header(path, file.segment());
    } catch (RuntimeException | Error e) {
      file.close();
      throw e;
    }
    return new PackedFile(file, header);
  }

  /** The file. */
  public Path path() {
    return path;
  }

  /** What the writer called the source and the layout. */
  public String identity() {
    return identity;
  }

  /** The matrices, in order. */
  public List<Entry> entries() {
    return entries;
  }

  /** The bytes of a matrix as a tensor of bytes; lives until this file is closed. */
  public Tensor tensor(int index) {
    Entry e = entries.get(index);
    return new Tensor(
        e.name,
        TensorType.I8,
        new long[] {e.bytes},
        buffer.slice(e.offset, e.bytes),
        segment.asSlice(e.offset, e.bytes));
  }

  /** Whether the bytes of a chunk are those that were written. */
  public boolean verify(int index, int chunk) {
    Entry e = entries.get(index);
    Objects.checkIndex(chunk, e.chunks());
    long from = chunk * e.chunk;
    MemorySegment bytes = segment.asSlice(e.offset + from, Math.min(e.chunk, e.bytes - from));
    return checksum(bytes) == checksums.get(index)[chunk];
  }

  /** CRC-32C of native bytes, which the JVM computes at the speed of memory. */
  static int checksum(MemorySegment bytes) {
    CRC32C crc = new CRC32C();
    long piece = 1 << 30;
    for (long at = 0; at < bytes.byteSize(); at += piece) {
      crc.update(bytes.asSlice(at, Math.min(piece, bytes.byteSize() - at)).asByteBuffer());
    }
    return (int) crc.getValue();
  }

  /** As {@link MappedFile#dropPages}. */
  public void dropPages() {
    file.dropPages();
  }

  @Override
  public void close() {
    memory.close();
  }

  /** The bytes of a header, with everything but its data. */
  static byte[] header(String identity, long fileBytes, List<Entry> entries, List<int[]> sums) {
    int bytes = FIXED + text(identity).length + 2 + 4;
    for (Entry e : entries) {
      bytes =
          Math.addExact(
              bytes, 2 + text(e.name).length + 2 + text(e.kernel).length + 24 + 4 * e.chunks());
    }
    ByteBuffer b = ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    b.put(MAGIC).putInt(0).putInt(bytes).putLong(fileBytes);
    put(b, identity);
    b.putInt(entries.size());
    for (int i = 0; i < entries.size(); i++) {
      Entry e = entries.get(i);
      put(b, e.name);
      put(b, e.kernel);
      b.putLong(e.offset).putLong(e.bytes).putLong(e.chunk);
      for (int sum : sums.get(i)) {
        b.putInt(sum);
      }
    }
    CRC32C crc = new CRC32C();
    crc.update(b.array(), CHECKED_FROM, bytes - CHECKED_FROM);
    b.putInt(MAGIC.length, (int) crc.getValue());
    return b.array();
  }

  private static byte[] text(String s) {
    return s.getBytes(StandardCharsets.UTF_8);
  }

  private static void put(ByteBuffer b, String s) {
    byte[] bytes = text(s);
    if (bytes.length > 0xffff) {
      throw new IllegalArgumentException("text: expected<=65535 bytes actual=" + bytes.length);
    }
    b.putShort((short) bytes.length).put(bytes);
  }

  /** Reads and checks a header; nothing of it is trusted, not even with the right checksum. */
  private static final class Header {
    private final Path path;
    private final ByteBuffer in;
    private final String identity;
    private final List<Entry> entries = new ArrayList<>();
    private final List<int[]> checksums = new ArrayList<>();

    Header(Path path, MemorySegment file) {
      this.path = path;
      long fileBytes = file.byteSize();
      byte[] magic = file.asSlice(0, MAGIC.length).toArray(ValueLayout.JAVA_BYTE);
      check(
          Arrays.equals(magic, MAGIC),
          "magic",
          new String(MAGIC, StandardCharsets.US_ASCII),
          "other bytes");
      long bytes = file.get(ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN), 12);
      check(
          bytes >= FIXED + 6 && bytes <= Math.min(fileBytes, MAX_HEADER),
          "header bytes",
          "within the file",
          bytes);
      in =
          ByteBuffer.wrap(file.asSlice(0, bytes).toArray(ValueLayout.JAVA_BYTE))
              .order(ByteOrder.LITTLE_ENDIAN);
      CRC32C crc = new CRC32C();
      crc.update(in.array(), CHECKED_FROM, (int) bytes - CHECKED_FROM);
      check(
          in.getInt(MAGIC.length) == (int) crc.getValue(),
          "header checksum",
          (int) crc.getValue(),
          in.getInt(MAGIC.length));
      check(in.getLong(16) == fileBytes, "file bytes", in.getLong(16), fileBytes);
      in.position(FIXED);
      identity = text();
      need(4);
      int count = in.getInt();
      long end = Math.ceilDiv(bytes, DATA) * DATA;
      for (int i = 0; i < count; i++) {
        end = entry(end, fileBytes);
      }
      check(count >= 0 && !in.hasRemaining(), "header", "no further bytes", in.remaining());
      check(end == fileBytes, "end of the data", fileBytes, end);
    }

    private long entry(long from, long fileBytes) {
      String name = text();
      String kernel = text();
      need(24);
      Entry e = new Entry(name, kernel, in.getLong(), in.getLong(), in.getLong());
      long start = Math.ceilDiv(from, ALIGNMENT) * ALIGNMENT;
      check(e.offset == start, name + ": offset", start, e.offset);
      check(
          e.bytes > 0 && e.bytes <= fileBytes - start,
          name + ": bytes",
          "within the file",
          e.bytes);
      check(
          e.chunk > 0 && e.chunk <= e.bytes && Math.ceilDiv(e.bytes, e.chunk) <= in.remaining() / 4,
          name + ": bytes of a chunk",
          "a checksum for each",
          e.chunk);
      int[] sums = new int[e.chunks()];
      for (int i = 0; i < sums.length; i++) {
        sums[i] = in.getInt();
      }
      entries.add(e);
      checksums.add(sums);
      return e.offset + e.bytes;
    }

    private String text() {
      need(2);
      int bytes = in.getShort() & 0xffff;
      need(bytes);
      byte[] b = new byte[bytes];
      in.get(b);
      return new String(b, StandardCharsets.UTF_8);
    }

    private void need(int bytes) {
      check(
          in.remaining() >= bytes,
          "header",
          "at least " + bytes + " further bytes",
          in.remaining());
    }

    private void check(boolean ok, String field, Object expected, Object actual) {
      if (!ok) {
        throw new WeightFileException(
            path + ": " + field + ": expected=" + expected + " actual=" + actual);
      }
    }
  }
}
