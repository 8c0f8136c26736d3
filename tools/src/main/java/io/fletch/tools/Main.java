package io.fletch.tools;

/** Entry point of {@code fletch}. */
public final class Main {
  private Main() {}

  /** Runs a command. */
  public static void main(String[] args) {
    System.err.println("fletch: no commands yet");
    System.exit(2);
  }
}
