package io.fletch.runtime.engine;

import io.fletch.Adapter;
import io.fletch.graph.GraphException;
import io.fletch.graph.LowRankAdapter;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.List;

/** A registered adapter: its matrices as the executable has them. Owned by its model. */
final class LoadedAdapter implements Adapter {
  private final LoadedModel model;
  private final int id;
  private final String name;
  private final Path path;
  private final int rank;
  private final List<String> targets;
  private final byte[] digest;
  private final LowRankAdapter weights;

  /** Sessions that list it. */
  private final Users users;

  LoadedAdapter(
      LoadedModel model,
      int id,
      String name,
      Path path,
      int rank,
      List<String> targets,
      byte[] digest,
      LowRankAdapter weights) {
    this.model = model;
    this.id = id;
    this.name = name;
    this.path = path;
    this.rank = rank;
    this.targets = targets;
    this.digest = digest.clone();
    this.weights = weights;
    this.users =
        new Users(
            "the adapter " + name,
            "sessions list adapter " + name + ", close them or change their lists first: sessions");
  }

  @Override
  public LoadedModel model() {
    return model;
  }

  @Override
  public int id() {
    return id;
  }

  @Override
  public String name() {
    return name;
  }

  @Override
  public Path path() {
    return path;
  }

  @Override
  public int rank() {
    return rank;
  }

  @Override
  public List<String> targets() {
    return targets;
  }

  @Override
  public String hash() {
    return HexFormat.of().formatHex(digest);
  }

  byte[] digest() {
    return digest.clone();
  }

  @Override
  public long bytes() {
    return weights.bytes();
  }

  LowRankAdapter weights() {
    return weights;
  }

  /** A session lists it from now on. */
  void retain() {
    users.enter();
  }

  /** A session lists it no more. */
  void release() {
    users.leave();
  }

  @Override
  public void close() {
    if (!users.close()) {
      return;
    }
    try {
      try {
        model.forget(this);
      } finally {
        weights.close();
      }
    } catch (GraphException e) {
      throw model.failure(e);
    }
  }

  @Override
  public String toString() {
    return name;
  }
}
