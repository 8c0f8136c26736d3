package io.fletch.quant;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Opens GGUF models of one file or of several shards (specs weights 1.3).
 *
 * <p>Every shard of a split model holds {@code split.no} (from 0), {@code split.count} and {@code
 * split.tensors.count} (of all shards), is called {@code PREFIX-00001-of-00003.gguf} (from 1), and
 * has its own data section. Hyper-parameters and tokenizer are those of the first.
 */
final class GgufFiles {
  static final String SPLIT_NO = "split.no";
  static final String SPLIT_COUNT = "split.count";
  static final String SPLIT_TENSORS = "split.tensors.count";

  private static final Pattern SHARD_NAME = Pattern.compile("(.+)-(\\d{5})-of-(\\d{5})\\.gguf");

  private GgufFiles() {}

  /** The name of shard {@code number}, counted from 0. */
  static String shardName(String prefix, int number, int count) {
    return String.format("%s-%05d-of-%05d.gguf", prefix, number + 1, count);
  }

  /**
   * Opens a model.
   *
   * @param path the file, or the first shard
   * @throws WeightFileException if the content is damaged or unsupported
   * @throws java.io.UncheckedIOException if reading fails
   */
  static WeightFile open(Path path) {
    try (MappedWeights.Builder builder = new MappedWeights.Builder()) {
      Metadata metadata = addShard(builder, path);
      long count = splitValue(metadata, SPLIT_COUNT).orElse(1L);
      if (count != 1) {
        addSiblings(builder, path, metadata, count);
      }
      splitValue(metadata, SPLIT_TENSORS)
          .ifPresent(expected -> check(path, SPLIT_TENSORS, builder.size(), expected));
      return builder.build(WeightFile.Format.GGUF, path, metadata);
    }
  }

  private static Metadata addShard(MappedWeights.Builder builder, Path file) {
    MappedWeights.Shard shard = builder.map(file);
    GgufReader.Header header = GgufReader.read(file, shard.segment());
    for (GgufReader.Info t : header.tensors()) {
      builder.add(shard, t.name(), t.type(), t.typeName(), t.shape(), t.start(), t.bytes());
    }
    return header.metadata();
  }

  private static void addSiblings(
      MappedWeights.Builder builder, Path first, Metadata metadata, long count) {
    if (count < 1 || count > 65535) {
      throw new WeightFileException(
          first + ": " + SPLIT_COUNT + ": expected=1..65535 actual=" + count);
    }
    Matcher name = SHARD_NAME.matcher(first.getFileName().toString());
    if (!name.matches()) {
      throw new WeightFileException(
          first + ": name of a split file: expected=PREFIX-00001-of-" + five(count) + ".gguf");
    }
    String prefix = name.group(1);
    Path start = first.resolveSibling(shardName(prefix, 0, (int) count));
    if (number(metadata, first, SPLIT_NO) != 0) {
      throw new WeightFileException(
          first
              + ": "
              + SPLIT_NO
              + ": expected=0 actual="
              + number(metadata, first, SPLIT_NO)
              + "; open the first shard instead: "
              + start.getFileName());
    }
    if (!first.getFileName().equals(start.getFileName())) {
      throw new WeightFileException(
          first + ": name of the first of " + count + " shards: expected=" + start.getFileName());
    }
    for (int i = 1; i < count; i++) {
      Path file = first.resolveSibling(shardName(prefix, i, (int) count));
      if (!Files.exists(file)) {
        throw new WeightFileException(file + ": shard " + (i + 1) + " of " + count + " is missing");
      }
      Metadata shard = addShard(builder, file);
      check(file, SPLIT_NO, number(shard, file, SPLIT_NO), i);
      check(file, SPLIT_COUNT, number(shard, file, SPLIT_COUNT), count);
      splitValue(metadata, SPLIT_TENSORS)
          .ifPresent(all -> check(file, SPLIT_TENSORS, number(shard, file, SPLIT_TENSORS), all));
    }
  }

  private static String five(long number) {
    return String.format("%05d", number);
  }

  private static Optional<Long> splitValue(Metadata metadata, String key) {
    return metadata.integer(key);
  }

  private static long number(Metadata metadata, Path file, String key) {
    return metadata
        .integer(key)
        .orElseThrow(
            () -> new WeightFileException(file + ": " + key + ": expected=present actual=absent"));
  }

  private static void check(Path file, String field, long actual, long expected) {
    if (actual != expected) {
      throw new WeightFileException(
          file + ": " + field + ": expected=" + expected + " actual=" + actual);
    }
  }
}
