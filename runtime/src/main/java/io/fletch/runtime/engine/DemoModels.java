package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.quant.AtomicFile;
import io.fletch.quant.TemporaryFile;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.net.URL;
import java.nio.ByteBuffer;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.UnaryOperator;

/**
 * The embedded demo models. They are class-path resources of {@code fletch-tools}, not of this
 * library, so that an application that embeds it does not carry them. A model must be a file to be
 * mapped: it is extracted once into a cache folder, under a name that holds the hash of its
 * content. The hash is verified when the file is written; afterwards its size is compared only,
 * since hashing 5 MB in a JVM that has just started takes 0.2 s, a third of the whole start.
 */
final class DemoModels {
  /**
   * Folder of the resources. Its name is no package name, so that the module system does not
   * encapsulate them.
   */
  private static final String FOLDER = "META-INF/fletch/demo/";

  /** SHA-256 and size of a model's file. */
  private record Content(String hash, long bytes) {}

  private static final Map<String, Content> CONTENTS =
      Map.of(
          "demo",
          new Content(
              "a51876581f0e861ff3da5326d51999261809f50a2ab6976682262971be30485e", 5_346_688),
          "demo-small",
          new Content("668780e1926e7ab0d6327cec80dd53afe9d83582fe9b125a0abab252d21ee8f9", 803_200),
          "demo-diffusion",
          new Content(
              "92a2fc5cba18e7b01018bb29bf3f6c473f5963c594e9b32ac47cccab0a1c2a0f", 3_453_984));

  private DemoModels() {}

  /** The model as a file, extracted if it is not there yet. */
  static Path file(String name) {
    return file(name, cacheFolders(System::getenv, System::getProperty));
  }

  /**
   * The model as a file in the first of the folders that can be written.
   *
   * @param folders candidates, best first
   */
  static Path file(String name, List<Path> folders) {
    Content content = CONTENTS.get(name);
    if (content == null) {
      throw new FletchException(
          "unknown demo model: \""
              + name
              + "\", known="
              + CONTENTS.keySet().stream().sorted().toList());
    }
    URL resource =
        resource(name)
            .orElseThrow(() ->
                new FletchException(
                    "demo model "
                        + name
                        + ": resource "
                        + FOLDER
                        + name
                        + ".gguf is not on the class path or module path; it is part of the"
                        + " jar fletch-tools"));
    String file = name + "-" + content.hash().substring(0, 16) + ".gguf";
    IOException failure = null;
    for (Path folder : folders) {
      Path target = folder.resolve(file);
      try {
        if (!Files.isRegularFile(target) || Files.size(target) != content.bytes()) {
          extract(resource, folder, target, content.hash());
        } else {
          // What an extraction left that was killed while another went on.
          TemporaryFile.removeLeftovers(target);
        }
        return target;
      } catch (FileSystemException e) {
        failure = e;
      } catch (IOException e) {
        throw new UncheckedIOException("demo model " + name, e);
      }
    }
    throw new UncheckedIOException(
        "demo model " + name + ": no cache folder can be written: " + folders, failure);
  }

  private static Optional<URL> resource(String name) {
    Set<ClassLoader> loaders = new LinkedHashSet<>();
    loaders.add(DemoModels.class.getClassLoader());
    Optional.ofNullable(Thread.currentThread().getContextClassLoader()).ifPresent(loaders::add);
    loaders.add(ClassLoader.getSystemClassLoader());
    return loaders.stream()
        .map(l -> Optional.ofNullable(l.getResource(FOLDER + name + ".gguf")))
        .flatMap(Optional::stream)
        .findFirst();
  }

  /** {@code $XDG_CACHE_HOME/fletch}, {@code ~/.cache/fletch}, the temporary folder. */
  static List<Path> cacheFolders(
      UnaryOperator<String> environment, UnaryOperator<String> properties) {
    List<Path> out = new ArrayList<>();
    String xdg = environment.apply("XDG_CACHE_HOME");
    String home = properties.apply("user.home");
    if (xdg != null && Path.of(xdg).isAbsolute()) {
      out.add(Path.of(xdg, "fletch"));
    } else if (home != null && Path.of(home).isAbsolute()) {
      out.add(Path.of(home, ".cache", "fletch"));
    }
    out.add(Path.of(properties.apply("java.io.tmpdir"), "fletch-" + properties.apply("user.name")));
    return out;
  }

  /**
   * Writes to a file of its own and renames it: several processes may do so at once, and whoever
   * sees the target sees all of it.
   */
  private static void extract(URL resource, Path folder, Path target, String hash)
      throws IOException {
    Files.createDirectories(folder);
    MessageDigest digest;
    try {
      digest = MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
    try (AtomicFile file = new AtomicFile(target);
        InputStream in = resource.openStream()) {
      byte[] buffer = new byte[1 << 16];
      for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
        digest.update(buffer, 0, n);
        file.write(ByteBuffer.wrap(buffer, 0, n));
      }
      if (!HexFormat.of().formatHex(digest.digest()).equals(hash)) {
        throw new FletchException(
            "demo model is damaged: " + resource + ": SHA-256 expected=" + hash);
      }
      file.complete(new byte[0]);
      file.commit();
    }
  }
}
