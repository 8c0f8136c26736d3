package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.BufferedReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class AtomicFileTest {
  private static final byte[] BYTES = {1, 2, 3, 4};

  @TempDir Path folder;

  /** Begins a file, says so, and waits to be killed. */
  static final class Writer {
    public static void main(String[] args) throws IOException {
      AtomicFile file = new AtomicFile(Path.of(args[0]));
      file.write(BYTES);
      System.out.println("begun");
      while (System.in.read() >= 0) {
        // Until the one who started this process ends it.
      }
      Runtime.getRuntime().halt(1);
    }
  }

  private Set<String> names() throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.map(p -> p.getFileName().toString()).collect(Collectors.toSet());
    }
  }

  private static void write(AtomicFile file, byte[] bytes) throws IOException {
    file.write(new byte[bytes.length]);
    file.complete(bytes);
    file.commit();
  }

  @Test
  void appearsWhenItIsComplete() throws IOException {
    Path target = folder.resolve("a.gguf");
    Files.write(target, new byte[] {9});
    try (AtomicFile file = new AtomicFile(target)) {
      file.write(new byte[4]);
      assertArrayEquals(new byte[] {9}, Files.readAllBytes(target));
      assertThrows(IllegalStateException.class, file::commit);
      file.complete(BYTES);
      assertArrayEquals(new byte[] {9}, Files.readAllBytes(target));
      file.commit();
      assertArrayEquals(BYTES, Files.readAllBytes(target));
    }
    assertEquals(Set.of("a.gguf"), names());
    try (AtomicFile file = new AtomicFile(target)) {
      file.write(new byte[400]);
    }
    assertArrayEquals(BYTES, Files.readAllBytes(target));
    assertEquals(Set.of("a.gguf"), names());
  }

  @Test
  void whatAKilledWriterLeftIsRemovedByTheNext() throws Exception {
    Path target = folder.resolve("a.gguf");
    Process writer =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                System.getProperty(
                    "surefire.test.class.path", System.getProperty("java.class.path")),
                Writer.class.getName(),
                target.toString())
            .redirectError(ProcessBuilder.Redirect.INHERIT)
            .start();
    try (BufferedReader said = writer.inputReader()) {
      assertEquals("begun", said.readLine());
      Set<String> left = names();
      assertEquals(1, left.size(), left.toString());
      // Another process still writes it.
      try (AtomicFile file = new AtomicFile(target)) {
        write(file, BYTES);
      }
      assertTrue(names().containsAll(left), names().toString());
    } finally {
      writer.destroyForcibly().waitFor();
    }
    assertEquals(2, names().size());
    try (AtomicFile file = new AtomicFile(target)) {
      write(file, BYTES);
    }
    assertEquals(Set.of("a.gguf"), names());
  }

  /** Between its making and its lock a file looks like a leftover. */
  @Test
  void aFileThatAnotherWriterRemovedBeforeItsLockIsNotWritten() throws IOException {
    try (TemporaryFile kept = TemporaryFile.begin(folder.resolve("a.gguf"), false);
        TemporaryFile begun = TemporaryFile.begin(folder.resolve("a.gguf"), false)) {
      assertTrue(kept.isOurs());
      Files.delete(begun.path());
      assertFalse(begun.isOurs());
    }
  }

  /** A link to its folder is the same folder. */
  @Test
  void ownFilesAreKnownUnderAllTheirNames() throws Exception {
    Path real = Files.createDirectory(folder.resolve("real"));
    Path link = Files.createSymbolicLink(folder.resolve("link"), real);
    try (TemporaryFile file = TemporaryFile.beside(real.resolve("a"))) {
      Path other = link.resolve(file.path().getFileName());
      TemporaryFile.removeLeftovers(link.resolve("a"));
      TemporaryFile.removeLeftover(other);
      assertTrue(Files.exists(file.path()));
      assertEquals(Optional.empty(), TemporaryFile.hold(other));
    }
    try (Stream<Path> left = Files.list(real)) {
      assertEquals(0, left.count());
    }
  }

  @Test
  void filesAreHeldOnce() throws IOException {
    Path path = folder.resolve(".a.dense.tmp");
    Files.write(path, BYTES);
    try (TemporaryFile held = TemporaryFile.hold(path).orElseThrow()) {
      assertEquals(Optional.empty(), TemporaryFile.hold(path));
      TemporaryFile.removeLeftover(path);
      assertArrayEquals(BYTES, Files.readAllBytes(held.path()));
    }
    assertFalse(Files.exists(path));
    assertThrows(IOException.class, () -> TemporaryFile.hold(path));
    // Not after a failure either.
    Files.write(path, BYTES);
    TemporaryFile.removeLeftover(path);
    assertFalse(Files.exists(path));
  }

  @Test
  void privateFilesStayPrivate() throws IOException {
    Path target = folder.resolve("a");
    try (AtomicFile file = AtomicFile.ofOwner(target)) {
      write(file, BYTES);
    }
    if (Files.getFileStore(folder).supportsFileAttributeView("posix")) {
      assertEquals(
          PosixFilePermissions.fromString("rw-------"), Files.getPosixFilePermissions(target));
    }
  }

  @Test
  void onlyLeftoversOfTheSameTargetAreRemoved() throws IOException {
    Path target = folder.resolve("a.gguf");
    List<String> others =
        List.of(
            ".b.gguf.0123456789abcdef.tmp",
            ".a.gguf.dense.tmp",
            "a.gguf.0123456789abcdef.tmp",
            ".a.gguf.0123456789abcdef.part",
            ".a.gguf.0123456789abcdef0.tmp");
    for (String name : others) {
      Files.write(folder.resolve(name), BYTES);
    }
    Files.createSymbolicLink(folder.resolve(".a.gguf.1111111111111111.tmp"), target);
    Path left = folder.resolve(".a.gguf.0123456789abcdef.tmp");
    Files.write(left, BYTES);
    try (AtomicFile first = new AtomicFile(target);
        AtomicFile second = new AtomicFile(target)) {
      assertFalse(Files.exists(left));
      // Two of one process at once: neither takes the other for a leftover.
      write(first, new byte[] {5});
      write(second, BYTES);
    }
    assertArrayEquals(BYTES, Files.readAllBytes(target));
    Set<String> expected =
        Stream.concat(others.stream(), Stream.of("a.gguf", ".a.gguf.1111111111111111.tmp"))
            .collect(Collectors.toSet());
    assertEquals(expected, names());
  }
}
