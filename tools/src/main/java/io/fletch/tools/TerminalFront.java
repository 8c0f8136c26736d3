package io.fletch.tools;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.jline.reader.EndOfFileException;
import org.jline.reader.LineReader;
import org.jline.reader.LineReaderBuilder;
import org.jline.reader.UserInterruptException;
import org.jline.reader.impl.DefaultParser;
import org.jline.reader.impl.completer.StringsCompleter;
import org.jline.terminal.Terminal;
import org.jline.terminal.TerminalBuilder;

/**
 * A chat at a terminal: line editing, a history that outlives the program, completion of commands,
 * and an interrupt key that stops the answer. The one class that touches JLine, loaded for
 * interactive chats only.
 */
final class TerminalFront implements ChatFront {
  private static final String PROMPT = "> ";
  private static final int HISTORY_LINES = 2000;

  private final Terminal terminal;
  private final LineReader reader;

  TerminalFront(List<String> commands) throws IOException {
    // The provider over the foreign function API needs no native library of JLine's.
    terminal =
        TerminalBuilder.builder()
            .system(true)
            .providers("ffm,exec")
            .encoding(StandardCharsets.UTF_8)
            .build();
    // Texts are not shell words: no quotes, no escapes, no history expansion.
    DefaultParser parser = new DefaultParser();
    parser.setQuoteChars(new char[0]);
    parser.setEscapeChars(new char[0]);
    parser.setEofOnUnclosedQuote(false);
    LineReaderBuilder builder =
        LineReaderBuilder.builder()
            .terminal(terminal)
            .appName("fletch")
            .parser(parser)
            .completer(new StringsCompleter(commands))
            .option(LineReader.Option.DISABLE_EVENT_EXPANSION, true)
            .variable(LineReader.HISTORY_SIZE, HISTORY_LINES)
            .variable(LineReader.HISTORY_FILE_SIZE, HISTORY_LINES);
    Path history = historyFile();
    if (history != null) {
      builder.variable(LineReader.HISTORY_FILE, history);
    }
    reader = builder.build();
  }

  /** The history below the user's state folder, or null where that cannot be made. */
  private static Path historyFile() {
    String state = System.getenv("XDG_STATE_HOME");
    Path folder =
        (state == null || state.isEmpty()
                ? Path.of(System.getProperty("user.home"), ".local", "state")
                : Path.of(state))
            .resolve("fletch");
    try {
      Files.createDirectories(folder);
      return folder.resolve("chat-history");
    } catch (IOException _) {
      return null;
    }
  }

  @Override
  public String readLine() {
    while (true) {
      try {
        return reader.readLine(PROMPT);
      } catch (UserInterruptException e) {
        // An interrupt drops the line; on an empty one, say how to leave.
        if (e.getPartialLine().isEmpty()) {
          note("(Ctrl-D or /exit leaves)");
        }
      } catch (EndOfFileException _) {
        return null;
      }
    }
  }

  @Override
  public void print(String text) {
    PrintWriter writer = terminal.writer();
    writer.print(text);
    writer.flush();
  }

  @Override
  public void note(String text) {
    print(text + "\n");
  }

  @Override
  public void answering(Runnable cancel, Runnable body) {
    Terminal.SignalHandler before = terminal.handle(Terminal.Signal.INT, _ -> cancel.run());
    try {
      body.run();
    } finally {
      terminal.handle(Terminal.Signal.INT, before);
    }
  }

  @Override
  public void close() throws IOException {
    terminal.close();
  }
}
