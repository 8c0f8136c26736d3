package io.fletch.sampling;

import java.util.Arrays;

/**
 * From a row of logits to the proposal of a position and its statistics (specs/diffusion.md 1 d-e,
 * 3.1, 3.2). At temperature 0 without filters and guidance it needs only the row's reduction; else
 * the logits come to the host.
 *
 * <p>LLaDA: the proposal is the argmax of {@code logit + T * Gumbel}, in float64, with noise keyed
 * by (seed, committed tokens, position, id); its confidence is its probability without noise.
 * Dream: logits are divided by T, cut to the nucleus and to the k best; the proposal is the best or
 * a keyed draw, and confidence, margin and entropy are those of what is left.
 */
final class Proposer {
  private final CanvasForward forward;
  private final DiffusionModel model;
  private final DiffusionOptions options;
  private final LogitEdits edits;
  private final Transfer.DreamAlgorithm algorithm;
  private final boolean filtered;
  private final boolean onHost;
  private final RowStatistics statistics = new RowStatistics();
  private float[] logits;
  private float[] unguided;
  private TokenCandidates candidates;

  Proposer(CanvasForward forward, DiffusionModel model, DiffusionOptions options) {
    this.forward = forward;
    this.model = model;
    this.options = options;
    edits = edits(model, options, forward.vocabulary());
    algorithm =
        options.transfer() instanceof Transfer.Dream d
            ? d.algorithm()
            : Transfer.DreamAlgorithm.MASKGIT_PLUS;
    boolean cut = options.topP() < 1 || options.topK() > 0;
    filtered = cut || (options.transfer() instanceof Transfer.Dream && options.temperature() > 0);
    onHost = filtered || options.temperature() > 0 || options.guidance() > 0;
    if (onHost) {
      logits = new float[forward.vocabulary()];
    }
    if (options.guidance() > 0) {
      unguided = new float[forward.vocabulary()];
    }
    if (filtered) {
      candidates = new TokenCandidates(forward.vocabulary());
    }
  }

  /** The edits of a request: the mask, undefined ids, ending tokens. */
  static LogitEdits edits(DiffusionModel model, DiffusionOptions options, int vocabulary) {
    float[] addend = new float[vocabulary];
    if (model.maskId() >= vocabulary) {
      throw new SamplingException(
          "mask token: expected=below the vocabulary " + vocabulary + " actual=" + model.maskId());
    }
    for (int id : model.endIds()) {
      end(addend, id, options);
    }
    if (!model.ends(model.fillId())) {
      end(addend, model.fillId(), options);
    }
    if (model.definedIds() < vocabulary) {
      Arrays.fill(addend, model.definedIds(), vocabulary, Float.NEGATIVE_INFINITY);
    }
    addend[model.maskId()] = options.suppressMask() ? Float.NEGATIVE_INFINITY : 0;
    int n = 0;
    int[] ids = new int[vocabulary];
    float[] addends = new float[vocabulary];
    for (int id = 0; id < vocabulary; id++) {
      if (addend[id] != 0) {
        ids[n] = id;
        addends[n++] = addend[id];
      }
    }
    return LogitEdits.of(Arrays.copyOf(ids, n), Arrays.copyOf(addends, n));
  }

  private static void end(float[] addend, int id, DiffusionOptions options) {
    if (id < addend.length) {
      addend[id] =
          options.end() == DiffusionOptions.End.FORBIDDEN
              ? Float.NEGATIVE_INFINITY
              : -options.endPenalty();
    }
  }

  LogitEdits edits() {
    return edits;
  }

  /**
   * Fills in the statistics of a position.
   *
   * @param window the conditional window; with guidance the next one is the unconditional
   */
  void propose(int window, int head, CanvasState state, int position, Evaluation into) {
    if (onHost) {
      load(window, head);
      statistics.set(logits, 0, logits.length);
    } else {
      forward.statistics(window, head, statistics);
      if (statistics.argmax < 0) {
        throw new SamplingException("logits have no maximum at position " + position);
      }
    }
    into.argmax[position] = statistics.argmax;
    into.gap[position] = statistics.gap();
    if (filtered) {
      filtered(state, position, into);
    } else if (options.temperature() > 0) {
      noisy(state, position, into);
    } else {
      into.proposal[position] = statistics.argmax;
      into.confidence[position] = statistics.probability();
      into.score[position] =
          switch (algorithm) {
            case TOPK_MARGIN -> statistics.probabilityMargin();
            case ENTROPY -> (float) -statistics.entropy;
            default -> into.confidence[position];
          };
    }
    int proposal = into.proposal[position];
    if (proposal == model.maskId()) {
      into.proposal[position] = -1;
    } else if (options.end() == DiffusionOptions.End.LAST
        && (model.ends(proposal) || proposal == model.fillId())) {
      into.confidence[position] = Float.NEGATIVE_INFINITY;
      into.score[position] = Float.NEGATIVE_INFINITY;
    }
  }

  private void load(int window, int head) {
    forward.logits(window, head, logits);
    if (options.guidance() > 0) {
      forward.logits(window + 1, head, unguided);
      float scale = options.guidance() + 1;
      for (int i = 0; i < logits.length; i++) {
        logits[i] = unguided[i] + scale * (logits[i] - unguided[i]);
      }
    }
    edits.apply(logits, 0, logits.length);
  }

  private void noisy(CanvasState state, int position, Evaluation into) {
    // Most ids cannot win: their bounds, without noise and then without logarithms, say so.
    double best = Double.NEGATIVE_INFINITY;
    int chosen = statistics.argmax;
    double temperature = options.temperature();
    double reach = temperature * CounterRandom.largestGumbel();
    for (int id = 0; id < logits.length; id++) {
      double l = logits[id];
      if (l + reach <= best || l == Double.NEGATIVE_INFINITY) {
        continue;
      }
      long bits = CounterRandom.noiseBits(options.seed(), state.committed, position, id);
      if (l + temperature * CounterRandom.gumbelBound(bits) <= best) {
        continue;
      }
      double v = l + temperature * CounterRandom.gumbel(bits);
      if (v > best) {
        best = v;
        chosen = id;
      }
    }
    into.proposal[position] = chosen;
    into.confidence[position] = (float) Math.exp(logits[chosen] - statistics.logSumExp);
    into.score[position] = into.confidence[position];
  }

  private void filtered(CanvasState state, int position, Evaluation into) {
    candidates.load(logits);
    if (options.temperature() > 0) {
      candidates.scale(options.temperature());
    }
    candidates.keepMass(options.topP());
    if (options.topK() > 0) {
      candidates.keepTop(options.topK());
    }
    int best = candidates.best();
    int chosen = best;
    if (options.temperature() > 0) {
      chosen =
          candidates.draw(
              CounterRandom.uniform(
                  options.seed(), CounterRandom.CANVAS_NOISE, state.committed, position, -1));
    }
    double max = candidates.logit(best);
    double sum = 0;
    double second = 0;
    for (int i = 0; i < candidates.size(); i++) {
      double e = Math.exp(candidates.logit(i) - max);
      sum += e;
      if (i != best) {
        second = Math.max(second, e);
      }
    }
    double negativeEntropy = 0;
    for (int i = 0; i < candidates.size(); i++) {
      double p = Math.exp(candidates.logit(i) - max) / sum;
      negativeEntropy += p * Math.log(p + 1e-10);
    }
    into.proposal[position] = candidates.id(chosen);
    float confidence = (float) (Math.exp(candidates.logit(chosen) - max) / sum);
    into.confidence[position] = confidence;
    into.score[position] =
        switch (algorithm) {
          case TOPK_MARGIN -> (float) ((1 - second) / sum);
          case ENTROPY -> (float) negativeEntropy;
          default -> confidence;
        };
  }
}
