package io.fletch.bench;

import io.fletch.quant.SyntheticModel;
import java.nio.file.Path;

/**
 * Writes a GGUF of a real shape with random weights: {@code GenerateModel FILE SHAPE MIX [SEED
 * [LAYERS]]}; fewer layers than the shape has make a quick check.
 */
public final class GenerateModel {
  private GenerateModel() {}

  /** Runs the generator. */
  public static void main(String[] args) {
    if (args.length < 3) {
      System.err.println("usage: GenerateModel FILE SHAPE MIX [SEED [LAYERS]]");
      System.exit(2);
    }
    SyntheticModel.Shape shape = SyntheticModel.Shape.named(args[1]);
    SyntheticModel.write(
        Path.of(args[0]),
        args.length > 4 ? shape.withLayers(Integer.parseInt(args[4])) : shape,
        SyntheticModel.Mix.valueOf(args[2]),
        args.length > 3 ? Long.parseLong(args[3]) : 1);
  }
}
