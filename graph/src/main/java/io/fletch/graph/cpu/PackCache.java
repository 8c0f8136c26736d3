package io.fletch.graph.cpu;

import java.nio.file.Path;
import java.util.List;
import java.util.Objects;

/**
 * Where packed weights are kept on disk for the next start. Immutable.
 *
 * @param folders candidates, best first; all are searched, the first that can be written is
 * @param source what is known of the files of the weights, such as sizes and times of change; part
 *     of the identity of a cache, besides names, shapes and samples of the matrices
 * @param minBytes packed bytes below which packing is quicker than a cache is worth
 * @param verify whether all data of a cache is verified before use
 */
public record PackCache(List<Path> folders, String source, long minBytes, boolean verify) {
  /** Refuses nulls. */
  public PackCache {
    folders = List.copyOf(folders);
    Objects.requireNonNull(source, "source");
  }
}
