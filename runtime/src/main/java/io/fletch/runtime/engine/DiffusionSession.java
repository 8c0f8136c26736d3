package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.graph.Batch;
import io.fletch.graph.GraphException;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.Span;
import io.fletch.sampling.Caching;
import io.fletch.sampling.DiffusionDecoder;
import io.fletch.sampling.DiffusionModel;
import io.fletch.sampling.DiffusionOptions;
import io.fletch.sampling.Exit;
import io.fletch.sampling.SamplerExtras;
import io.fletch.sampling.SamplingOptions;
import io.fletch.sampling.Search;
import io.fletch.sampling.Transfer;
import java.nio.file.Path;
import java.util.List;

/**
 * A conversation with a diffusion model. An answer is unmasked on a canvas whose rows all see each
 * other, so keys and values of a turn say nothing about the next one: no cache is kept between
 * turns, and {@link #tokens()} is empty.
 */
final class DiffusionSession extends BaseSession {
  /** Positions that are finished before the next are begun. */
  private static final int BLOCK = 16;

  /** Tokens of an answer unless asked otherwise. */
  private static final int ANSWER = 64;

  private final GraphCanvas canvas;

  /** The guide of the latest guided answer; null before. */
  private LoadedModel guide;

  private GraphForward guideForward;

  DiffusionSession(LoadedModel model) {
    super(model);
    canvas = new GraphCanvas(model);
  }

  @Override
  void adapt(List<LowRankAdapter.Term> next) {
    canvas.adapt(next);
  }

  @Override
  public List<Integer> tokens() {
    guard().enter();
    try {
      checkOpen();
      return List.of();
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  /** Checks options. */
  static void check(LoadedModel model, GenerationOptions options) {
    checkSampling(model, options);
    if (options.contextShift().isPresent()) {
      throw new FletchException(
          "model " + model.name() + " is a diffusion model: a context shift does not apply");
    }
    if (options.units().isPresent()) {
      throw new FletchException(
          "model " + model.name() + " is a diffusion model: it runs all units");
    }
    if (options.routing().isPresent()) {
      throw new FletchException(
          "model " + model.name() + " is a diffusion model: token routing does not apply");
    }
    if (options.guide().isPresent()
        && !(options.diffusion().isPresent()
            && options.diffusion().get().search() instanceof Search.Guided)) {
      throw new FletchException("a guide is of no use without guided diffusion");
    }
  }

  @Override
  Generation start(int[] ids, int dropped, GenerationOptions options) {
    DiffusionOptions decoding =
        options
            .diffusion()
            .orElseGet(() -> defaults(model().contextLength() - ids.length, options));
    int length = decoding.answerLength();
    if (ids.length + length > model().contextLength()) {
      throw new FletchException(
          "prompt and answer do not fit: prompt="
              + ids.length
              + " answer="
              + length
              + " context="
              + model().contextLength());
    }
    int[] stopTokens = stopTokens(options);
    DiffusionModel facts = model().diffusion(stopTokens);
    DiffusionDecoder decoder =
        decoding.search() instanceof Search.Guided guided
            ? DiffusionDecoder.of(
                canvas, facts, decoding, guide(options, guided, ids.length + length))
            : DiffusionDecoder.of(canvas, facts, decoding);
    boolean streams =
        !(decoding.transfer() instanceof Transfer.Edit)
            && !(decoding.search() instanceof Search.Nap);
    return new DiffusionGeneration(
        this,
        decoder,
        ids,
        stopTokens,
        length,
        options.maxTokens() == 0 ? length : options.maxTokens(),
        streams,
        options);
  }

  /** The guide's forward, kept from answer to answer while guide and sizes stay. */
  private GraphForward guide(GenerationOptions options, Search.Guided technique, int canvasLength) {
    LoadedModel wanted =
        switch (options.guide().orElse(null)) {
          case LoadedModel m when m.diffusion().isEmpty() -> m;
          case null ->
              throw new FletchException(
                  "guided diffusion needs a guide: GenerationOptions.withGuide");
          case Model m ->
              throw new FletchException("the guide must be autoregressive: model=" + m.name());
        };
    if (wanted.contextLength() < canvasLength - 1) {
      throw new FletchException(
          "the guide's context is too short: expected>="
              + (canvasLength - 1)
              + " actual="
              + wanted.contextLength());
    }
    int heads = technique.chunk() + 1;
    if (guide == wanted && guideForward.maxLogitRows() >= heads) {
      return guideForward;
    }
    if (guide != wanted) {
      SameTokens.check("guide", model(), wanted);
    }
    releaseGuide();
    wanted.sessionOpened();
    try {
      guideForward = wanted.newForward(wanted.contextLength(), heads);
      guide = wanted;
    } catch (RuntimeException | Error e) {
      wanted.sessionClosed();
      throw e;
    }
    return guideForward;
  }

  private void releaseGuide() {
    if (guide != null) {
      guideForward.close();
      guide.sessionClosed();
      guide = null;
      guideForward = null;
    }
  }

  /** What sampling options mean nothing here is refused, apart from the cut-off by min-p. */
  private static void checkSampling(LoadedModel model, GenerationOptions options) {
    SamplingOptions s = options.sampling();
    if (s.repetitionPenalty() != 1
        || s.frequencyPenalty() != 0
        || s.presencePenalty() != 0
        || !s.logitBias().isEmpty()
        || !s.extras().equals(SamplerExtras.NONE)) {
      throw new FletchException(
          "penalties, logit bias and sampler extras are not for diffusion models: model="
              + model.name());
    }
    if (!options.samplerSteps().isEmpty()) {
      throw new FletchException(
          "sampler steps are for autoregressive models: model="
              + model.name()
              + " decoding=diffusion");
    }
    if (options.grammar().isPresent()) {
      throw new FletchException(
          "a grammar is for autoregressive models: model=" + model.name() + " decoding=diffusion");
    }
    if (options.logprobs() > 0) {
      throw new FletchException(
          "a diffusion model reports no alternatives: logprobs expected=-1 or 0 actual="
              + options.logprobs());
    }
  }

  /**
   * Low-confidence unmasking: whole blocks, as many as the answer may need, and nothing behind the
   * block that ends it. A block-causal model has its own blocks and an exact cache for them.
   */
  private DiffusionOptions defaults(int room, GenerationOptions options) {
    int grid = model().hyperParameters().diffusionBlock();
    int wanted = options.maxTokens() == 0 ? ANSWER : options.maxTokens();
    int length = (int) Math.min(room, (wanted + BLOCK - 1L) / BLOCK * BLOCK);
    int block = grid > 0 ? grid : length % BLOCK == 0 ? BLOCK : length;
    SamplingOptions s = options.sampling();
    boolean isGreedy = s.temperature() == 0;
    return new DiffusionOptions(
        length,
        block,
        new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE),
        grid > 0 ? new Caching.BlockCausal(true) : new Caching.None(),
        new Search.None(),
        options.ignoreEnd() ? List.of() : List.of(new Exit.EndFill(false)),
        s.temperature(),
        isGreedy ? 1 : s.topP(),
        isGreedy ? 0 : s.topK(),
        0,
        DiffusionOptions.End.PLAIN,
        0,
        true,
        s.seed());
  }

  @Override
  public float[][] logits(int[] ids) {
    guard().enter();
    try {
      checkOpen();
      checkFits(ids);
      return run(ids);
    } catch (GraphException e) {
      throw model().failure(e);
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
      int block = model().hyperParameters().diffusionBlock();
      Span.Own own = block > 0 ? Span.Own.BLOCK_CAUSAL : Span.Own.BIDIRECTIONAL;
      Span span = new Span(kv, ids.length, 0, 0, 0, 0, 0, own, block);
      for (int done = 0; done < ids.length; done += heads) {
        int n = Math.min(heads, ids.length - done);
        batch.clear();
        int first = batch.add(span, ids, 0);
        for (int i = 0; !terms().isEmpty() && i < ids.length; i++) {
          batch.adapt(first + i, terms());
        }
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
    } catch (GraphException e) {
      throw model().failure(e);
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
    } catch (GraphException e) {
      throw model().failure(e);
    } finally {
      guard().exit();
    }
  }

  @Override
  public Session fork() {
    throw keepsNothing();
  }

  @Override
  public void save(Path file) {
    throw keepsNothing();
  }

  @Override
  public void restore(Path file) {
    throw keepsNothing();
  }

  private FletchException keepsNothing() {
    return new FletchException(
        "fork, save and restore are for autoregressive models: model="
            + model().name()
            + " decoding=diffusion");
  }

  @Override
  void release() {
    releaseGuide();
    canvas.close();
  }
}
