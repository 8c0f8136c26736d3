package io.fletch.tools;

import java.io.IOException;

/** A technique that {@code fletch calibrate} prepares for a model. */
interface Calibrator {
  /** Options that only it has. */
  Command.Section section();

  /** Calibrates and writes the file. */
  void run(Arguments arguments, Io io) throws IOException;
}
