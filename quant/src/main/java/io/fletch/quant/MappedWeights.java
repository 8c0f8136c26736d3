package io.fletch.quant;

import io.fletch.ffm.MappedFile;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.apache.arrow.memory.ArrowBuf;

/**
 * The parts that all weight files share: mapped shards, each wrapped once in an Arrow buffer, and
 * tensors that are slices of them. Built by one thread, then immutable.
 */
final class MappedWeights implements WeightFile {
  private final Format format;
  private final Path path;
  private final ArrowMemory memory;
  private final List<MappedFile> files;
  private final Metadata metadata;
  private final Map<String, Tensor> tensors;
  private final Map<String, UnsupportedTensor> unsupported;
  private final Map<String, Tensor> raws;
  private final List<Sum> sums;

  private MappedWeights(Builder builder, Format format, Path path, Metadata metadata) {
    this.format = format;
    this.path = path;
    this.metadata = metadata;
    this.memory = builder.memory;
    this.files = List.copyOf(builder.files);
    this.tensors = Collections.unmodifiableMap(builder.tensors);
    this.unsupported = Collections.unmodifiableMap(builder.unsupported);
    this.raws = Map.copyOf(builder.raws);
    this.sums = List.copyOf(builder.sums);
  }

  @Override
  public Format format() {
    return format;
  }

  @Override
  public Path path() {
    return path;
  }

  @Override
  public Metadata metadata() {
    return metadata;
  }

  @Override
  public Map<String, Tensor> tensors() {
    return tensors;
  }

  @Override
  public Map<String, UnsupportedTensor> unsupported() {
    return unsupported;
  }

  @Override
  public Optional<Tensor> raw(String name) {
    return Optional.ofNullable(raws.get(name));
  }

  @Override
  public List<Path> shards() {
    return files.stream().map(MappedFile::path).toList();
  }

  @Override
  public void dropPages() {
    // Not of memory that may be gone.
    memory.whileOpen(() -> files.forEach(MappedFile::dropPages));
  }

  @Override
  public long verify() {
    List<Tensor> all = List.copyOf(tensors.values());
    long bytes = 0;
    for (Sum sum : sums) {
      MessageDigest hash = ArrowWriter.sha256();
      for (Tensor t : all.subList(sum.from(), sum.to())) {
        ArrowWriter.add(hash, t.segment());
        bytes += t.bytes();
      }
      String actual = HexFormat.of().formatHex(hash.digest());
      if (!actual.equals(sum.sha256())) {
        throw new WeightFileException(
            sum.path()
                + ": SHA-256 of the tensors: expected="
                + sum.sha256()
                + " actual="
                + actual);
      }
    }
    return bytes;
  }

  @Override
  public void close() {
    memory.close();
  }

  /** Hash of the tensors of a shard, which are those numbers of all. */
  private record Sum(Path path, int from, int to, String sha256) {}

  /** A mapped file and the buffer over it. */
  record Shard(Path path, MemorySegment segment, ArrowBuf buffer) {}

  /** Collects shards and tensors. Closing it before {@link #build} releases what it has. */
  static final class Builder implements AutoCloseable {
    private final ArrowMemory memory = new ArrowMemory();
    private final List<MappedFile> files = new ArrayList<>();
    private final Map<String, Tensor> tensors = new LinkedHashMap<>();
    private final Map<String, UnsupportedTensor> unsupported = new LinkedHashMap<>();
    private final Map<String, Tensor> raws = new HashMap<>();
    private final List<Sum> sums = new ArrayList<>();
    private boolean built;

    /**
     * Maps a file.
     *
     * @throws java.io.UncheckedIOException if it cannot be read
     */
    Shard map(Path file) {
      MappedFile mapped = MappedFile.open(file);
      MemorySegment segment = mapped.segment();
      if (segment.byteSize() == 0) {
        mapped.close();
        throw new WeightFileException(file + ": file size: expected=>0 actual=0");
      }
      ArrowBuf buffer = memory.wrap(segment, mapped::close);
      files.add(mapped);
      return new Shard(file, segment, buffer);
    }

    /**
     * Adds a tensor whose place in the shard was checked.
     *
     * @param type null if it cannot be computed with
     * @throws WeightFileException if there is one of that name
     */
    void add(
        Shard shard,
        String name,
        TensorType type,
        String typeName,
        long[] shape,
        long start,
        long bytes) {
      if (contains(name)) {
        throw new WeightFileException(
            shard.path() + ": tensor " + name + ": expected=in one shard only actual=in two");
      }
      if (type == null) {
        List<Long> dims = new ArrayList<>();
        for (long dim : shape) {
          dims.add(dim);
        }
        unsupported.put(name, new UnsupportedTensor(name, typeName, dims, bytes));
        long elements = 1;
        for (long dim : shape) {
          elements *= dim;
        }
        if (elements == bytes && bytes > 0) {
          ArrowBuf raw = shard.buffer().slice(start, bytes);
          MemorySegment segment = shard.segment().asSlice(start, bytes);
          raws.put(name, new Tensor(name, TensorType.I8, shape, raw, segment));
        }
      } else {
        ArrowBuf buffer = bytes == 0 ? memory.empty() : shard.buffer().slice(start, bytes);
        tensors.put(
            name, new Tensor(name, type, shape, buffer, shard.segment().asSlice(start, bytes)));
      }
    }

    /**
     * Notes the hash of the tensors that were added since there were {@code before}.
     *
     * @param sha256 hexadecimal; null for none
     */
    void hash(Path path, int before, String sha256) {
      if (sha256 != null) {
        sums.add(new Sum(path, before, tensors.size(), sha256));
      }
    }

    /** Whether there is a tensor of that name, of any type. */
    boolean contains(String name) {
      return tensors.containsKey(name) || unsupported.containsKey(name);
    }

    /** Number of tensors of any type. */
    int size() {
      return tensors.size() + unsupported.size();
    }

    /** The open file, which owns everything from here on. */
    WeightFile build(Format format, Path path, Metadata metadata) {
      built = true;
      return new MappedWeights(this, format, path, metadata);
    }

    @Override
    public void close() {
      if (!built) {
        memory.close();
      }
    }
  }
}
