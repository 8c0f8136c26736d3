package io.fletch.quant;

import io.fletch.ffm.MappedFile;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.channels.OverlappingFileLockException;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryNotEmptyException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.stream.Stream;

/**
 * What an offline tool has finished so far: a folder {@code OUT.partial} beside the output, with
 * one file of raw bytes per finished part. A part appears when it is complete; a second run with
 * the same key finds it and goes on. Nothing in the folder opens as a model. A file in it is locked
 * until this is closed, so that two runs never mix their parts. Confined to one thread.
 */
public final class Workspace implements AutoCloseable {
  private static final String KEY = "key";
  private static final String LOCK = "lock";

  private final Path folder;
  private FileChannel lock;

  private Workspace(Path folder) {
    this.folder = folder;
  }

  /**
   * Opens the workspace of an output, keeping what a run with the same key left there.
   *
   * @param key everything that the parts depend on: inputs and options
   * @throws WeightFileException if another run has it
   * @throws UncheckedIOException if the folder cannot be made
   */
  public static Workspace open(Path output, String key) {
    Workspace workspace = new Workspace(folder(output));
    byte[] wanted = key.getBytes(StandardCharsets.UTF_8);
    try {
      workspace.acquire(output);
      try {
        Path file = workspace.folder.resolve(KEY);
        if (!Files.exists(file) || !Arrays.equals(Files.readAllBytes(file), wanted)) {
          workspace.clear();
          workspace.write(file, sink -> sink.write(MemorySegment.ofArray(wanted)));
        }
        return workspace;
      } catch (IOException | RuntimeException | Error e) {
        workspace.close();
        throw e;
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Makes the folder and locks it; where files cannot be locked nobody does. */
  private void acquire(Path output) throws IOException {
    Path file = folder.resolve(LOCK);
    while (lock == null) {
      if (!Files.isDirectory(folder)) {
        Files.createDirectory(folder);
      }
      FileChannel channel =
          FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
      boolean mine;
      try {
        mine = channel.tryLock() != null;
      } catch (OverlappingFileLockException _) {
        mine = false;
      } catch (IOException _) {
        mine = true;
      }
      if (mine && Files.exists(file)) {
        lock = channel;
        return;
      }
      channel.close();
      if (!mine) {
        throw new WeightFileException(output + ": another run is writing it (" + folder + ")");
      }
      // The run that had it has just ended and removed the folder.
    }
  }

  /** Whether a run has begun an output and not finished it. */
  public static boolean exists(Path output) {
    return Files.isDirectory(folder(output));
  }

  private static Path folder(Path output) {
    Path out = output.toAbsolutePath();
    return out.resolveSibling(out.getFileName() + ".partial");
  }

  /** What identifies the files of a model to a key: names, sizes and times of change. */
  public static String fingerprint(WeightFile file) {
    StringBuilder text = new StringBuilder();
    try {
      for (Path shard : file.shards()) {
        text.append(shard.toAbsolutePath())
            .append(' ')
            .append(Files.size(shard))
            .append(' ')
            .append(Files.getLastModifiedTime(shard))
            .append('\n');
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return text.toString();
  }

  private Path part(String name) {
    try {
      byte[] hash =
          MessageDigest.getInstance("SHA-256").digest(name.getBytes(StandardCharsets.UTF_8));
      return folder.resolve(HexFormat.of().formatHex(hash, 0, 16) + ".part");
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }

  /** Whether a part is finished. */
  public boolean has(String name) {
    return Files.exists(part(name));
  }

  /**
   * Makes a part.
   *
   * @throws UncheckedIOException if writing fails; the part does not appear then
   */
  public void put(String name, TensorSource source) {
    write(part(name), source);
  }

  private void write(Path target, TensorSource source) {
    try (AtomicFile file = new AtomicFile(target, false)) {
      source.writeTo(file::write);
      file.complete(new byte[0]);
      file.commit();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** The bytes of a finished part, mapped while they are written. */
  public TensorSource source(String name) {
    Path file = part(name);
    return sink -> {
      if (Files.size(file) > 0) {
        try (MappedFile mapped = MappedFile.open(file)) {
          sink.write(mapped.segment());
        }
      }
    };
  }

  /** The bytes of a small finished part. */
  public byte[] bytes(String name) {
    try {
      return Files.readAllBytes(part(name));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /**
   * Writes a text file that appears only when it is complete.
   *
   * @throws UncheckedIOException if writing fails
   */
  public static void writeText(Path target, String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    try (AtomicFile file = new AtomicFile(target)) {
      file.write(bytes);
      file.complete(new byte[0]);
      file.commit();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Removes the folder, once the output is there, and closes this. */
  public void delete() {
    try {
      clear();
      // Before the file goes, for systems that delete no open one.
      lock.close();
      Files.deleteIfExists(folder.resolve(LOCK));
      Files.deleteIfExists(folder);
    } catch (DirectoryNotEmptyException _) {
      // What is not of a workspace stays.
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Removes only what a workspace makes, so that a folder of that name is never emptied. */
  private void clear() throws IOException {
    for (Path file : files()) {
      String name = file.getFileName().toString();
      if (name.equals(KEY) || name.endsWith(".part") || name.endsWith(".tmp")) {
        Files.delete(file);
      }
    }
  }

  private List<Path> files() throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.toList();
    }
  }

  /** Lets other runs have the folder: one with the same key goes on with what is finished. */
  @Override
  public void close() {
    try {
      if (lock.isOpen() && files().stream().noneMatch(f -> f.toString().endsWith(".part"))) {
        delete();
      }
      lock.close();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
