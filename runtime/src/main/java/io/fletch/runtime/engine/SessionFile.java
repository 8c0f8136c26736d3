package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.graph.KvCache;
import io.fletch.quant.AtomicFile;
import java.io.EOFException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.channels.WritableByteChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.zip.CRC32C;

/**
 * A session in a file. Little-endian:
 *
 * <pre>
 *    0  u8[8]   "FLTSESS2"
 *    8  u8[32]  identity of the model with the adapters of the session
 *   40  u32     bytes of the layout's name, 1 to 64
 *   44  u32     tokens n
 *   48  u64     bytes of keys and values per token
 *   56  u32     leading tokens that all units have computed
 *   60          layout of keys and values (UTF-8), tokens (i32 each), keys and values
 *  end  u32     CRC-32C of all before
 * </pre>
 *
 * A file is written beside its target, forced to the disk and then moved onto it, so that a reader
 * sees the old or the new one; where files have permissions only its owner can read it. It is read
 * twice: its checksum is right before anything of the session changes. Stateless.
 */
final class SessionFile {
  private static final byte[] MAGIC = "FLTSESS2".getBytes(StandardCharsets.US_ASCII);
  private static final int FIXED = 60;
  private static final int MOST_LAYOUT = 64;
  private static final int BUFFER = 1 << 16;

  private SessionFile() {}

  /** Writes keys and values of the first {@code length} tokens. */
  static void save(Path target, byte[] identity, GraphForward forward) {
    Path absolute = target.toAbsolutePath();
    try {
      if (absolute.getParent() == null) {
        throw new FletchException(target + ": expected=a file actual=a root folder");
      }
      // What was said to a model is its user's.
      try (AtomicFile file = AtomicFile.ofOwner(absolute)) {
        write(file, identity, forward);
        file.complete(new byte[0]);
        file.commit();
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static void write(AtomicFile file, byte[] identity, GraphForward forward)
      throws IOException {
    CRC32C sum = new CRC32C();
    WritableByteChannel summed =
        new WritableByteChannel() {
          @Override
          public int write(ByteBuffer bytes) throws IOException {
            ByteBuffer same = bytes.duplicate();
            int n = bytes.remaining();
            file.write(bytes);
            sum.update(same);
            return n;
          }

          @Override
          public boolean isOpen() {
            return true;
          }

          @Override
          public void close() {}
        };
    byte[] layout = forward.kv().layout().getBytes(StandardCharsets.UTF_8);
    int n = forward.length();
    ByteBuffer head = buffer(FIXED + layout.length + n * Integer.BYTES);
    head.put(MAGIC).put(identity).putInt(layout.length).putInt(n);
    head.putLong(forward.kv().slotBytes()).putInt(forward.dense()).put(layout);
    for (int i = 0; i < n; i++) {
      head.putInt(forward.token(i));
    }
    KvCache.write(head.flip(), summed);
    forward.kv().save(n, summed);
    ByteBuffer end = buffer(Integer.BYTES).putInt((int) sum.getValue()).flip();
    file.write(end);
  }

  private static ByteBuffer buffer(int bytes) {
    return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
  }

  /**
   * Replaces what the forward holds.
   *
   * @throws FletchException for a damaged file, or one of another model or type of cache; the
   *     forward is as before then
   */
  static void restore(Path source, byte[] identity, GraphForward forward, int vocabulary) {
    try (FileChannel file = FileChannel.open(source, StandardOpenOption.READ)) {
      long size = file.size();
      check(source, "bytes", ">=" + (FIXED + 5), size >= FIXED + 5, size);
      ByteBuffer head = read(file, 0, FIXED);
      byte[] magic = new byte[MAGIC.length];
      head.get(magic);
      check(
          source,
          "beginning",
          "FLTSESS2",
          Arrays.equals(magic, MAGIC),
          new String(magic, StandardCharsets.ISO_8859_1).replaceAll("[^ -~]", "?"));
      byte[] model = new byte[identity.length];
      head.get(model);
      check(
          source, "model and adapters", hex(identity), Arrays.equals(model, identity), hex(model));
      int nameBytes = head.getInt();
      int n = head.getInt();
      long slotBytes = head.getLong();
      int dense = head.getInt();
      check(source, "dense tokens", "[0, " + n + "]", dense >= 0 && dense <= n, dense);
      check(
          source,
          "bytes of the layout",
          "[1, " + MOST_LAYOUT + "]",
          nameBytes >= 1 && nameBytes <= MOST_LAYOUT,
          nameBytes);
      check(
          source,
          "tokens",
          "[0, " + forward.capacity() + "]",
          n >= 0 && n <= forward.capacity(),
          n);
      long expected = forward.kv().slotBytes();
      String layout = forward.kv().layout();
      String name = new String(read(file, FIXED, nameBytes).array(), StandardCharsets.UTF_8);
      check(source, "KV cache", layout, name.equals(layout), name.replaceAll("[^ -~]", "?"));
      check(source, "bytes per token", expected, slotBytes == expected, slotBytes);
      long all = FIXED + nameBytes + n * (Integer.BYTES + slotBytes) + Integer.BYTES;
      check(source, "bytes", all, size == all, size);
      checkSum(source, file, size);
      ByteBuffer ids = read(file, FIXED + nameBytes, n * Integer.BYTES);
      int[] tokens = new int[n];
      for (int i = 0; i < n; i++) {
        tokens[i] = ids.getInt();
        check(
            source,
            "token " + i,
            "[0, " + vocabulary + ")",
            tokens[i] >= 0 && tokens[i] < vocabulary,
            tokens[i]);
      }
      file.position(FIXED + nameBytes + (long) n * Integer.BYTES);
      forward.load(tokens, dense, file);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static void checkSum(Path source, FileChannel file, long size) throws IOException {
    CRC32C sum = new CRC32C();
    ByteBuffer part = buffer(BUFFER);
    long left = size - Integer.BYTES;
    for (long at = 0; left > 0; ) {
      part.clear().limit((int) Math.min(BUFFER, left));
      int n = file.read(part, at);
      if (n < 0) {
        throw new EOFException(source + ": the file became shorter while it was read");
      }
      sum.update(part.flip());
      at += n;
      left -= n;
    }
    int stored = read(file, size - Integer.BYTES, Integer.BYTES).getInt();
    int actual = (int) sum.getValue();
    check(
        source,
        "checksum",
        Integer.toHexString(stored),
        stored == actual,
        Integer.toHexString(actual));
  }

  private static ByteBuffer read(FileChannel file, long from, int bytes) throws IOException {
    ByteBuffer out = buffer(bytes);
    while (out.hasRemaining()) {
      if (file.read(out, from + out.position()) < 0) {
        throw new EOFException("the file became shorter while it was read");
      }
    }
    return out.flip();
  }

  private static String hex(byte[] bytes) {
    return HexFormat.of().formatHex(bytes, 0, 8);
  }

  private static void check(Path source, String what, Object expected, boolean ok, Object actual) {
    if (!ok) {
      throw new FletchException(
          source + ": " + what + ": expected=" + expected + " actual=" + actual);
    }
  }
}
