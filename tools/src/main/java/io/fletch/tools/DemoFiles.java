package io.fletch.tools;

import io.fletch.quant.TemporaryFile;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.channels.Channels;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;

/**
 * What comes with the demo models besides them: resources, which must be files to be read. Each is
 * extracted once per process, so that one name stays one path, and removed at the end; what a
 * killed process left, by the next one that needs the same.
 */
final class DemoFiles {
  private static final String FOLDER = "/META-INF/fletch/demo/";

  /** Held until the process ends. */
  private static final Map<String, TemporaryFile> EXTRACTED = new HashMap<>();

  private DemoFiles() {}

  /** The file of a resource. */
  static synchronized Path path(String resource) {
    return EXTRACTED.computeIfAbsent(resource, DemoFiles::extract).path();
  }

  private static TemporaryFile extract(String resource) {
    try (InputStream in = DemoFiles.class.getResourceAsStream(FOLDER + resource)) {
      if (in == null) {
        throw new CommandException("this build comes without " + resource);
      }
      Path folder = Path.of(System.getProperty("java.io.tmpdir"));
      TemporaryFile.removeLeftovers(folder.resolve("fletch-" + resource));
      TemporaryFile file = TemporaryFile.beside(folder.resolve("fletch-" + resource));
      file.path().toFile().deleteOnExit();
      in.transferTo(Channels.newOutputStream(file.channel()));
      return file;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
