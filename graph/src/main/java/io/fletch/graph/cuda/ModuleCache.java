package io.fletch.graph.cuda;

import io.fletch.ffm.NativeException;
import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevice;
import io.fletch.ffm.device.CudaModule;
import java.io.IOException;
import java.lang.System.Logger.Level;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.FileTime;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * Machine code of GPU modules on disk: what the driver's compiler made of a PTX text for a device.
 *
 * <p>A file's name is the hash of the text, the device and the driver, so that none is ever stale;
 * its content has a hash too, and one that does not match is compiled anew. Files appear by a
 * rename, so that other processes see whole ones. The least recently used are deleted when there
 * are many. Nothing here fails a model: without a folder that can be written, or with a driver that
 * refuses, modules are loaded from their text. Immutable; from any thread.
 *
 * <pre>
 * offset size
 *      0    8  FLETCHCU
 *      8    4  version of this layout, big-endian
 *     12    4  0
 *     16    8  bytes of machine code
 *     24   32  SHA-256 of the machine code
 *     56       machine code, an ELF image
 * </pre>
 */
public final class ModuleCache {
  private static final System.Logger LOG = System.getLogger(ModuleCache.class.getName());
  private static final long MAGIC = 0x464c455443484355L;
  private static final int VERSION = 1;
  private static final int HEADER = 56;

  /** Far above the machine code of any module; a larger file is none of ours. */
  private static final long MOST_BYTES = 256L << 20;

  private static final int MOST_FILES = 256;
  private static final Path DRIVER = Path.of("/proc/driver/nvidia/version");

  private final List<Path> folders;
  private final String driver;

  private ModuleCache(List<Path> folders, String driver) {
    this.folders = List.copyOf(folders);
    this.driver = driver;
  }

  /** Keeps nothing. */
  public static ModuleCache off() {
    return new ModuleCache(List.of(), "");
  }

  /**
   * Reads from the first of these folders that has a file, and writes to the first that takes it.
   *
   * @param folders made when first needed
   * @param driverVersion the CUDA version of the driver; its build is asked of the system
   */
  public static ModuleCache in(List<Path> folders, int driverVersion) {
    String build = "";
    try {
      build = Files.readString(DRIVER);
    } catch (IOException _) {
      // No Linux, or no NVIDIA kernel module: the version must do.
    }
    return new ModuleCache(folders, driverVersion + "\n" + build);
  }

  /** Loads a module, from disk if it is there. */
  CudaModule load(CudaContext context, String name, String ptx) {
    if (folders.isEmpty()) {
      return context.loadPtx(name, ptx);
    }
    String file = key(context.device(), ptx) + ".cubin";
    for (Path folder : folders) {
      Optional<byte[]> kept = read(folder.resolve(file));
      if (kept.isPresent()) {
        try {
          return context.loadCubin(name, kept.get());
        } catch (NativeException e) {
          LOG.log(Level.DEBUG, () -> "compiles " + name + " again: " + e.getMessage());
        }
      }
    }
    byte[] code;
    CudaModule module;
    try {
      code = context.compile(name, ptx);
      module = context.loadCubin(name, code);
    } catch (NativeException e) {
      // What is wrong with the text shows now; if nothing is, only the next start is slower.
      CudaModule direct = context.loadPtx(name, ptx);
      LOG.log(Level.WARNING, () -> "kernels are not kept on disk: " + e.getMessage());
      return direct;
    }
    write(file, code);
    return module;
  }

  private String key(CudaDevice device, String ptx) {
    String what =
        VERSION + "\n" + device.name() + "\n" + device.capability() + "\n" + driver + "\n" + ptx;
    return HexFormat.of().formatHex(sha256(what.getBytes(StandardCharsets.UTF_8)));
  }

  private static byte[] sha256(byte[] bytes) {
    try {
      return MessageDigest.getInstance("SHA-256").digest(bytes);
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /** The machine code, if the file is there and whole. */
  private static Optional<byte[]> read(Path file) {
    try {
      long size = Files.size(file);
      if (size <= HEADER || size > MOST_BYTES) {
        return Optional.empty();
      }
      ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(file));
      if (bytes.limit() <= HEADER
          || bytes.getLong(0) != MAGIC
          || bytes.getInt(8) != VERSION
          || bytes.getLong(16) != bytes.limit() - HEADER) {
        return Optional.empty();
      }
      byte[] code = Arrays.copyOfRange(bytes.array(), HEADER, bytes.limit());
      if (!MessageDigest.isEqual(sha256(code), Arrays.copyOfRange(bytes.array(), 24, HEADER))) {
        return Optional.empty();
      }
      touch(file);
      return Optional.of(code);
    } catch (IOException _) {
      return Optional.empty();
    }
  }

  /** Used now, so deleted later than others. */
  private static void touch(Path file) {
    try {
      Files.setLastModifiedTime(file, FileTime.from(Instant.now()));
    } catch (IOException _) {
      // Another user's file, or gone: still good to read.
    }
  }

  private void write(String name, byte[] code) {
    ByteBuffer head = ByteBuffer.allocate(HEADER);
    head.putLong(MAGIC).putInt(VERSION).putInt(0).putLong(code.length).put(sha256(code));
    IOException refused = null;
    for (Path folder : folders) {
      try {
        Files.createDirectories(folder);
        Path fresh = Files.createTempFile(folder, "module", ".new");
        try (var out = Files.newOutputStream(fresh)) {
          out.write(head.array());
          out.write(code);
        } catch (IOException e) {
          Files.deleteIfExists(fresh);
          throw e;
        }
        Files.move(
            fresh,
            folder.resolve(name),
            StandardCopyOption.REPLACE_EXISTING,
            StandardCopyOption.ATOMIC_MOVE);
        prune(folder);
        return;
      } catch (IOException e) {
        refused = e;
      }
    }
    IOException last = refused;
    LOG.log(Level.DEBUG, () -> "kernels are not kept on disk: " + last);
  }

  /** Deletes the least recently used files beyond the most, and what broken processes left. */
  private static void prune(Path folder) throws IOException {
    record Entry(Path path, Instant used) {}
    List<Entry> kept = new ArrayList<>();
    Instant old = Instant.now().minus(Duration.ofDays(1));
    try (Stream<Path> files = Files.list(folder)) {
      for (Path p : files.toList()) {
        String name = p.getFileName().toString();
        Instant used;
        try {
          used = Files.getLastModifiedTime(p).toInstant();
        } catch (IOException _) {
          // Deleted by another process.
          continue;
        }
        if (name.endsWith(".cubin")) {
          kept.add(new Entry(p, used));
        } else if (name.matches("module.*\\.new") && used.isBefore(old)) {
          Files.deleteIfExists(p);
        }
      }
    }
    kept.sort(Comparator.comparing(Entry::used));
    for (Entry e : kept.subList(0, Math.max(0, kept.size() - MOST_FILES))) {
      Files.deleteIfExists(e.path());
    }
  }
}
