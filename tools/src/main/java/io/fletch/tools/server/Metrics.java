package io.fletch.tools.server;

import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.LongAdder;

/** Counters of the server, in the text format of Prometheus. Thread-safe. */
final class Metrics {
  final LongAdder promptTokens = new LongAdder();
  final LongAdder embeddings = new LongAdder();
  final LongAdder reusedTokens = new LongAdder();
  final LongAdder completionTokens = new LongAdder();
  final LongAdder routedTokens = new LongAdder();
  final LongAdder weightBytes = new LongAdder();
  final LongAdder activatedParameters = new LongAdder();
  final LongAdder cancelled = new LongAdder();
  final LongAdder rejected = new LongAdder();
  final LongAdder prefillNanos = new LongAdder();
  final LongAdder decodeNanos = new LongAdder();
  final AtomicLong active = new AtomicLong();
  private final Map<String, LongAdder> requests = new ConcurrentSkipListMap<>();

  /** Counts an answer; the route is one of a fixed set. */
  void request(String route, int status) {
    requests
        .computeIfAbsent(
            "{route=\"" + route + "\",status=\"" + status + "\"}", _ -> new LongAdder())
        .increment();
  }

  String text(int sessions, int queued) {
    StringBuilder out = new StringBuilder();
    head(out, "fletch_requests_total", "counter", "Requests answered");
    new TreeMap<>(requests)
        .forEach((labels, n) ->
            out.append("fletch_requests_total").append(labels).append(' ').append(n).append('\n'));
    one(out, "fletch_prompt_tokens_total", "counter", "Tokens of prompts", promptTokens.sum());
    one(out, "fletch_embeddings_total", "counter", "Texts embedded", embeddings.sum());
    one(
        out,
        "fletch_reused_tokens_total",
        "counter",
        "Tokens of prompts found in a cache",
        reusedTokens.sum());
    one(
        out,
        "fletch_completion_tokens_total",
        "counter",
        "Tokens generated",
        completionTokens.sum());
    one(
        out,
        "fletch_routed_tokens_total",
        "counter",
        "Tokens that a small model proposed and the large one replaced",
        routedTokens.sum());
    one(
        out,
        "fletch_weight_bytes_total",
        "counter",
        "Bytes of weights read; per completion token, the cost of decoding",
        weightBytes.sum());
    one(
        out,
        "fletch_activated_parameters_total",
        "counter",
        "Parameters that computed the tokens generated",
        activatedParameters.sum());
    one(
        out,
        "fletch_cancelled_total",
        "counter",
        "Answers cancelled by disconnects, time limits or shutdown",
        cancelled.sum());
    one(
        out,
        "fletch_rejected_total",
        "counter",
        "Requests refused because the queue was full",
        rejected.sum());
    one(
        out,
        "fletch_prefill_seconds_total",
        "counter",
        "Time for prompts",
        prefillNanos.sum() / 1e9);
    one(
        out,
        "fletch_decode_seconds_total",
        "counter",
        "Time for answers after their first token",
        decodeNanos.sum() / 1e9);
    one(out, "fletch_active", "gauge", "Answers being generated", active.get());
    one(out, "fletch_queued", "gauge", "Requests that wait", queued);
    one(out, "fletch_sessions", "gauge", "Open sessions, idle ones included", sessions);
    return out.toString();
  }

  private static void one(StringBuilder out, String name, String type, String help, Number value) {
    head(out, name, type, help);
    out.append(name).append(' ').append(value).append('\n');
  }

  private static void head(StringBuilder out, String name, String type, String help) {
    out.append("# HELP ").append(name).append(' ').append(help).append('\n');
    out.append("# TYPE ").append(name).append(' ').append(type).append('\n');
  }
}
