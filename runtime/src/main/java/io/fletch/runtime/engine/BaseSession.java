package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Session;
import io.fletch.graph.GraphException;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;

/**
 * What the sessions of all kinds of models share: the thread rule, the one open generation, and the
 * checks of prompts.
 */
abstract class BaseSession implements Session {
  private final LoadedModel model;
  private final ThreadGuard guard = new ThreadGuard("session");
  private Generation open;
  private boolean closed;

  BaseSession(LoadedModel model) {
    this.model = model;
  }

  @Override
  public LoadedModel model() {
    return model;
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
  public final Generation chat(List<Message> messages, GenerationOptions options) {
    // The template writes the beginning token itself where the model wants one.
    String prompt = model.chatPrompt(messages, true, Map.of());
    return generate(model.tokenizer().encode(prompt, false, true), options);
  }

  @Override
  public final Generation generate(String prompt, GenerationOptions options) {
    return generate(model.tokenizer().encode(prompt), options);
  }

  @Override
  public final Generation generate(int[] prompt, GenerationOptions options) {
    guard.enter();
    try {
      checkIdle();
      int[] ids = prompt.clone();
      if (ids.length == 0) {
        throw new IllegalArgumentException("the prompt has no tokens");
      }
      if (ids.length >= model.contextLength()) {
        throw new FletchException(
            "the prompt does not fit: tokens="
                + ids.length
                + " context="
                + model.contextLength()
                + " (one token must be left for the answer)");
      }
      checkIds(ids);
      open = start(ids, options);
      return open;
    } catch (GraphException e) {
      throw model.failure(e);
    } finally {
      guard.exit();
    }
  }

  /** Prepares a generation; the prompt is checked and fits. */
  abstract Generation start(int[] ids, GenerationOptions options);

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

  final void checkIds(int[] ids) {
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
    checkIds(ids);
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
