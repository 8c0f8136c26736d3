package io.fletch.bench;

import io.fletch.quant.SyntheticModel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * Writes a GGUF of a real shape with random weights: {@code GenerateModel FILE SHAPE MIX [SEED
 * [LAYERS]] [KEY=VALUE ...]}; fewer layers than the shape has make a quick check, keys and values
 * go into the metadata as strings.
 */
public final class GenerateModel {
  private GenerateModel() {}

  /** Runs the generator. */
  public static void main(String[] args) {
    Map<String, String> options = new TreeMap<>();
    List<String> rest = new ArrayList<>();
    for (String arg : args) {
      int equals = arg.indexOf('=');
      if (equals > 0) {
        options.put(arg.substring(0, equals), arg.substring(equals + 1));
      } else {
        rest.add(arg);
      }
    }
    if (rest.size() < 3) {
      System.err.println("usage: GenerateModel FILE SHAPE MIX [SEED [LAYERS]] [KEY=VALUE ...]");
      System.exit(2);
    }
    SyntheticModel.Shape shape = SyntheticModel.Shape.named(rest.get(1));
    SyntheticModel.write(
        Path.of(rest.get(0)),
        rest.size() > 4 ? shape.withLayers(Integer.parseInt(rest.get(4))) : shape,
        SyntheticModel.Mix.valueOf(rest.get(2)),
        rest.size() > 3 ? Long.parseLong(rest.get(3)) : 1,
        options);
  }
}
