package io.fletch.tools;

import java.io.BufferedOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * Writes NumPy's {@code .npy} format, version 1.0: (1) magic {@code \x93NUMPY}, (2) the bytes 1 and
 * 0, (3) the header's length as a little-endian 16-bit number, (4) the header, a Python dictionary
 * padded with spaces and ended by a line feed so that the data begins at a multiple of 64, (5) the
 * data in C order.
 */
final class Npy {
  private static final byte[] MAGIC = {(byte) 0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};
  private static final int ALIGNMENT = 64;

  private Npy() {}

  /** Writes rows of equal length as a little-endian float32 matrix. */
  static void write(Path path, float[][] rows) throws IOException {
    int columns = rows.length == 0 ? 0 : rows[0].length;
    try (OutputStream out = new BufferedOutputStream(Files.newOutputStream(path), 1 << 16)) {
      out.write(header(rows.length, columns));
      ByteBuffer buffer = ByteBuffer.allocate(columns * Float.BYTES).order(ByteOrder.LITTLE_ENDIAN);
      for (float[] row : rows) {
        if (row.length != columns) {
          throw new IllegalArgumentException(
              "rows of different lengths: expected=" + columns + " actual=" + row.length);
        }
        buffer.clear();
        buffer.asFloatBuffer().put(row);
        out.write(buffer.array());
      }
    }
  }

  private static byte[] header(int rows, int columns) {
    String dictionary =
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + rows + ", " + columns + "), }";
    int prefix = MAGIC.length + Short.BYTES;
    int length = Math.ceilDiv(prefix + dictionary.length() + 1, ALIGNMENT) * ALIGNMENT - prefix;
    String padded = dictionary + " ".repeat(length - dictionary.length() - 1) + "\n";
    return ByteBuffer.allocate(prefix + length)
        .order(ByteOrder.LITTLE_ENDIAN)
        .put(MAGIC)
        .putShort((short) length)
        .put(padded.getBytes(StandardCharsets.US_ASCII))
        .array();
  }
}
