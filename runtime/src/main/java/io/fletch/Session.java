package io.fletch;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;

/**
 * One conversation: a KV cache and its token history.
 *
 * <p><b>Threads.</b> A session belongs to one thread at a time: concurrent use is detected and
 * refused with {@link java.util.ConcurrentModificationException}. It may be handed from thread to
 * thread. Sessions of one model may be used by as many threads at once, platform or virtual: their
 * steps then share forward passes (continuous batching), in the order in which they come, and each
 * gets bit for bit what it would get alone.
 *
 * <p><b>Memory.</b> The session owns its cache, {@link ModelOptions.KvType} elements for up to the
 * context length (reserved at once, taken from the system as tokens come), until it is closed.
 *
 * <p><b>Generations.</b> At most one {@link Generation} is open. Cancelling it, or closing the
 * session during it, takes effect between two steps; the tokens so far stay in the cache and the
 * model's other sessions notice nothing. An answer that fills the context ends with {@link
 * Generation.FinishReason#LENGTH}: nothing is dropped from the context unless {@link
 * GenerationOptions#contextShift} asks for it, and {@link Generation.Result#droppedTokens} counts
 * it.
 */
public interface Session extends AutoCloseable {
  /** The model. */
  Model model();

  /** The adapters of the session, as they were given. */
  List<Adapter.Scaled> adapters();

  /**
   * Sets the adapters that are added to the model's matrices for this session, in this order; none
   * at first. A list that computes something else than the one before (other adapters, scales or
   * order; a scale of 0 counts as absent) empties the cache, whose keys and values were computed
   * with the old one. Sessions share prefixes only with sessions of the same list, and a saved
   * session is restored only into one of the same list.
   *
   * @throws IllegalArgumentException if an adapter is of another model, or listed twice
   * @throws IllegalStateException if a generation is open, or an adapter is closed
   * @throws FletchException if the model was opened with policies that let units rest: these were
   *     fitted without adapters, or with those of {@link ModelOptions#adapters}
   */
  void adapters(List<Adapter.Scaled> adapters);

  /** Whether the session is open and no generation is: the next one can begin. */
  boolean isIdle();

  /** Ids of the tokens in the cache, prompt and answers, in their order; a copy. */
  List<Integer> tokens();

  /**
   * Answers a chat: renders the messages with the model's template and generates. The part of the
   * prompt that equals the start of the cache is not computed again. Nothing runs before the first
   * chunk is asked for. Special tokens that are written in messages count as such.
   *
   * @param messages the whole conversation, one or more
   * @throws IllegalArgumentException if there are no messages, or an option is out of the model's
   *     range
   * @throws IllegalStateException if a generation is open, or the session is closed
   * @throws FletchException if the model has no chat template, that refuses the messages, the
   *     prompt does not fit into the context, or the model cannot do what the options say
   */
  default Generation chat(List<Message> messages, GenerationOptions options) {
    return chat(messages, Map.of(), options);
  }

  /**
   * As {@link #chat(List, GenerationOptions)}, with further variables for the template.
   *
   * @param variables for example {@code tools}, a list of tools as OpenAI's API has them, for a
   *     model with a {@link Model#toolCallFormat}, or {@code enable_thinking}; what the template
   *     does not look at changes nothing, and a null is {@code none} to it
   */
  Generation chat(List<Message> messages, Map<String, ?> variables, GenerationOptions options);

  /**
   * Continues a raw text, encoded as {@link Tokenizer#encode(String)} does: with a beginning token
   * where the model wants one, special tokens recognised.
   *
   * @throws RuntimeException as {@link #generate(int[], GenerationOptions)}
   */
  Generation generate(String prompt, GenerationOptions options);

  /**
   * Continues token ids. The part of them that the cache begins with is not computed again; what
   * the cache holds behind it is dropped.
   *
   * @param prompt one id or more, special tokens included; nothing is added
   * @throws IllegalArgumentException if there are no ids, or an id or an option is out of the
   *     model's range
   * @throws IllegalStateException if a generation is open, or the session is closed
   * @throws FletchException if the prompt does not fit into the context, or the model cannot do
   *     what the options say
   */
  Generation generate(int[] prompt, GenerationOptions options);

  /**
   * Logits {@code [ids.length][vocabulary]}: row i is what follows ids 0 to i (for a diffusion
   * model, what stands at i). Computed beside the conversation, whose cache stays as it is.
   *
   * @param ids from 1 to {@link Model.Info#contextLength}
   * @throws FletchException if there are none or too many
   * @throws IllegalArgumentException if an id is none of the model's
   */
  float[][] logits(int[] ids);

  /**
   * Log-likelihood (natural) of each token after the first, given those before it; {@code
   * ids.length - 1} values. Computed beside the conversation, whose cache stays as it is.
   *
   * @param ids as of {@link #logits}
   * @throws FletchException as {@link #logits}, and for a diffusion model
   */
  double[] score(int[] ids);

  /**
   * Drops tokens from {@code length} on; O(1).
   *
   * @param length from 0 to the number of {@link #tokens}
   * @throws IndexOutOfBoundsException if it is not in that range
   * @throws IllegalStateException if a generation is open
   */
  void truncate(int length);

  /**
   * A new session of the same model with the same adapters and tokens, whose cache is a copy (its
   * bytes are copied, nothing is computed). The two are independent afterwards.
   *
   * @throws IllegalStateException if a generation is open
   * @throws FletchException for a diffusion model
   */
  Session fork();

  /**
   * Writes the tokens with their keys and values to a file, replacing it in one step: a reader sees
   * the old or the new one.
   *
   * @throws IllegalStateException if a generation is open
   * @throws FletchException for a diffusion model
   * @throws java.io.UncheckedIOException if writing fails
   */
  void save(Path file);

  /**
   * Replaces the tokens by those of a file that {@link #save} has written. The file is checked
   * before anything changes: it must be of the same weights and adapters, the same {@link
   * ModelOptions.KvType} and backend, fit into the context, and have the right checksum. Files are
   * not executed or trusted in any other way; a forged one can only make the model see another
   * past.
   *
   * @throws IllegalStateException if a generation is open
   * @throws FletchException if the file is damaged or of another model
   * @throws java.io.UncheckedIOException if reading fails
   */
  void restore(Path file);

  /**
   * Ends the open generation, if any, and releases the cache. Closing a closed session does
   * nothing.
   *
   * @throws java.util.ConcurrentModificationException if another thread is using it just now:
   *     {@link Generation#cancel} its generation first
   */
  @Override
  void close();
}
