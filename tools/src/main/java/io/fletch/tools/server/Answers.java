package io.fletch.tools.server;

import io.fletch.Generation;
import io.fletch.Generation.TokenLogprob;
import io.fletch.Tokenizer;
import io.fletch.ToolCallFormat;
import io.fletch.ToolCallReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/**
 * Builds the objects of OpenAI's API for one request: its answers as a whole, or their chunks, one
 * choice after the other. Used by the request's thread.
 */
final class Answers {
  private final Request request;
  private final String model;
  private final Tokenizer tokenizer;
  private final String id;
  private final long created = System.currentTimeMillis() / 1000;
  private final List<Object> choices = new ArrayList<>();
  private ToolCallReader reader;
  private int index;
  private int textOffset;
  private int promptTokens;
  private int reusedTokens;
  private int completionTokens;

  Answers(Request request, String model, Tokenizer tokenizer) {
    this.request = request;
    this.model = model;
    this.tokenizer = tokenizer;
    id = (request.chat() ? "chatcmpl-" : "cmpl-") + UUID.randomUUID().toString().replace("-", "");
  }

  /** Turns to a choice, 0 first. */
  void choose(int choice) {
    index = choice;
    textOffset = 0;
    reader =
        request
            .tools()
            .map(format -> new ToolCallReader(format, tokenizer, request.schemas()))
            .orElse(null);
  }

  private Map<String, Object> envelope(String object, List<?> of) {
    Map<String, Object> out = new LinkedHashMap<>();
    out.put("id", id);
    out.put("object", object);
    out.put("created", created);
    out.put("model", model);
    out.put("choices", of);
    return out;
  }

  private Map<String, Object> choice(String key, Object value, Object logprobs, String finish) {
    Map<String, Object> out = new LinkedHashMap<>();
    out.put("index", index);
    out.put(key, value);
    out.put("logprobs", logprobs);
    out.put("finish_reason", finish);
    return out;
  }

  /** Takes the whole of a choice. */
  void whole(Generation.Result result, List<TokenLogprob> logprobs) {
    count(result);
    if (!request.chat()) {
      choices.add(choice("text", result.text(), logprobs(logprobs), finish(result, false)));
      return;
    }
    ToolCallFormat.Parsed parsed = parsed(result);
    Map<String, Object> message = new LinkedHashMap<>();
    message.put("role", "assistant");
    message.put(
        "content",
        parsed.calls().isEmpty() || !parsed.content().isEmpty() ? parsed.content() : null);
    message.put("refusal", null);
    if (!parsed.calls().isEmpty()) {
      message.put("tool_calls", calls(parsed, false));
    }
    choices.add(
        choice("message", message, logprobs(logprobs), finish(result, !parsed.calls().isEmpty())));
  }

  /** All choices that were taken. */
  Map<String, Object> all() {
    Map<String, Object> out =
        envelope(request.chat() ? "chat.completion" : "text_completion", choices);
    out.put("usage", usage());
    return out;
  }

  /** A prompt counts once, however many choices it gets. */
  private void count(Generation.Result result) {
    if (request.isFirst(index)) {
      promptTokens += result.promptTokens();
      reusedTokens += result.reusedTokens();
    }
    completionTokens += result.completionTokens();
  }

  private ToolCallFormat.Parsed parsed(Generation.Result result) {
    if (reader == null) {
      return new ToolCallFormat.Parsed(result.text(), List.of());
    }
    ToolCallFormat.Parsed all = reader.parse(result);
    return request.oneCall() && all.calls().size() > 1
        ? new ToolCallFormat.Parsed(all.content(), all.calls().subList(0, 1))
        : all;
  }

  private static List<Object> calls(ToolCallFormat.Parsed parsed, boolean indexed) {
    List<Object> out = new ArrayList<>();
    for (ToolCallFormat.Call call : parsed.calls()) {
      Map<String, Object> one = new LinkedHashMap<>();
      if (indexed) {
        one.put("index", out.size());
      }
      one.put("id", "call_" + UUID.randomUUID().toString().replace("-", "").substring(0, 24));
      one.put("type", "function");
      one.put("function", Map.of("name", call.name(), "arguments", call.arguments()));
      out.add(one);
    }
    return out;
  }

  private static String finish(Generation.Result result, boolean calls) {
    return switch (result.finishReason()) {
      case STOP -> calls ? "tool_calls" : "stop";
      // A cancelled answer that is still read was cancelled by the time limit.
      case LENGTH, CANCELLED -> "length";
    };
  }

  private Map<String, Object> usage() {
    Map<String, Object> out = new LinkedHashMap<>();
    out.put("prompt_tokens", promptTokens);
    out.put("completion_tokens", completionTokens);
    out.put("total_tokens", promptTokens + completionTokens);
    out.put("prompt_tokens_details", Map.of("cached_tokens", reusedTokens));
    return out;
  }

  private Map<String, Object> chunk(Object delta, Object logprobs, String finish) {
    Map<String, Object> out =
        request.chat()
            ? envelope("chat.completion.chunk", List.of(choice("delta", delta, logprobs, finish)))
            : envelope("text_completion", List.of(choice("text", delta, logprobs, finish)));
    if (request.usageInStream()) {
      out.put("usage", null);
    }
    return out;
  }

  /** The first chunk of a choice, before anything has run; null if there is none. */
  Map<String, Object> begin() {
    if (!request.chat()) {
      return null;
    }
    Map<String, Object> delta = new LinkedHashMap<>();
    delta.put("role", "assistant");
    delta.put("content", "");
    return chunk(delta, null, null);
  }

  /**
   * A piece of the answer; null if it has nothing to say. With tools, text that may be a call
   * waits.
   */
  Map<String, Object> piece(Generation.Chunk chunk) {
    String text = reader == null ? chunk.text() : reader.accept(chunk);
    return text.isEmpty() && chunk.logprobs().isEmpty() ? null : piece(text, chunk.logprobs());
  }

  private Map<String, Object> piece(String text, List<TokenLogprob> logprobs) {
    return chunk(request.chat() ? Map.of("content", text) : text, logprobs(logprobs), null);
  }

  /** The last chunks of a choice: calls of tools or held-back text, the reason. */
  List<Map<String, Object>> end(Generation.Result result) {
    count(result);
    List<Map<String, Object>> out = new ArrayList<>();
    boolean calls = false;
    if (request.tools().isPresent()) {
      ToolCallFormat.Parsed parsed = parsed(result);
      calls = !parsed.calls().isEmpty();
      String rest = reader.rest(parsed);
      if (!rest.isEmpty()) {
        out.add(piece(rest, List.of()));
      }
      if (calls) {
        out.add(chunk(Map.of("tool_calls", calls(parsed, true)), null, null));
      }
    }
    out.add(chunk(request.chat() ? Map.of() : "", null, finish(result, calls)));
    return out;
  }

  /** The chunk after the last choice: the usage; null if nobody asked for it. */
  Map<String, Object> last() {
    if (!request.usageInStream()) {
      return null;
    }
    Map<String, Object> out =
        envelope(request.chat() ? "chat.completion.chunk" : "text_completion", List.of());
    out.put("usage", usage());
    return out;
  }

  private Object logprobs(List<TokenLogprob> tokens) {
    if (!request.logprobs() || tokens.isEmpty()) {
      return null;
    }
    return request.chat()
        ? Map.of("content", tokens.stream().map(this::token).toList())
        : old(tokens);
  }

  private Map<String, Object> token(TokenLogprob token) {
    Map<String, Object> out = entry(token.id(), token.logprob());
    out.put("top_logprobs", token.top().stream().map(a -> entry(a.id(), a.logprob())).toList());
    return out;
  }

  private Map<String, Object> entry(int token, double logprob) {
    String text = tokenizer.decode(new int[] {token}, true);
    byte[] bytes = tokenizer.bytes(token);
    List<Integer> octets = new ArrayList<>();
    for (byte b : bytes.length > 0 ? bytes : text.getBytes(StandardCharsets.UTF_8)) {
      octets.add(b & 0xff);
    }
    Map<String, Object> out = new LinkedHashMap<>();
    out.put("token", text);
    out.put("logprob", finite(logprob));
    out.put("bytes", octets);
    return out;
  }

  /** The form of the older API. */
  private Map<String, Object> old(List<TokenLogprob> tokens) {
    List<String> texts = new ArrayList<>();
    List<Double> values = new ArrayList<>();
    List<Map<String, Double>> tops = new ArrayList<>();
    List<Integer> offsets = new ArrayList<>();
    for (TokenLogprob t : tokens) {
      String text = tokenizer.decode(new int[] {t.id()}, true);
      texts.add(text);
      values.add(finite(t.logprob()));
      Map<String, Double> top = new LinkedHashMap<>();
      t.top()
          .forEach(a -> top.put(tokenizer.decode(new int[] {a.id()}, true), finite(a.logprob())));
      tops.add(top);
      offsets.add(textOffset);
      textOffset += text.length();
    }
    Map<String, Object> out = new LinkedHashMap<>();
    out.put("tokens", texts);
    out.put("token_logprobs", values);
    out.put("top_logprobs", tops);
    out.put("text_offset", offsets);
    return out;
  }

  /** JSON has no infinity; OpenAI writes this for what is impossible. */
  private static double finite(double logprob) {
    return Double.isFinite(logprob) ? logprob : -9999;
  }
}
