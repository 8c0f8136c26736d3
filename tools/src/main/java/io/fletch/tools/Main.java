package io.fletch.tools;

/** Entry point of {@code fletch}. */
public final class Main {
  private Main() {}

  /** Runs a command and ends the process with its status. */
  public static void main(String[] args) {
    System.exit(Cli.run(Io.system(), args));
  }
}
