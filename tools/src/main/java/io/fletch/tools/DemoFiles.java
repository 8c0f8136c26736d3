package io.fletch.tools;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.HashMap;
import java.util.Map;

/**
 * What comes with the demo models besides them: resources, which must be files to be read. Each is
 * extracted once per process, so that one name stays one path, and removed at the end.
 */
final class DemoFiles {
  private static final String FOLDER = "/META-INF/fletch/demo/";
  private static final Map<String, Path> EXTRACTED = new HashMap<>();

  private DemoFiles() {}

  /** The file of a resource. */
  static synchronized Path path(String resource) {
    return EXTRACTED.computeIfAbsent(resource, DemoFiles::extract);
  }

  private static Path extract(String resource) {
    try (InputStream in = DemoFiles.class.getResourceAsStream(FOLDER + resource)) {
      if (in == null) {
        throw new CommandException("this build comes without " + resource);
      }
      Path file = Files.createTempFile("fletch-", "-" + resource);
      file.toFile().deleteOnExit();
      Files.copy(in, file, StandardCopyOption.REPLACE_EXISTING);
      return file;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
