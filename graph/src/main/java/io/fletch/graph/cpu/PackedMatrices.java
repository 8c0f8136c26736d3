package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.Threads;
import io.fletch.graph.GraphException;
import io.fletch.graph.cpu.x86.PackedLayout;
import io.fletch.quant.PackedFile;
import io.fletch.quant.PackedFileWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.WeightFileException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.OverlappingFileLockException;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.zip.CRC32C;

/**
 * Packed matrices in a mapped {@link PackedFile}: found from an earlier start, or written now. Used
 * by the compiling thread, closed by the owner of the weights.
 *
 * <p>The file is named by a hash of what it was made from: the source's sizes and times of change,
 * and name, type, shape and three samples of every matrix; not by a path, so that a moved model
 * finds it. The samples tell apart files of one shape, the times catch a change between the
 * samples. When it is opened, a few rows of one matrix per kernel are packed again and compared: a
 * file of another layout that kept its version is not believed either.
 *
 * <p>Matrices are packed in pieces into buffers of the workers and written, never through a shared
 * mapping, in which a full disk would end the process. One process writes at a time, others go
 * without; the lock dies with its process, and whoever gets it removes what a dead one left. The
 * first tokens need not wait for the disk: the file is mapped at once under its temporary name, and
 * forced and renamed in the background, which {@link #close} waits for.
 *
 * <p>The checksums of all data are compared before use if that is asked for, else beside the first
 * forwards ({@link BackgroundVerification}).
 */
final class PackedMatrices implements AutoCloseable {
  private static final Logger LOG = System.getLogger("io.fletch");

  /** Source bytes of a chunk: large enough for the disk, small enough to share out. */
  private static final long CHUNK_BYTES = 1 << 20;

  private static final int SAMPLE_BYTES = 4096;

  /** Room that a disk keeps. */
  private static final long SPARE_DISK = 256L << 20;

  /** Targets that this process writes. A file lock is held by a process, not by a thread. */
  private static final Set<Path> WRITING = ConcurrentHashMap.newKeySet();

  /**
   * A matrix and its kernel.
   *
   * @param tensor not empty
   * @param kernel one that packs
   */
  record Job(Tensor tensor, Kernels.Matmul kernel) {
    long bytes() {
      return kernel.packedBytes(tensor.rows());
    }

    /** Rows of a chunk. */
    long step() {
      long granule = kernel.rowGranule();
      return Math.max(1, CHUNK_BYTES / tensor.rowBytes() / granule) * granule;
    }

    long chunkBytes() {
      return kernel.packedBytes(step());
    }

    /** Packs some rows to the start of a segment, as their place in the packed matrix has them. */
    void packRows(long from, long to, MemorySegment target) {
      MemorySegment rows =
          tensor.segment().asSlice(from * tensor.rowBytes(), (to - from) * tensor.rowBytes());
      kernel.pack(rows, target, to - from, 0, to - from);
    }
  }

  private final PackedFile file;
  private final Path path;
  private final Optional<Thread> publishing;
  private final boolean verified;

  private PackedMatrices(
      PackedFile file, Path path, Optional<Thread> publishing, boolean verified) {
    this.file = file;
    this.path = path;
    this.publishing = publishing;
    this.verified = verified;
  }

  /** The file of an earlier start, if there is a valid one. A damaged one is reported. */
  static Optional<PackedMatrices> find(
      PackCache cache, Kernels kernels, List<Job> jobs, WorkerPool pool) {
    String identity = identity(cache, kernels, jobs);
    for (Path folder : cache.folders()) {
      Path path = folder.resolve(fileName(identity));
      if (Files.isRegularFile(path)) {
        Optional<PackedMatrices> found = open(path, identity, cache.verify(), jobs, pool);
        if (found.isPresent()) {
          return found;
        }
      }
    }
    return Optional.empty();
  }

  private static Optional<PackedMatrices> open(
      Path path, String identity, boolean verify, List<Job> jobs, WorkerPool pool) {
    String obstacle;
    try {
      PackedFile file = PackedFile.open(path);
      try {
        obstacle = obstacle(file, identity, jobs);
        if (obstacle.isEmpty() && verify) {
          pool.run(stages(new Verify(file)), file);
        }
      } catch (RuntimeException | Error e) {
        file.close();
        throw e;
      }
      if (obstacle.isEmpty()) {
        return Optional.of(new PackedMatrices(file, path, Optional.empty(), verify));
      }
      file.close();
    } catch (WeightFileException | UncheckedIOException e) {
      obstacle = e.getMessage();
    } catch (GraphException e) {
      obstacle = String.valueOf(e.getCause() == null ? e.getMessage() : e.getCause().getMessage());
    }
    LOG.log(Level.WARNING, "packed weights are packed anew, {0} is of no use: {1}", path, obstacle);
    return Optional.empty();
  }

  /** Why a file does not hold these matrices; empty if it does. */
  private static String obstacle(PackedFile file, String identity, List<Job> jobs) {
    if (!file.identity().equals(identity)) {
      return "identity: expected=" + identity + " actual=" + file.identity();
    }
    if (file.entries().size() != jobs.size()) {
      return "matrices: expected=" + jobs.size() + " actual=" + file.entries().size();
    }
    Set<String> compared = new HashSet<>();
    for (int i = 0; i < jobs.size(); i++) {
      Job job = jobs.get(i);
      PackedFile.Entry e = file.entries().get(i);
      if (!e.name().equals(job.tensor.name())
          || !e.kernel().equals(job.kernel.name())
          || e.bytes() != job.bytes()) {
        return "matrix: expected=" + job.tensor.name() + " " + job.bytes() + " actual=" + e;
      }
      if (!compared.add(job.kernel.name())) {
        continue;
      }
      long groups = Math.ceilDiv(job.tensor.rows(), job.kernel.rowGranule());
      if (!sameGroup(job, 0, file.tensor(i)) || !sameGroup(job, groups / 2, file.tensor(i))) {
        return job.tensor.name() + ": packed rows differ from those of the model";
      }
    }
    return "";
  }

  private static boolean sameGroup(Job job, long group, Tensor packed) {
    long granule = job.kernel.rowGranule();
    long from = group * granule;
    long to = Math.min(job.tensor.rows(), from + granule);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment expected = arena.allocate(job.kernel.packedBytes(to - from), 64);
      job.packRows(from, to, expected);
      long at = job.kernel.packedBytes(from);
      return expected.mismatch(packed.segment().asSlice(at, expected.byteSize())) < 0;
    }
  }

  /**
   * Packs all matrices into a file; empty where none can be written, for which the reason is
   * reported.
   *
   * @param done hears of every matrix
   */
  static Optional<PackedMatrices> write(
      PackCache cache, Kernels kernels, List<Job> jobs, WorkerPool pool, Runnable done) {
    String identity = identity(cache, kernels, jobs);
    IOException failure = null;
    for (Path folder : cache.folders()) {
      Path target = folder.toAbsolutePath().resolve(fileName(identity));
      Lock lock;
      try {
        Files.createDirectories(folder);
        lock = Lock.acquire(target);
      } catch (IOException e) {
        failure = e;
        continue;
      }
      if (lock == null) {
        LOG.log(Level.INFO, "packed weights are being written by another start: {0}", target);
        return Optional.empty();
      }
      boolean kept = false;
      try {
        // Somebody else may have finished it meanwhile.
        Optional<PackedMatrices> found =
            Files.exists(target)
                ? open(target, identity, cache.verify(), jobs, pool)
                : Optional.empty();
        if (found.isPresent()) {
          return found;
        }
        removeLeftovers(target);
        PackedMatrices written = write(target, identity, jobs, pool, done, lock);
        kept = true;
        return Optional.of(written);
      } catch (IOException | UncheckedIOException | WeightFileException e) {
        LOG.log(Level.WARNING, "packed weights are not kept for the next start: {0}", e.toString());
        return Optional.empty();
      } finally {
        if (!kept) {
          lock.close();
        }
      }
    }
    LOG.log(
        Level.WARNING,
        "packed weights are not kept for the next start, no folder can be written: {0} ({1})",
        cache.folders(),
        String.valueOf(failure));
    return Optional.empty();
  }

  private static PackedMatrices write(
      Path target, String identity, List<Job> jobs, WorkerPool pool, Runnable done, Lock lock)
      throws IOException {
    List<PackedFileWriter.Matrix> matrices = new ArrayList<>();
    long chunkBytes = 0;
    long bytes = 0;
    for (Job job : jobs) {
      matrices.add(
          new PackedFileWriter.Matrix(
              job.tensor.name(), job.kernel.name(), job.bytes(), job.chunkBytes()));
      chunkBytes = Math.max(chunkBytes, job.chunkBytes());
      bytes += job.bytes();
    }
    long room = Files.getFileStore(target.getParent()).getUsableSpace();
    if (room < bytes + SPARE_DISK) {
      throw new IOException(
          "disk space: expected>=" + (bytes + SPARE_DISK) + " actual=" + room + " for " + target);
    }
    String suffix = Long.toUnsignedString(ThreadLocalRandom.current().nextLong(), 36);
    Path temporary = target.resolveSibling("." + target.getFileName() + "." + suffix + ".tmp");
    PackedFileWriter writer = new PackedFileWriter(target, temporary, identity, matrices);
    try {
      try (NativeMemory buffers =
          NativeMemory.allocate(Math.multiplyExact(chunkBytes, pool.threads()))) {
        for (int i = 0; i < jobs.size(); i++) {
          pool.run(
              stages(new Write(writer, i, jobs.get(i), buffers.segment(), chunkBytes)), writer);
          done.run();
        }
      }
      writer.finish();
      PackedFile file = PackedFile.open(temporary);
      Thread thread =
          Thread.ofPlatform()
              .daemon(true)
              .name("fletch-pack-cache")
              .start(() -> publish(writer, target, lock));
      return new PackedMatrices(file, target, Optional.of(thread), true);
    } catch (GraphException e) {
      writer.close();
      if (e.getCause() instanceof UncheckedIOException io) {
        throw io.getCause();
      }
      throw e;
    } catch (IOException | RuntimeException | Error e) {
      writer.close();
      throw e;
    }
  }

  private static void publish(PackedFileWriter writer, Path target, Lock lock) {
    try (lock;
        writer) {
      writer.publish();
      LOG.log(Level.INFO, "packed weights are kept for the next start: {0}", target);
    } catch (IOException e) {
      LOG.log(Level.WARNING, "packed weights are not kept for the next start: {0}", e.toString());
    }
  }

  /** Removes files of writers that died; the caller holds the lock of the target. */
  private static void removeLeftovers(Path target) throws IOException {
    String pattern = "." + target.getFileName() + ".*.tmp";
    try (DirectoryStream<Path> files = Files.newDirectoryStream(target.getParent(), pattern)) {
      for (Path file : files) {
        Files.deleteIfExists(file);
      }
    }
  }

  /** The right to write a target. */
  private record Lock(Path target, Path path, FileChannel channel) implements AutoCloseable {
    /** The lock, or null if somebody has it. */
    static Lock acquire(Path target) throws IOException {
      if (!WRITING.add(target)) {
        return null;
      }
      Path path = target.resolveSibling("." + target.getFileName() + ".lock");
      FileChannel channel = null;
      boolean locked = false;
      try {
        channel = FileChannel.open(path, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
        FileLock lock = channel.tryLock();
        locked = lock != null;
        return locked ? new Lock(target, path, channel) : null;
      } catch (OverlappingFileLockException e) {
        return null;
      } finally {
        if (!locked) {
          WRITING.remove(target);
          if (channel != null) {
            channel.close();
          }
        }
      }
    }

    @Override
    public void close() {
      try {
        Files.deleteIfExists(path);
        channel.close();
      } catch (IOException e) {
        LOG.log(Level.DEBUG, "lock file", e);
      } finally {
        WRITING.remove(target);
      }
    }
  }

  private static String fileName(String identity) {
    return "fletch-" + identity.replace(' ', '-') + ".pack";
  }

  private static String identity(PackCache cache, Kernels kernels, List<Job> jobs) {
    MessageDigest digest;
    try {
      digest = MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
    put(digest, cache.source());
    CRC32C sample = new CRC32C();
    for (Job job : jobs) {
      Tensor t = job.tensor;
      put(digest, t.name());
      put(digest, t.type().name());
      long length = Math.min(SAMPLE_BYTES, t.bytes());
      long last = t.bytes() - length;
      sample.reset();
      for (long at : new long[] {0, last / 2, last}) {
        sample.update(t.segment().asSlice(at, length).asByteBuffer());
      }
      ByteBuffer numbers = ByteBuffer.allocate(32);
      numbers.putLong(t.rows()).putLong(t.cols()).putLong(t.bytes()).putLong(sample.getValue());
      digest.update(numbers.flip());
    }
    String hash = HexFormat.of().formatHex(digest.digest(), 0, 16);
    return hash + " " + kernels.name() + "-v" + PackedLayout.VERSION;
  }

  private static void put(MessageDigest digest, String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    digest.update(ByteBuffer.allocate(4).putInt(bytes.length).flip());
    digest.update(bytes);
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  private static <C> WorkerPool.Stage<C>[] stages(WorkerPool.Stage<C> stage) {
    return new WorkerPool.Stage[] {stage};
  }

  /** Packs and writes one matrix, a chunk per task. */
  private static final class Write extends WorkerPool.Stage<PackedFileWriter> {
    private final int chunks;
    private final int index;
    private final Job job;
    private final MemorySegment buffers;
    private final long stride;

    Write(PackedFileWriter writer, int index, Job job, MemorySegment buffers, long stride) {
      this.chunks = writer.entries().get(index).chunks();
      this.index = index;
      this.job = job;
      this.buffers = buffers;
      this.stride = stride;
    }

    @Override
    int tasks(PackedFileWriter writer) {
      return chunks;
    }

    @Override
    void run(PackedFileWriter writer, int task, int worker) {
      long from = task * job.step();
      long to = Math.min(job.tensor.rows(), from + job.step());
      MemorySegment packed = buffers.asSlice(worker * stride, job.kernel.packedBytes(to - from));
      // Packing leaves padding as it is, and the bytes of a file depend on nothing but the model.
      packed.fill((byte) 0);
      job.packRows(from, to, packed);
      try {
        writer.write(index, task, packed);
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }

    @Override
    public String toString() {
      return "packing of " + job.tensor.name();
    }
  }

  /** Verifies all chunks of a file. */
  private static final class Verify extends WorkerPool.Stage<PackedFile> {
    private final int[] first;

    Verify(PackedFile file) {
      first = new int[file.entries().size() + 1];
      for (int i = 0; i < file.entries().size(); i++) {
        first[i + 1] = Math.addExact(first[i], file.entries().get(i).chunks());
      }
    }

    @Override
    int tasks(PackedFile file) {
      return first[first.length - 1];
    }

    @Override
    void run(PackedFile file, int task, int worker) {
      int found = Arrays.binarySearch(first, task);
      int index = found >= 0 ? found : -found - 2;
      BackgroundVerification.verify(file, index, task - first[index]);
    }

    @Override
    public String toString() {
      return "verification of packed weights";
    }
  }

  /** Matrix {@code index}; lives until this is closed. */
  MemorySegment segment(int index) {
    return file.tensor(index).segment();
  }

  /** The file, if it is of an earlier start and nobody compared all its checksums. */
  Optional<PackedFile> unverified() {
    return verified ? Optional.empty() : Optional.of(file);
  }

  /** Takes the pages read so far out of the memory of this process. */
  void dropPages() {
    file.dropPages();
  }

  /** Where the file is, or will be. */
  Path path() {
    return path;
  }

  /** Whether it comes from an earlier start. */
  boolean found() {
    return publishing.isEmpty();
  }

  @Override
  public void close() {
    publishing.ifPresent(Threads::join);
    file.close();
  }
}
