package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Set;

/** Runs the program in this process with captured streams. */
final class Fletch {
  /** What a run left behind. */
  record Outcome(int status, String out, String err) {
    /** The output as one JSON object on one line. */
    Map<String, Object> json() {
      if (!out.endsWith("}\n") || out.indexOf('\n') != out.length() - 1) {
        throw new AssertionError("not one line with one object: " + out + err);
      }
      try {
        return JSON.std.mapFrom(out);
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }
  }

  private Fletch() {}

  static Outcome run(String... args) {
    return runWith("", args);
  }

  /** Runs with a standard input. */
  static Outcome runWith(String in, String... args) {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    ByteArrayOutputStream err = new ByteArrayOutputStream();
    int status =
        Cli.run(
            new Io(
                new ByteArrayInputStream(in.getBytes(StandardCharsets.UTF_8)), out, err, Set.of()),
            args);
    return new Outcome(
        status, out.toString(StandardCharsets.UTF_8), err.toString(StandardCharsets.UTF_8));
  }

  /** Runs and expects success. */
  static Outcome ok(String... args) {
    Outcome outcome = run(args);
    if (outcome.status() != 0) {
      throw new AssertionError("status " + outcome.status() + ": " + outcome.err());
    }
    return outcome;
  }
}
