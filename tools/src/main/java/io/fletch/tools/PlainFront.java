package io.fletch.tools;

import java.io.IOException;

/** A chat over pipes and files: lines in, answers out, nothing else on standard output. */
final class PlainFront implements ChatFront {
  private final Io io;

  PlainFront(Io io) {
    this.io = io;
  }

  @Override
  public String readLine() throws IOException {
    return io.readLine();
  }

  @Override
  public void print(String text) {
    io.print(text);
    io.flush();
  }

  @Override
  public void note(String text) {
    io.note(text);
  }

  @Override
  public void answering(Runnable cancel, Runnable body) {
    body.run();
  }

  @Override
  public void close() {
    io.flush();
  }
}
