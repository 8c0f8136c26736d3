package io.fletch;

import java.util.List;

/**
 * One conversation: a KV cache and its token history. Belongs to one thread at a time: concurrent
 * use is detected and refused with {@link java.util.ConcurrentModificationException}. At most one
 * {@link Generation} is open.
 */
public interface Session extends AutoCloseable {
  /** The model. */
  Model model();

  /** Tokens in the cache. */
  List<Integer> tokens();

  /**
   * Answers a chat: renders the messages with the model's template and generates. The part of the
   * prompt that equals the start of the cache is not computed again.
   */
  Generation chat(List<Message> messages, GenerationOptions options);

  /** Continues a raw text. */
  Generation generate(String prompt, GenerationOptions options);

  /** Continues token ids. */
  Generation generate(int[] prompt, GenerationOptions options);

  /** Logits {@code [ids.length][vocabulary]} of the ids, from an empty cache. */
  float[][] logits(int[] ids);

  /**
   * Log-likelihood (natural) of each token after the first, given those before it, from an empty
   * cache.
   */
  double[] score(int[] ids);

  /** Drops tokens from {@code length} on; O(1). */
  void truncate(int length);

  @Override
  void close();
}
