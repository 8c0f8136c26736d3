package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.tools.QuestionSet.Question;
import io.fletch.tools.QuestionSet.Score;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A technique of {@code fletch compare} with what it has done so far. Used by one thread. */
final class Contender {
  private final String technique;
  private final Model model;
  private final GenerationOptions options;
  private final Score score = new Score();
  private final Counters counters = new Counters();
  private final List<Double> seconds = new ArrayList<>();
  private final ReferencePerplexity perplexity = new ReferencePerplexity();
  private long tokens;
  private int same;
  private Generation.Result latest;

  /**
   * Nothing has run yet.
   *
   * @param model whose sessions answer
   */
  Contender(String technique, Model model, GenerationOptions options) {
    this.technique = technique;
    this.model = model;
    this.options = options;
  }

  Model model() {
    return model;
  }

  GenerationOptions options() {
    return options;
  }

  void add(Question question, Generation.Result result, double time) {
    latest = result;
    score.add(question.isAnsweredBy(result));
    counters.add(result.counters());
    tokens += result.completionTokens();
    seconds.add(time);
  }

  /** All have answered the question: counts an answer that is the baseline's. */
  void match(Contender baseline) {
    same += latest.text().equals(baseline.latest.text()) ? 1 : 0;
  }

  /** Tokens of the prompt of the latest answer. */
  int promptTokens() {
    return latest.promptTokens();
  }

  String technique() {
    return technique;
  }

  Score score() {
    return score;
  }

  Counters counters() {
    return counters;
  }

  int same() {
    return same;
  }

  /** How likely the set's answers are; of autoregressive models. */
  ReferencePerplexity perplexity() {
    return perplexity;
  }

  double accuracy() {
    return score.accuracy();
  }

  double forwards() {
    return counters.perAnswer(counters.forwards());
  }

  double tokensPerSecond() {
    return tokens / seconds.stream().mapToDouble(Double::doubleValue).sum();
  }

  /** Median over questions of the baseline's time per own time. */
  double speedUp(Contender baseline) {
    double[] ratios = new double[seconds.size()];
    for (int i = 0; i < ratios.length; i++) {
      ratios[i] = baseline.seconds.get(i) / seconds.get(i);
    }
    Arrays.sort(ratios);
    int n = ratios.length;
    return (ratios[(n - 1) / 2] + ratios[n / 2]) / 2;
  }

  Map<String, Object> json(CostKind kind, Contender baseline) {
    Map<String, Object> json = new LinkedHashMap<>();
    json.put("technique", technique);
    json.put("correct", score.correct());
    json.put("accuracy", accuracy());
    json.put("same_as_baseline", same);
    if (perplexity.isMeasured()) {
      json.put("perplexity", Json.rounded(perplexity.value()));
    }
    counters.put(json);
    if (options.routing().isPresent()) {
      Counters.putRouting(counters.sum(), json);
    }
    json.put("tokens", tokens);
    json.put("tokens_per_second", Json.rounded(tokensPerSecond()));
    json.put(kind.savingName(), Json.rounded(kind.saving(this, baseline)));
    json.put("speed_up", Json.rounded(speedUp(baseline)));
    return json;
  }
}
