package io.fletch.tools;

import io.fletch.Tokenizer;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.calibrate.Calibration;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.apache.commons.cli.Option;

/** The options that say what a model is calibrated with. */
final class CalibrationFlags {
  private CalibrationFlags() {}

  static List<Option> options() {
    return List.of(
        Command.value("calibrate", "TEXT", "a file of text like that the model will see"),
        Command.value(
            "samples", "N", "most sequences of the text, spread evenly over it (default: 128)"),
        Command.value("sample-length", "N", "tokens of a sequence (default: 256)"));
  }

  /** The sequences of the text; empty without one. */
  static int[][] sequences(Arguments arguments, WeightFile file) throws IOException {
    int count = arguments.integer("samples", 128, 1, 1 << 20);
    int length = arguments.integer("sample-length", 256, 2, 1 << 20);
    if (!arguments.has("calibrate")) {
      return new int[0][];
    }
    String text = Texts.readStrict(Path.of(arguments.required("calibrate")));
    int[] ids = Tokenizer.open(file.path()).encode(text);
    return Calibration.sequences(ids, count, length);
  }

  /** What of it a result depends on. */
  static String key(Arguments arguments) {
    return arguments
            .string("calibrate")
            .map(f ->
                Path.of(f).toAbsolutePath()
                    + " "
                    + Path.of(f).toFile().length()
                    + " "
                    + Path.of(f).toFile().lastModified())
            .orElse("none")
        + " "
        + arguments.string("samples").orElse("")
        + " "
        + arguments.string("sample-length").orElse("");
  }
}
