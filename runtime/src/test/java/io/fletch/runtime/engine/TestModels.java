package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Model;
import io.fletch.ModelOptions;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;

/** Where tests find models: the shipped demo models, and the larger set beside the checkout. */
final class TestModels {
  /** Resources of the tools, where the demo models are. */
  static final Path TOOLS_RESOURCES = Path.of("..", "tools", "src", "main", "resources");

  private static final Path SHARED = Path.of("..", "..", "shared", "models");

  private TestModels() {}

  static Path demo(String name) {
    return TOOLS_RESOURCES.resolve("META-INF/fletch/demo/" + name + ".gguf");
  }

  /** A file or folder of the larger set; skips the test where that is absent. */
  static Path shared(String name) {
    Path path = SHARED.resolve(name);
    boolean isThere = Files.exists(path);
    if (!isThere) {
      System.out.println("skipped: no " + path.toAbsolutePath().normalize());
    }
    assumeTrue(isThere, "no " + path.toAbsolutePath().normalize());
    return path;
  }

  static ModelOptions options(ModelOptions.Backend backend) {
    return ModelOptions.defaults().withBackend(backend).withThreads(1);
  }

  static Model open(String demo, ModelOptions options) {
    return Model.open(demo(demo), options);
  }

  static Map<String, Object> json(Path path) {
    try {
      return JSON.std.mapFrom(Files.readString(path));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static Map<String, Object> json(String resource) {
    try (var in = TestModels.class.getResourceAsStream(resource)) {
      return JSON.std.mapFrom(in.readAllBytes());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  @SuppressWarnings("unchecked")
  static List<Map<String, Object>> list(Map<String, Object> map, String key) {
    return (List<Map<String, Object>>) map.get(key);
  }

  static int[] ints(Object list) {
    return ((List<?>) list).stream().mapToInt(v -> ((Number) v).intValue()).toArray();
  }

  static List<Integer> boxed(Object list) {
    return ((List<?>) list).stream().map(v -> ((Number) v).intValue()).toList();
  }

  /** A two-dimensional float32 array in NumPy's format. */
  static float[][] npy(Path path) {
    byte[] bytes;
    try {
      bytes = Files.readAllBytes(path);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    ByteBuffer buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    int header = buffer.getShort(8);
    String text = new String(bytes, 10, header, StandardCharsets.US_ASCII);
    if (!text.contains("'<f4'") || !text.contains("'fortran_order': False")) {
      throw new IllegalStateException("not a float32 array in C order: " + text);
    }
    String shape = text.substring(text.indexOf('(') + 1, text.indexOf(')'));
    int rows = Integer.parseInt(shape.split(",")[0].strip());
    FloatBuffer floats =
        buffer
            .slice(10 + header, bytes.length - 10 - header)
            .order(ByteOrder.LITTLE_ENDIAN)
            .asFloatBuffer();
    float[][] out = new float[rows][floats.remaining() / rows];
    for (float[] row : out) {
      floats.get(row);
    }
    return out;
  }
}
