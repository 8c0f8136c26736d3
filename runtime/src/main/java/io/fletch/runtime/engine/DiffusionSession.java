package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.graph.Batch;
import io.fletch.graph.KvCache;
import io.fletch.graph.Span;
import java.util.List;

/**
 * A conversation with a diffusion model. An answer is unmasked on a canvas whose rows all see each
 * other, so keys and values of a turn say nothing about the next one: no cache is kept between
 * turns, and {@link #tokens()} is empty.
 */
final class DiffusionSession extends BaseSession {
  DiffusionSession(LoadedModel model) {
    super(model);
  }

  @Override
  public List<Integer> tokens() {
    guard().enter();
    try {
      checkOpen();
      return List.of();
    } finally {
      guard().exit();
    }
  }

  @Override
  Generation start(int[] ids, GenerationOptions options) {
    throw new FletchException(
        "model " + model().name() + ": diffusion models cannot generate text yet");
  }

  @Override
  public float[][] logits(int[] ids) {
    guard().enter();
    try {
      checkOpen();
      checkFits(ids);
      return run(ids);
    } finally {
      guard().exit();
    }
  }

  private float[][] run(int[] ids) {
    int vocabulary = model().info().vocabularySize();
    // Every pass runs all rows; its logits are at most 64 MiB.
    int heads = Math.clamp((16 << 20) / vocabulary, 1, ids.length);
    float[][] out = new float[ids.length][vocabulary];
    try (KvCache kv = model().executable().newKvCache(ids.length, model().kvType());
        Batch batch = model().executable().newBatch(ids.length, heads)) {
      Span span = new Span(kv, ids.length, 0, 0, 0, 0, 0, Span.Own.BIDIRECTIONAL, 0);
      for (int done = 0; done < ids.length; done += heads) {
        int n = Math.min(heads, ids.length - done);
        batch.clear();
        int first = batch.add(span, ids, 0);
        for (int i = 0; i < n; i++) {
          batch.wantLogits(first + done + i);
        }
        model().executable().forward(batch);
        for (int i = 0; i < n; i++) {
          batch.logits(i, out[done + i]);
        }
      }
    }
    return out;
  }

  @Override
  public double[] score(int[] ids) {
    guard().enter();
    try {
      checkOpen();
      throw new FletchException(
          "a diffusion model has no likelihood of a text token by token: "
              + model().info().architecture());
    } finally {
      guard().exit();
    }
  }

  @Override
  public void truncate(int length) {
    guard().enter();
    try {
      checkIdle();
      if (length != 0) {
        throw new IndexOutOfBoundsException("length: expected=[0, 0] actual=" + length);
      }
    } finally {
      guard().exit();
    }
  }

  @Override
  void release() {}
}
