package io.fletch.tools;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CoderResult;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;

/** Small things about texts that several commands need. */
final class Texts {
  private static final String[] UNITS = {"B", "KiB", "MiB", "GiB", "TiB"};

  private Texts() {}

  /**
   * The content of a file as UTF-8, bytes that are not becoming U+FFFD; {@code -} is standard
   * input.
   */
  static String read(String file, Io io) throws IOException {
    return file.equals("-")
        ? io.readAll()
        : new String(bytes(Path.of(file)), StandardCharsets.UTF_8);
  }

  /**
   * The content of a file as UTF-8.
   *
   * @throws CommandException naming the file if it is anything else
   */
  static String readStrict(Path file) throws IOException {
    byte[] bytes = bytes(file);
    ByteBuffer in = ByteBuffer.wrap(bytes);
    CharBuffer out = CharBuffer.allocate(bytes.length);
    CoderResult result = StandardCharsets.UTF_8.newDecoder().decode(in, out, true);
    if (result.isError()) {
      throw new CommandException(file + ": not valid UTF-8 at byte " + in.position());
    }
    return out.flip().toString();
  }

  private static byte[] bytes(Path file) throws IOException {
    if (Files.isDirectory(file)) {
      throw new CommandException(file + ": expected=a file actual=a folder");
    }
    return Files.readAllBytes(file);
  }

  /** A size with a binary unit, for example {@code 5.1 MiB}. */
  static String bytes(long bytes) {
    double value = bytes;
    int unit = 0;
    while (value >= 1024 && unit < UNITS.length - 1) {
      value /= 1024;
      unit++;
    }
    return unit == 0 ? bytes + " B" : format("%.1f %s", value, UNITS[unit]);
  }

  /** A count with a decimal unit, for example {@code 4.9 M}. */
  static String count(long count) {
    if (count < 1000) {
      return Long.toString(count);
    }
    double value = count;
    String units = " kMGT";
    int unit = 0;
    while (value >= 1000 && unit < units.length() - 1) {
      value /= 1000;
      unit++;
    }
    return format("%.1f %s", value, units.charAt(unit));
  }

  /** Formats in the C locale's form. */
  static String format(String format, Object... arguments) {
    return String.format(Locale.ROOT, format, arguments);
  }
}
