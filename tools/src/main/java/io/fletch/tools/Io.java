package io.fletch.tools;

import java.io.BufferedOutputStream;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Set;

/**
 * The standard streams of one run of the program: UTF-8 whatever the locale says, and a write that
 * fails is an exception rather than a flag that nobody reads ({@link java.io.PrintStream} swallows
 * it). Used by the thread of the command; {@link #status} may also be called by the progress line's
 * thread.
 */
final class Io {
  /** The descriptors that can be terminals. */
  enum Stream {
    IN,
    OUT,
    ERR
  }

  /** Standard output cannot be written. */
  static final class OutputException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    OutputException(IOException cause) {
      super("cannot write to standard output: " + cause.getMessage(), cause);
    }

    /** Whether the reader of a pipe went away, which is its right. */
    boolean isBrokenPipe() {
      String message = getCause().getMessage();
      return message != null && message.contains("Broken pipe");
    }
  }

  private final BufferedReader in;
  private final OutputStream out;
  private final OutputStream err;
  private final Set<Stream> terminals;
  private final boolean isDumb;

  Io(InputStream in, OutputStream out, OutputStream err, Set<Stream> terminals) {
    this(in, out, err, terminals, false);
  }

  /**
   * Streams.
   *
   * @param isDumb whether the terminal cannot draw over what it shows
   */
  Io(InputStream in, OutputStream out, OutputStream err, Set<Stream> terminals, boolean isDumb) {
    this.isDumb = isDumb;
    this.in = new BufferedReader(new InputStreamReader(in, StandardCharsets.UTF_8));
    this.out = new BufferedOutputStream(out, 1 << 14);
    this.err = err;
    this.terminals = Set.copyOf(terminals);
  }

  /**
   * The streams of the process. Which of them are terminals comes from the launcher (property
   * {@code fletch.tty}, digits of descriptors): asking {@link System#console()} loads a console
   * provider, and cannot tell the three apart.
   */
  static Io system() {
    String tty = System.getProperty("fletch.tty");
    Set<Stream> terminals = java.util.EnumSet.noneOf(Stream.class);
    for (Stream stream : Stream.values()) {
      if (tty == null
          ? System.console() != null && System.console().isTerminal()
          : tty.indexOf('0' + stream.ordinal()) >= 0) {
        terminals.add(stream);
      }
    }
    return new Io(
        new FileInputStream(FileDescriptor.in),
        new FileOutputStream(FileDescriptor.out),
        new FileOutputStream(FileDescriptor.err),
        terminals,
        "dumb".equals(System.getenv("TERM")));
  }

  /** Whether a stream is a terminal that understands escape sequences. */
  boolean isScreen(Stream stream) {
    return isTerminal(stream) && !isDumb;
  }

  /** Whether a stream is a terminal. */
  boolean isTerminal(Stream stream) {
    return terminals.contains(stream);
  }

  /** The next line of standard input without its end, or null at its end. */
  String readLine() throws IOException {
    return in.readLine();
  }

  /** All that is left of standard input. */
  String readAll() throws IOException {
    StringBuilder text = new StringBuilder();
    char[] buffer = new char[1 << 14];
    for (int n; (n = in.read(buffer)) >= 0; ) {
      text.append(buffer, 0, n);
    }
    return text.toString();
  }

  /** Writes text to standard output; it may stay in the buffer until {@link #flush()}. */
  void print(String text) {
    try {
      out.write(text.getBytes(StandardCharsets.UTF_8));
    } catch (IOException e) {
      throw new OutputException(e);
    }
  }

  /** Writes text to standard output at once. */
  void show(String text) {
    print(text);
    flush();
  }

  /** Writes a line to standard output. */
  void println(String text) {
    print(text);
    print("\n");
  }

  /** Writes a formatted line to standard output; numbers in the C locale's form. */
  void printf(String format, Object... arguments) {
    println(String.format(java.util.Locale.ROOT, format, arguments));
  }

  /** Hands everything written to the system. */
  void flush() {
    try {
      out.flush();
    } catch (IOException e) {
      throw new OutputException(e);
    }
  }

  /** Writes a line to standard error, after what was printed before it. */
  void note(String text) {
    flush();
    status(text + "\n");
  }

  /**
   * Writes text to standard error as it is. A standard error that is closed is nobody's concern.
   */
  void status(String text) {
    try {
      err.write(text.getBytes(StandardCharsets.UTF_8));
      err.flush();
    } catch (IOException _) {
      // There is no other place to say it.
    }
  }
}
