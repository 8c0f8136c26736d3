package io.fletch.tools;

import io.fletch.Generation;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** Rates of a generation. */
final class Speed {
  private Speed() {}

  /** Prompt tokens computed (not reused) per second. */
  static double prefill(Generation.Result result) {
    return rate(result.promptTokens() - result.reusedTokens(), result.prefillNanos());
  }

  /** Tokens after the first per second: the first one comes out of the prefill. */
  static double decode(Generation.Result result) {
    return rate(result.completionTokens() - 1, result.decodeNanos());
  }

  static double rate(long tokens, long nanos) {
    return tokens > 0 && nanos > 0 ? tokens * 1e9 / nanos : 0;
  }

  /** A finish reason as it is written in JSON. */
  static String written(Generation.FinishReason reason) {
    return reason.name().toLowerCase(Locale.ROOT);
  }

  /** A line for people. */
  static String line(Generation.Result result) {
    return Texts.format(
        "prompt %d tokens (%d reused), %.1f tok/s; answer %d tokens, %.1f tok/s; %d forwards; %s",
        result.promptTokens(),
        result.reusedTokens(),
        prefill(result),
        result.completionTokens(),
        decode(result),
        result.forwards(),
        written(result.finishReason()));
  }

  /** What the weights and the routing cost, for people; empty where nothing was counted. */
  static List<String> costs(Generation.Result result, boolean isRouted) {
    List<String> lines = new ArrayList<>();
    if (result.counters().weights().tokens() > 0) {
      lines.add(Counters.weights(result.counters().weights()));
    }
    if (isRouted) {
      lines.add(Counters.routing(result.counters()));
    }
    return lines;
  }
}
