package io.fletch.runtime.engine;

import io.fletch.Adapter;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Session;
import io.fletch.graph.GraphException;
import io.fletch.graph.LowRankAdapter;
import io.fletch.sampling.Sampler;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;

/**
 * What the sessions of all kinds of models share: the thread rule, the one open generation, and the
 * checks of prompts.
 */
abstract class BaseSession implements Session {
  private final LoadedModel model;
  private final ThreadGuard guard = new ThreadGuard("session");
  private List<Adapter.Scaled> adapters = List.of();

  /** Those with a scale other than 0, as batches take them. */
  private List<LowRankAdapter.Term> terms = List.of();

  private Generation open;
  private boolean closed;

  BaseSession(LoadedModel model) {
    this.model = model;
  }

  @Override
  public LoadedModel model() {
    return model;
  }

  @Override
  public final List<Adapter.Scaled> adapters() {
    guard.enter();
    try {
      checkOpen();
      return adapters;
    } finally {
      guard.exit();
    }
  }

  @Override
  public final void adapters(List<Adapter.Scaled> list) {
    guard.enter();
    try {
      checkIdle();
      set(List.copyOf(list));
    } finally {
      guard.exit();
    }
  }

  @Override
  public final String toString() {
    // Of no thread: nothing that changes.
    return "Session[" + model.name() + "]";
  }

  @Override
  public final boolean isIdle() {
    guard.enter();
    try {
      return !closed && open == null;
    } finally {
      guard.exit();
    }
  }

  private void set(List<Adapter.Scaled> list) {
    Set<Adapter> seen = new HashSet<>();
    for (Adapter.Scaled s : list) {
      if (s.adapter().model() != model || !seen.add(s.adapter())) {
        throw new IllegalArgumentException(
            "adapter "
                + s.adapter().name()
                + ": expected=one of model "
                + model.name()
                + ", once actual="
                + (s.adapter().model() != model
                    ? "one of model " + s.adapter().model().name()
                    : "listed twice"));
      }
    }
    if (!list.isEmpty() && !model.units().policies().isEmpty()) {
      throw new FletchException(
          "model "
              + model.name()
              + ": units that rest go with adapters that are attached when the model is opened"
              + " (ModelOptions.withAdapters) only");
    }
    // A copy, which batches take as it is.
    List<LowRankAdapter.Term> next =
        List.copyOf(
            list.stream()
                .filter(s -> s.scale() != 0)
                .map(s -> new LowRankAdapter.Term(loaded(s).weights(), s.scale()))
                .toList());
    model.executable().checkTerms(next);
    int held = 0;
    try {
      for (; held < list.size(); held++) {
        loaded(list.get(held)).retain();
      }
    } finally {
      if (held < list.size()) {
        list.subList(0, held).forEach(s -> loaded(s).release());
      }
    }
    adapters.forEach(s -> loaded(s).release());
    adapters = list;
    if (!next.equals(terms)) {
      terms = next;
      adapt(next);
    }
  }

  /** As {@link #adapters()}, for who uses the session already. */
  final List<Adapter.Scaled> listed() {
    return adapters;
  }

  private static LoadedAdapter loaded(Adapter.Scaled scaled) {
    // Of this model, which makes no others.
    return (LoadedAdapter) scaled.adapter();
  }

  /** What is added to products for rows of this session. */
  final List<LowRankAdapter.Term> terms() {
    return terms;
  }

  /** Takes other adapters: what was computed with the old ones is dropped. */
  abstract void adapt(List<LowRankAdapter.Term> next);

  /** What tells the model with this session's adapters from others. */
  final byte[] identity() {
    byte[] own = model.identity();
    if (terms.isEmpty()) {
      return own;
    }
    try {
      MessageDigest digest = MessageDigest.getInstance("SHA-256");
      digest.update(own);
      for (Adapter.Scaled s : adapters) {
        if (s.scale() != 0) {
          digest.update(loaded(s).digest());
          digest.update(ByteBuffer.allocate(Float.BYTES).putFloat(s.scale()).flip());
        }
      }
      return digest.digest();
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  ThreadGuard guard() {
    return guard;
  }

  /** A generation has ended; the next may begin. */
  void finished(Generation generation) {
    if (open == generation) {
      open = null;
    }
  }

  @Override
  public final Generation chat(
      List<Message> messages, Map<String, ?> variables, GenerationOptions options) {
    if (Objects.requireNonNull(messages, "messages").isEmpty()) {
      throw new IllegalArgumentException("messages: expected=one or more actual=none");
    }
    // The template writes the beginning token itself where the model wants one.
    String prompt = model.chatPrompt(messages, true, Collections.unmodifiableMap(variables));
    return generate(model.tokenizer().encode(prompt, false, true), options);
  }

  @Override
  public final Generation generate(String prompt, GenerationOptions options) {
    return generate(model.tokenizer().encode(prompt), options);
  }

  @Override
  public final Generation generate(int[] prompt, GenerationOptions options) {
    Objects.requireNonNull(prompt, "prompt");
    Objects.requireNonNull(options, "options");
    guard.enter();
    try {
      checkIdle();
      int[] ids = prompt.clone();
      int[] fitting = checked(model, ids, options);
      open = start(fitting, ids.length - fitting.length, options);
      return open;
    } catch (GraphException e) {
      throw model.failure(e);
    } finally {
      guard.exit();
    }
  }

  /**
   * Checks a prompt and options.
   *
   * @return the prompt, without what it loses to fit; not copied if that is nothing
   */
  static int[] checked(LoadedModel model, int[] ids, GenerationOptions options) {
    if (ids.length == 0) {
      throw new IllegalArgumentException("the prompt has no tokens");
    }
    checkIds(model, ids);
    int[] fitting = fit(model, ids, options);
    Sampler.check(options.sampling(), model.info().vocabularySize());
    for (int id : options.stopTokens()) {
      if (id >= model.info().vocabularySize()) {
        throw new IllegalArgumentException(
            "stop token: expected=below " + model.info().vocabularySize() + " actual=" + id);
      }
    }
    if (model.diffusion().isPresent()) {
      DiffusionSession.check(model, options);
    } else {
      AutoregressiveSession.check(model, fitting, options);
    }
    return fitting;
  }

  /** Checks that one token is left for the answer, or drops old ones if the options say so. */
  private static int[] fit(LoadedModel model, int[] ids, GenerationOptions options) {
    int context = model.contextLength();
    if (options.contextShift().isPresent()) {
      return Shift.of(options.contextShift().get(), model, ids).fit(ids, context);
    }
    if (ids.length >= context) {
      throw new FletchException(
          "the prompt does not fit: tokens="
              + ids.length
              + " context="
              + context
              + " (one token must be left for the answer)");
    }
    return ids;
  }

  /**
   * Prepares a generation; prompt and options are checked, and the prompt fits.
   *
   * @param dropped tokens that the prompt has lost to fit
   */
  abstract Generation start(int[] ids, int dropped, GenerationOptions options);

  /** Releases what the session owns. */
  abstract void release();

  /** Ids that end an answer, ascending. */
  final int[] stopTokens(GenerationOptions options) {
    TreeSet<Integer> out = new TreeSet<>(options.stopTokens());
    if (!options.ignoreEnd()) {
      out.addAll(model.tokenizer().endOfGeneration());
    }
    return out.stream().mapToInt(Integer::intValue).toArray();
  }

  private static void checkIds(LoadedModel model, int[] ids) {
    int vocabulary = model.info().vocabularySize();
    for (int i = 0; i < ids.length; i++) {
      if (ids[i] < 0 || ids[i] >= vocabulary) {
        throw new IllegalArgumentException(
            "token id " + i + ": expected=[0, " + vocabulary + ") actual=" + ids[i]);
      }
    }
  }

  /** Checks ids that are to be run as a whole. */
  final void checkFits(int[] ids) {
    if (ids.length == 0 || ids.length > model.contextLength()) {
      throw new FletchException(
          "token ids do not fit: expected=[1, " + model.contextLength() + "] actual=" + ids.length);
    }
    checkIds(model, ids);
  }

  final void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the session is closed");
    }
  }

  final void checkIdle() {
    checkOpen();
    if (open != null) {
      throw new IllegalStateException(
          "the session has an open generation: read it to its end or close it first");
    }
  }

  @Override
  public final void close() {
    guard.enter();
    try {
      if (closed) {
        return;
      }
      try {
        if (open != null) {
          open.close();
        }
      } finally {
        closed = true;
        try {
          release();
        } finally {
          adapters.forEach(a -> loaded(a).release());
          adapters = List.of();
          model.sessionClosed();
        }
      }
    } catch (GraphException e) {
      throw model.failure(e);
    } finally {
      guard.exit();
    }
  }
}
