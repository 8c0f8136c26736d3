package io.fletch.tests.softgpu;

import io.fletch.tools.Main;

/** The {@code fletch} command line on a machine that has a software GPU. */
public final class SoftMain {
  private SoftMain() {}

  /** Runs a command. */
  public static void main(String[] args) {
    // Room for generated models; only what is asked for is taken.
    SoftGpu.reset(90, 8L << 30).workers(Runtime.getRuntime().availableProcessors());
    Main.main(args);
  }
}
