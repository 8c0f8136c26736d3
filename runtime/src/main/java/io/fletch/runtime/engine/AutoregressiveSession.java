package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.UnitPolicy;
import io.fletch.graph.GraphException;
import io.fletch.graph.LowRankAdapter;
import io.fletch.sampling.CausalForward.Logits;
import io.fletch.sampling.RowStatistics;
import io.fletch.sampling.UnitUse;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Optional;

/**
 * A conversation with an autoregressive model. Its history is what the cache holds; a new prompt
 * keeps the longest common beginning, but always runs its last token again, whose logits are
 * needed.
 */
final class AutoregressiveSession extends BaseSession {
  private final GraphForward forward;

  /** The small model of the latest routed answer; null before. */
  private LoadedModel small;

  private GraphForward smallForward;

  AutoregressiveSession(LoadedModel model) {
    super(model);
    this.forward = model.newSharingForward();
  }

  @Override
  void adapt(List<LowRankAdapter.Term> next) {
    forward.adapt(next);
  }

  @Override
  public List<Integer> tokens() {
    guard().enter();
    try {
      checkOpen();
      List<Integer> out = new ArrayList<>(forward.length());
      for (int i = 0; i < forward.length(); i++) {
        out.add(forward.token(i));
      }
      return Collections.unmodifiableList(out);
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  /**
   * Checks options.
   *
   * @param ids the prompt, which fits
   */
  static void check(LoadedModel model, int[] ids, GenerationOptions options) {
    if (options.diffusion().isPresent() || options.guide().isPresent()) {
      throw new FletchException(
          "model " + model.name() + " is autoregressive: diffusion options do not apply");
    }
    boolean shifts = options.contextShift().isPresent();
    if (shifts && options.routing().isPresent()) {
      throw new FletchException("token routing and a context shift exclude each other");
    }
    if (options.routing().isPresent()) {
      LoadedModel small = small(options);
      if (ids.length >= small.contextLength()) {
        throw new FletchException(
            "the prompt does not fit the small model: tokens="
                + ids.length
                + " context="
                + small.contextLength());
      }
    }
    if (!model.units().forAnswer(options.units()).isEmpty() && shifts) {
      // Policies treat the answer unlike the prompt, which a shift would mix.
      throw new FletchException("unit policies and a context shift exclude each other");
    }
    options.grammar().ifPresent(g -> model.grammar(g, options.ignoreEnd()));
  }

  private static LoadedModel small(GenerationOptions options) {
    Model small = options.routing().orElseThrow().small();
    if (!(small instanceof LoadedModel loaded) || loaded.diffusion().isPresent()) {
      throw new FletchException("the small model must be autoregressive: model=" + small.name());
    }
    return loaded;
  }

  @Override
  Generation start(int[] ids, int dropped, GenerationOptions options) {
    Shift shift = options.contextShift().map(s -> Shift.of(s, model(), ids)).orElse(null);
    GraphForward proposing = null;
    int room = forward.capacity() - ids.length;
    if (options.routing().isPresent()) {
      proposing = proposing(small(options));
      room = Math.min(room, proposing.capacity() - ids.length);
      UnitRule ofSmall = new UnitRule(small.units().policies(), ids.length);
      proposing.truncate(
          Math.min(
              Math.min(commonPrefix(proposing, ids), proposing.usable(ofSmall)), ids.length - 1));
      proposing.rule(ofSmall);
    }
    int maxTokens = options.maxTokens() == 0 ? room : Math.min(options.maxTokens(), room);
    UnitRule rule = new UnitRule(model().units().forAnswer(options.units()), ids.length);
    if (shift != null) {
      maxTokens = options.maxTokens();
    }
    forward.truncate(
        Math.min(Math.min(commonPrefix(forward, ids), forward.usable(rule)), ids.length - 1));
    forward.rule(rule);
    if (rule.isDense(0)) {
      model().prefixes().fill(forward, ids, ids.length - 1);
    }
    int reused = forward.length();
    return new AutoregressiveGeneration(
        this,
        forward,
        proposing,
        ids,
        reused,
        maxTokens,
        stopTokens(options),
        options,
        shift,
        dropped);
  }

  /** The small model's forward, kept from answer to answer while it is the same model. */
  private GraphForward proposing(LoadedModel wanted) {
    if (small == wanted) {
      return smallForward;
    }
    SameTokens.check("small model", model(), wanted);
    if (wanted.info().vocabularySize() != model().info().vocabularySize()) {
      throw new FletchException(
          "small model "
              + wanted.name()
              + ": logits expected="
              + model().info().vocabularySize()
              + " actual="
              + wanted.info().vocabularySize());
    }
    releaseSmall();
    wanted.sessionOpened();
    try {
      smallForward = wanted.newSharingForward();
      small = wanted;
    } catch (RuntimeException | Error e) {
      wanted.sessionClosed();
      throw e;
    }
    return smallForward;
  }

  private void releaseSmall() {
    if (small != null) {
      smallForward.close();
      small.sessionClosed();
      small = null;
      smallForward = null;
    }
  }

  private static int commonPrefix(GraphForward forward, int[] ids) {
    int most = Math.min(ids.length, forward.length());
    int n = 0;
    while (n < most && ids[n] == forward.token(n)) {
      n++;
    }
    return n;
  }

  @Override
  public float[][] logits(int[] ids) {
    guard().enter();
    try {
      checkOpen();
      checkFits(ids);
      float[][] out = new float[ids.length][];
      eachRow(
          ids,
          (f, row, position) -> {
            out[position] = new float[f.vocabulary()];
            f.rawLogits(row, out[position]);
          });
      return out;
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  @Override
  public double[] score(int[] ids) {
    guard().enter();
    try {
      checkOpen();
      checkFits(ids);
      double[] out = new double[ids.length - 1];
      float[] logits = new float[forward.vocabulary()];
      RowStatistics statistics = new RowStatistics();
      eachRow(
          ids,
          (f, row, position) -> {
            if (position + 1 < ids.length) {
              f.rawLogits(row, logits);
              statistics.set(logits, 0, logits.length);
              out[position] = logits[ids[position + 1]] - statistics.logSumExp;
            }
          });
      return out;
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  /**
   * What the deciding ops of the graph see of every token, under policies, and what comes of it.
   *
   * @param start index of the first token that counts as generated
   * @param policies in place of the model's
   */
  UnitScores.Run unitScores(int[] ids, int start, Optional<List<UnitPolicy>> policies) {
    guard().enter();
    try {
      checkOpen();
      checkFits(ids);
      int decisions = model().executable().graph().decisions().size();
      float[][] logits = new float[ids.length][];
      float[][] scores = new float[ids.length][decisions];
      UnitUse units =
          eachRow(
              ids,
              new UnitRule(model().units().forAnswer(policies), start),
              (f, row, position) -> {
                for (int d = 0; d < decisions; d++) {
                  scores[position][d] = f.score(d, row);
                }
                logits[position] = new float[f.vocabulary()];
                f.rawLogits(row, logits[position]);
              });
      return new UnitScores.Run(logits, scores, units);
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  /** Logits of every token, and the states behind the final norm. */
  HiddenStates.Run hiddenStates(int[] ids) {
    guard().enter();
    try {
      checkOpen();
      checkFits(ids);
      float[][] logits = new float[ids.length][];
      float[][] hidden = new float[ids.length][];
      eachRow(
          ids,
          (f, row, position) -> {
            logits[position] = new float[f.vocabulary()];
            f.rawLogits(row, logits[position]);
            hidden[position] = new float[f.hiddenWidth()];
            if (hidden[position].length > 0) {
              f.hidden(row, hidden[position]);
            }
          });
      return new HiddenStates.Run(logits, hidden);
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  private interface RowConsumer {
    void accept(GraphForward forward, int row, int position);
  }

  /** Runs the ids in a cache of their own, so that the conversation is kept. */
  private void eachRow(int[] ids, RowConsumer consumer) {
    eachRow(ids, new UnitRule(model().units().policies(), 0), consumer);
  }

  private UnitUse eachRow(int[] ids, UnitRule rule, RowConsumer consumer) {
    // Logits of 16 MiB at a time: enough rows to use the machine, little memory.
    int rows = Math.clamp((4 << 20) / forward.vocabulary(), 1, forward.chunk());
    rows = Math.min(rows, ids.length);
    try (GraphForward own = model().newForward(ids.length, rows)) {
      own.rule(rule);
      own.adapt(terms());
      for (int done = 0; done < ids.length; done += rows) {
        int n = Math.min(rows, ids.length - done);
        own.append(ids, done, n, Logits.ALL);
        for (int i = 0; i < n; i++) {
          consumer.accept(own, i, done + i);
        }
      }
      return own.counters().units();
    }
  }

  @Override
  public void truncate(int length) {
    guard().enter();
    try {
      checkIdle();
      forward.truncate(length);
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  @Override
  public Session fork() {
    guard().enter();
    try {
      checkIdle();
      AutoregressiveSession out = (AutoregressiveSession) model().newSession();
      try {
        out.adapters(listed());
        out.forward.copyFrom(forward);
      } catch (RuntimeException | Error e) {
        out.close();
        throw e;
      }
      return out;
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  @Override
  public void save(Path file) {
    guard().enter();
    try {
      checkIdle();
      SessionFile.save(file, identity(), forward);
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  @Override
  public void restore(Path file) {
    guard().enter();
    try {
      checkIdle();
      SessionFile.restore(file, identity(), forward, model().info().vocabularySize());
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  @Override
  void release() {
    try {
      releaseSmall();
    } finally {
      forward.close();
    }
  }
}
