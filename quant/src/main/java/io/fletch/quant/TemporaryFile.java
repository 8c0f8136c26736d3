package io.fletch.quant;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.channels.FileChannel;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileAttribute;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * A file that is there as long as its process needs it: closing removes it, unless it was moved to
 * a name of its own.
 *
 * <p>A process that is killed leaves the file. It is locked while it is needed, so others know that
 * nobody needs it any more, and remove it: those of a name that belongs to a target ({@code
 * .NAME.*.tmp} beside {@code NAME}), whose owner is the user of this process, and which nobody
 * holds locked. Where files cannot be locked they stay. Confined to one thread; the static methods
 * are thread-safe.
 */
public final class TemporaryFile implements AutoCloseable {
  /**
   * Real paths of the files of this process: closing any other channel of one would give its lock
   * back.
   */
  private static final Set<Path> OWN = ConcurrentHashMap.newKeySet();

  private static final String SUFFIX = "[0-9a-f]{16}";

  private final Path path;
  private final Path key;
  private final FileChannel channel;
  private boolean isMoved;

  private TemporaryFile(Path path, Path key, FileChannel channel) {
    this.path = path;
    this.key = key;
    this.channel = channel;
  }

  /** Creates an empty file beside a target, which need not exist; its folder must. */
  public static TemporaryFile beside(Path target) throws IOException {
    return beside(target, false);
  }

  /**
   * Creates an empty file beside a target.
   *
   * @param isPrivate whether others must not read it, where the file system has permissions; it
   *     keeps them when it is moved
   */
  public static TemporaryFile beside(Path target, boolean isPrivate) throws IOException {
    Path absolute = target.toAbsolutePath();
    while (true) {
      TemporaryFile file = begin(absolute, isPrivate);
      if (file.isOurs()) {
        return file;
      }
      file.close();
    }
  }

  /** Creates a file that is not yet known to be kept, see {@link #isOurs}. */
  static TemporaryFile begin(Path target, boolean isPrivate) throws IOException {
    String suffix = HexFormat.of().toHexDigits(ThreadLocalRandom.current().nextLong());
    Path path = target.resolveSibling("." + target.getFileName() + "." + suffix + ".tmp");
    Path key = key(path);
    OWN.add(key);
    FileAttribute<?>[] attributes =
        isPrivate && Files.getFileStore(target.getParent()).supportsFileAttributeView("posix")
            ? new FileAttribute<?>[] {
              PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------"))
            }
            : new FileAttribute<?>[0];
    try {
      return new TemporaryFile(
          path,
          key,
          FileChannel.open(
              path, Set.of(StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE), attributes));
    } catch (IOException | RuntimeException e) {
      OWN.remove(key);
      throw e;
    }
  }

  /**
   * Takes a file that exists as a temporary one of this process.
   *
   * @return empty if another process holds it, or it is gone
   */
  public static Optional<TemporaryFile> hold(Path file) throws IOException {
    Path key = key(file.toAbsolutePath());
    if (!OWN.add(key)) {
      return Optional.empty();
    }
    TemporaryFile out = null;
    try {
      FileChannel channel =
          FileChannel.open(file, StandardOpenOption.WRITE, LinkOption.NOFOLLOW_LINKS);
      TemporaryFile held = new TemporaryFile(file, key, channel);
      if (held.isOurs()) {
        out = held;
      } else {
        channel.close();
      }
      return Optional.ofNullable(out);
    } finally {
      if (out == null) {
        OWN.remove(key);
      }
    }
  }

  /**
   * Locks it until the channel is closed; false if another process holds it, or took it for a
   * leftover before. Where files cannot be locked nobody does.
   */
  boolean isOurs() {
    try {
      return channel.tryLock() != null && Files.exists(path);
    } catch (IOException _) {
      return true;
    }
  }

  /** One spelling of all of a file. */
  private static Path key(Path absolute) throws IOException {
    return absolute.getParent().toRealPath().resolve(absolute.getFileName());
  }

  /**
   * Removes the files beside a target that died with their processes: those that {@link #beside}
   * makes. Nothing happens where that is not possible.
   */
  public static void removeLeftovers(Path target) {
    Path absolute = target.toAbsolutePath();
    String name = Pattern.quote("." + absolute.getFileName() + ".") + SUFFIX + "\\.tmp";
    List<Path> left = new ArrayList<>();
    try (Stream<Path> files = Files.list(absolute.getParent())) {
      files.filter(p -> p.getFileName().toString().matches(name)).forEach(left::add);
    } catch (IOException | UncheckedIOException _) {
      return; // A folder that lists nothing can still take files.
    }
    left.forEach(TemporaryFile::removeLeftover);
  }

  /** Removes a file under a temporary name, if it is this user's and nobody holds it. */
  public static void removeLeftover(Path file) {
    try {
      if (Files.isRegularFile(file, LinkOption.NOFOLLOW_LINKS)
          && isOwner(file)
          && !OWN.contains(key(file.toAbsolutePath()))) {
        try (FileChannel channel =
            FileChannel.open(file, StandardOpenOption.WRITE, LinkOption.NOFOLLOW_LINKS)) {
          if (channel.tryLock() != null) {
            Files.deleteIfExists(file);
          }
        }
      }
    } catch (IOException | OverlappingFileLockException _) {
      // Somebody else's, or gone: not what anybody needs.
    }
  }

  /** Whether a file is of the user of this process, as far as the file system tells users. */
  private static boolean isOwner(Path file) throws IOException {
    try {
      String owner = Files.getOwner(file, LinkOption.NOFOLLOW_LINKS).getName();
      String user = System.getProperty("user.name");
      // With a domain before it on Windows.
      return owner.equals(user) || owner.endsWith("\\" + user);
    } catch (UnsupportedOperationException _) {
      return true;
    }
  }

  /** Where it is. */
  public Path path() {
    return path;
  }

  /** Writes it; closed by this. */
  public FileChannel channel() {
    return channel;
  }

  /** Gives the file another name, replacing a file that has it, and gives it up. */
  void moveTo(Path target) throws IOException {
    Files.move(path, target, StandardCopyOption.ATOMIC_MOVE);
    isMoved = true;
    channel.close();
  }

  @Override
  public void close() throws IOException {
    try {
      // First the name: without the lock it is a leftover, and may be another's by then.
      if (!isMoved) {
        Files.deleteIfExists(path);
      }
    } finally {
      try {
        channel.close();
      } finally {
        OWN.remove(key);
      }
    }
  }
}
