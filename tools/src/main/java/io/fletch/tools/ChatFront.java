package io.fletch.tools;

import java.io.IOException;

/** Where a chat reads its lines and writes its answers. Used by the main thread. */
interface ChatFront extends AutoCloseable {
  /** The next line of the user, or null when there are no more. */
  String readLine() throws IOException;

  /** Writes a piece of an answer, at once. */
  void print(String text);

  /** Writes a line about the chat that is not part of it. */
  void note(String text);

  /**
   * Runs {@code body} while the interrupt key calls {@code cancel} instead of ending the program.
   */
  void answering(Runnable cancel, Runnable body);

  @Override
  void close() throws IOException;
}
