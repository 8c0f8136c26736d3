package io.fletch.tools;

import java.io.IOException;

/** {@code fletch calibrate r2r}, see {@link RouterCalibration}. */
final class CalibrateRouter implements Calibrator {
  @Override
  public Command.Section section() {
    return new Command.Section("r2r: a router between two models", RouterCalibration.options());
  }

  @Override
  public void run(Arguments arguments, Io io) throws IOException {
    RouterCalibration.run(arguments, io);
  }
}
