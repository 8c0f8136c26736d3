package io.fletch.runtime.engine;

import io.fletch.ModelOptions;
import io.fletch.graph.cpu.PackCache;
import io.fletch.graph.cuda.ModuleCache;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** Where the packed weights of a model are kept, and what identifies its files. Stateless. */
final class PackCaches {
  /** Packed within a blink: smaller models never leave a file behind. */
  private static final long MIN_BYTES = 64L << 20;

  private PackCaches() {}

  static PackCache of(ModelOptions options, WeightFile file) {
    List<Path> folders = new ArrayList<>();
    if (options.packCache().folder().isPresent()) {
      folders.add(options.packCache().folder().get());
    } else {
      Path first = file.shards().getFirst().toAbsolutePath();
      folders.add(first.getParent());
      folders.addAll(DemoModels.cacheFolders(System::getenv, System::getProperty));
    }
    return new PackCache(folders, source(file), MIN_BYTES, options.packCache().verify());
  }

  /**
   * Where compiled kernels of a GPU are kept: in the user's folder, as they belong to the machine
   * and not to the model. For small models the driver's own cache does.
   */
  static ModuleCache modules(ModelOptions options, WeightFile file, int driverVersion) {
    if (!options.packCache().enabled()) {
      return ModuleCache.off();
    }
    if (options.packCache().folder().isPresent()) {
      return ModuleCache.in(List.of(options.packCache().folder().get()), driverVersion);
    }
    long bytes = file.tensors().values().stream().mapToLong(t -> t.segment().byteSize()).sum();
    return bytes < MIN_BYTES
        ? ModuleCache.off()
        : ModuleCache.in(
            DemoModels.cacheFolders(System::getenv, System::getProperty).stream()
                .map(f -> f.resolve("kernels"))
                .toList(),
            driverVersion);
  }

  /**
   * Size and time of change of every shard: not the path, so that a moved model keeps its cache.
   */
  private static String source(WeightFile file) {
    StringBuilder out = new StringBuilder();
    try {
      for (Path shard : file.shards()) {
        BasicFileAttributes a = Files.readAttributes(shard, BasicFileAttributes.class);
        out.append(a.size()).append(' ').append(a.lastModifiedTime().to(TimeUnit.NANOSECONDS));
        out.append(';');
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return out.toString();
  }
}
