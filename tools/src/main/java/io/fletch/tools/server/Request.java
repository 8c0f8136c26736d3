package io.fletch.tools.server;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Adapter;
import io.fletch.FletchException;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ToolCallFormat;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplingException;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;

/**
 * What a completion request asks for, checked. Fields of OpenAI's API that say nothing about the
 * answer are ignored; those that are not supported are refused.
 *
 * @param chat whether it is a chat completion
 * @param prompts token ids of each; one of a chat
 * @param choices how many answers to each prompt
 * @param logprobs whether the client wants log-probabilities
 * @param tools how calls of tools are written, where the request has tools
 * @param schemas of the arguments of the tools by their names
 * @param oneCall whether an answer has one call at most
 * @param adapters those of the request; empty for the server's
 */
record Request(
    boolean chat,
    List<int[]> prompts,
    int choices,
    GenerationOptions options,
    boolean stream,
    boolean usageInStream,
    boolean logprobs,
    Optional<ToolCallFormat> tools,
    Map<String, Object> schemas,
    boolean oneCall,
    Optional<List<Adapter.Scaled>> adapters) {
  private static final SecureRandom SEEDS = new SecureRandom();
  private static final int MOST_CHOICES = 128;

  /** As in OpenAI's API: grammars of calls take time before there is a place in the queue. */
  private static final int MOST_TOOLS = 128;

  /** Of a function that leaves them out. */
  private static final Map<String, Object> NO_PARAMETERS =
      Map.of("type", "object", "properties", Map.of(), "additionalProperties", false);

  private static final Set<String> COMMON =
      Set.of(
          "model",
          "max_tokens",
          "temperature",
          "top_p",
          "top_k",
          "min_p",
          "repeat_penalty",
          "repetition_penalty",
          "cache_prompt",
          "repeat_last_n",
          "presence_penalty",
          "frequency_penalty",
          "logit_bias",
          "seed",
          "stop",
          "stream",
          "stream_options",
          "logprobs",
          "n",
          "user",
          "grammar",
          "ignore_eos",
          "lora");
  private static final Set<String> CHAT =
      Set.of(
          "messages",
          "max_completion_tokens",
          "top_logprobs",
          "response_format",
          "tools",
          "tool_choice",
          "parallel_tool_calls",
          "metadata",
          "store",
          "service_tier",
          "safety_identifier",
          "prompt_cache_key",
          "prompt_cache_retention",
          "prediction",
          "modalities",
          "verbosity",
          "chat_template_kwargs");

  static Request chat(Wire body, Model model, SamplingOptions defaults) {
    body.only(union(CHAT));
    // Their defaults say nothing.
    if (body.has("modalities") && !body.list("modalities").equals(List.of("text"))) {
      throw body.wrong("modalities", "[\"text\"]", body.get("modalities"));
    }
    if (!body.text("verbosity", "medium").equals("medium")) {
      throw body.wrong("verbosity", "medium", body.get("verbosity"));
    }
    List<Message> messages = new ArrayList<>();
    int index = 0;
    for (Object one : body.list("messages")) {
      messages.add(message(Wire.of(one, "messages[" + index++ + "]")));
    }
    if (messages.isEmpty()) {
      throw ApiException.invalid("messages", "messages: expected=at least one actual=none");
    }
    boolean logprobs = body.flag("logprobs", false);
    int top = (int) body.whole("top_logprobs", 0, 0, 20);
    if (top > 0 && !logprobs) {
      throw ApiException.invalid("top_logprobs", "top_logprobs needs logprobs: true");
    }
    GenerationOptions options = options(body, defaults, body.has("max_completion_tokens"));
    if (logprobs) {
      options = options.withLogprobs(top);
    }
    Tools tools = Tools.of(body, model);
    try {
      Optional<Grammar> grammar = format(body).or(() -> grammar(body));
      if (tools.grammar().isPresent()) {
        if (grammar.isPresent()) {
          throw ApiException.invalid("tool_choice", "tool_choice excludes response_format");
        }
        grammar = tools.grammar();
      } else if (grammar.isPresent() && tools.format().isPresent()) {
        // The answer is a call or has the form that is asked for.
        grammar = Optional.of(grammar.get().or(tools.format().get().grammar(tools.schemas())));
      }
      if (grammar.isPresent()) {
        options = options.withGrammar(grammar.get());
      }
      Map<String, Object> variables = new LinkedHashMap<>();
      if (body.has("chat_template_kwargs")) {
        variables.putAll(body.object("chat_template_kwargs").map());
      }
      if (!tools.tools().isEmpty()) {
        variables.put("tools", tools.tools());
      }
      String prompt = model.chatPrompt(messages, true, variables);
      return new Request(
          true,
          List.of(model.tokenizer().encode(prompt, false, true)),
          choices(body),
          options,
          body.flag("stream", false),
          usage(body),
          logprobs,
          tools.format(),
          tools.schemas(),
          !body.flag("parallel_tool_calls", true),
          adapters(body, model));
    } catch (FletchException | SamplingException | IllegalArgumentException e) {
      throw ApiException.invalid(null, e.getMessage());
    }
  }

  static Request completion(Wire body, Model model, SamplingOptions defaults) {
    body.only(union(Set.of("prompt", "best_of", "echo")));
    if (body.flag("echo", false)) {
      throw body.wrong("echo", "false", true);
    }
    int choices = choices(body);
    if (body.whole("best_of", choices, 1, MOST_CHOICES) != choices) {
      throw ApiException.invalid(
          "best_of",
          "best_of: expected=n ("
              + choices
              + ") actual="
              + body.get("best_of")
              + " (not supported: ask for n choices with logprobs and take the best)");
    }
    List<int[]> prompts = prompts(body, model);
    if ((long) prompts.size() * choices > MOST_CHOICES) {
      throw body.wrong("n", "at most " + MOST_CHOICES + " answers to all prompts", choices);
    }
    int top = (int) body.whole("logprobs", -1, 0, 20);
    GenerationOptions options = options(body, defaults, false).withLogprobs(top);
    // The default of that API.
    if (!body.has("max_tokens")) {
      options = options.withMaxTokens(16);
    }
    try {
      Optional<Grammar> grammar = grammar(body);
      return new Request(
          false,
          prompts,
          choices,
          grammar.isPresent() ? options.withGrammar(grammar.get()) : options,
          body.flag("stream", false),
          usage(body),
          top >= 0,
          Optional.empty(),
          Map.of(),
          false,
          adapters(body, model));
    } catch (SamplingException e) {
      throw ApiException.invalid("grammar", e.getMessage());
    }
  }

  private static List<int[]> prompts(Wire body, Model model) {
    Object prompt = body.get("prompt");
    boolean isOne = prompt instanceof String || prompt instanceof List<?> l && isIds(l);
    List<?> all = isOne ? List.of(prompt) : prompt instanceof List<?> l ? l : List.of();
    List<int[]> out = new ArrayList<>();
    for (Object one : all) {
      switch (one) {
        case String s -> out.add(model.tokenizer().encode(s));
        case List<?> l when isIds(l) -> out.add(ids(l));
        case null, default ->
            throw body.wrong("prompt", "a text, token ids, or an array of either", prompt);
      }
      if (out.size() > MOST_CHOICES) {
        break;
      }
    }
    if (out.isEmpty()) {
      throw body.wrong("prompt", "a text, token ids, or an array of either", prompt);
    }
    return out;
  }

  private static boolean isIds(List<?> list) {
    return !list.isEmpty() && list.stream().allMatch(Integer.class::isInstance);
  }

  private static int[] ids(List<?> list) {
    return list.stream().mapToInt(Integer.class::cast).toArray();
  }

  private static Optional<List<Adapter.Scaled>> adapters(Wire body, Model model) {
    return body.has("lora")
        ? Optional.of(adapters(body.list("lora"), "lora", model))
        : Optional.empty();
  }

  /**
   * A list of adapters with scales, by their ids: {@code [{"id": 0, "scale": 0.5}]}.
   *
   * @param path where it stands in the body
   * @return in the order of ids
   */
  static List<Adapter.Scaled> adapters(List<?> list, String path, Model model) {
    Map<Integer, Adapter> known = new TreeMap<>();
    model.adapters().forEach(a -> known.put(a.id(), a));
    Map<Integer, Adapter.Scaled> out = new TreeMap<>();
    int index = 0;
    for (Object one : list) {
      Wire entry = Wire.of(one, path + "[" + index++ + "]");
      entry.only(Set.of("id", "scale"));
      for (String key : new String[] {"id", "scale"}) {
        if (!entry.has(key)) {
          throw entry.wrong(key, "a number", null);
        }
      }
      int id = (int) entry.whole("id", 0, 0, Integer.MAX_VALUE);
      if (!known.containsKey(id)) {
        throw entry.wrong("id", "one of " + known.keySet(), id);
      }
      float scale = (float) entry.real("scale", 0, -1e6, 1e6);
      if (out.put(id, known.get(id).scaled(scale)) != null) {
        throw entry.wrong("id", "one that is not listed before", id);
      }
    }
    return List.copyOf(out.values());
  }

  private static Set<String> union(Set<String> more) {
    Set<String> out = new HashSet<>(COMMON);
    out.addAll(Samplers.FIELDS);
    out.addAll(more);
    return out;
  }

  private static boolean usage(Wire body) {
    if (!body.has("stream_options")) {
      return false;
    }
    Wire options = body.object("stream_options");
    options.only(Set.of("include_usage", "include_obfuscation"));
    return options.flag("include_usage", false);
  }

  private static Optional<Grammar> grammar(Wire body) {
    return body.has("grammar")
        ? Optional.of(Grammar.parse(body.text("grammar", "")))
        : Optional.empty();
  }

  private static Optional<Grammar> format(Wire body) {
    if (!body.has("response_format")) {
      return Optional.empty();
    }
    Wire format = body.object("response_format");
    format.only(Set.of("type", "json_schema", "schema"));
    String type = format.text("type", "text");
    if (type.equals("json_object") && format.has("schema")) {
      // As llama.cpp's server has it.
      return Optional.of(Grammar.ofJsonSchema(format.object("schema").map()));
    }
    return switch (type) {
      case "text" -> Optional.empty();
      case "json_object" -> Optional.of(Grammar.ofJsonObject());
      case "json_schema" ->
          Optional.of(Grammar.ofJsonSchema(format.object("json_schema").object("schema").map()));
      default -> throw format.wrong("type", "text, json_object or json_schema", type);
    };
  }

  private static int choices(Wire body) {
    return (int) body.whole("n", 1, 1, MOST_CHOICES);
  }

  /** How many answers there are to all prompts: first those to the first. */
  int answers() {
    return prompts.size() * choices;
  }

  /** What an answer is one to. */
  int[] prompt(int answer) {
    return prompts.get(answer / choices);
  }

  /** Whether an answer is the first to its prompt. */
  boolean isFirst(int answer) {
    return answer % choices == 0;
  }

  /**
   * The options of an answer: each to a prompt draws with a seed of its own, one higher than the
   * one before.
   */
  GenerationOptions options(int answer) {
    SamplingOptions sampling = options.sampling();
    return isFirst(answer)
        ? options
        : options.withSampling(sampling.withSeed(sampling.seed() + answer % choices));
  }

  private static GenerationOptions options(Wire body, SamplingOptions defaults, boolean newName) {
    body.flag("cache_prompt", true); // Beginnings are kept whatever it says; answers are the same.
    // Of llama.cpp's server, and of vLLM and others.
    String repeat = body.has("repeat_penalty") ? "repeat_penalty" : "repetition_penalty";
    SamplingOptions sampling =
        defaults
            .withTemperature((float) body.real("temperature", defaults.temperature(), 0, 100))
            // For vLLM -1 stands for all.
            .withTopK(
                Math.max(0, (int) body.whole("top_k", defaults.topK(), -1, Integer.MAX_VALUE)))
            .withTopP((float) Math.max(Float.MIN_NORMAL, body.real("top_p", defaults.topP(), 0, 1)))
            .withMinP((float) body.real("min_p", defaults.minP(), 0, 1))
            .withPenalties(
                (float) body.real(repeat, 1, 0.01, 100),
                (float) body.real("frequency_penalty", 0, -2, 2),
                (float) body.real("presence_penalty", 0, -2, 2),
                // OpenAI's penalties look at the whole text, llama.cpp's at its end.
                (int)
                    body.whole(
                        "repeat_last_n",
                        body.has(repeat) ? defaults.penaltyWindow() : -1,
                        -1,
                        Integer.MAX_VALUE))
            .withExtras(Samplers.of(body, defaults.extras()))
            .withLogitBias(bias(body))
            .withSeed(
                body.has("seed")
                    ? body.whole("seed", 0, Long.MIN_VALUE, Long.MAX_VALUE)
                    : SEEDS.nextLong());
    List<String> stop = new ArrayList<>();
    switch (body.get("stop")) {
      case null -> {}
      case String s -> stop.add(s);
      case List<?> l when l.size() <= 16 && l.stream().allMatch(String.class::isInstance) ->
          l.forEach(s -> stop.add((String) s));
      case Object o -> throw body.wrong("stop", "a text or an array of up to 16", o);
    }
    if (stop.contains("")) {
      throw ApiException.invalid("stop", "stop: expected=text actual=an empty one");
    }
    String most = newName ? "max_completion_tokens" : "max_tokens";
    return GenerationOptions.defaults()
        .withSampling(sampling)
        .withMaxTokens(
            isEndless(body.get(most)) ? 0 : (int) body.whole(most, 0, 1, Integer.MAX_VALUE))
        .withStopStrings(stop)
        .withIgnoreEnd(body.flag("ignore_eos", false));
  }

  /** As llama.cpp's server has it. */
  private static boolean isEndless(Object most) {
    return most instanceof Integer n && n == -1;
  }

  private static Map<Integer, Float> bias(Wire body) {
    Map<Integer, Float> out = new HashMap<>();
    if (body.has("logit_bias")) {
      Wire bias = body.object("logit_bias");
      for (String key : bias.map().keySet()) {
        if (!key.matches("[0-9]{1,9}")) {
          throw ApiException.invalid("logit_bias", "logit_bias: expected=token ids actual=" + key);
        }
        out.put(Integer.parseInt(key), (float) bias.real(key, 0, -100, 100));
      }
    }
    return out;
  }

  private static Message message(Wire m) {
    String role = m.text("role", "");
    role = role.equals("developer") ? "system" : role;
    if (!Set.of("system", "user", "assistant", "tool").contains(role)) {
      throw m.wrong("role", "system, developer, user, assistant or tool", m.get("role"));
    }
    Map<String, Object> more = new LinkedHashMap<>();
    for (String key : List.of("name", "tool_call_id")) {
      if (m.has(key)) {
        more.put(key, m.text(key, ""));
      }
    }
    if (m.has("tool_calls")) {
      List<Object> calls = new ArrayList<>();
      int index = 0;
      for (Object one : m.list("tool_calls")) {
        Wire call = Wire.of(one, m.path() + ".tool_calls[" + index++ + "]");
        Wire function = call.object("function");
        Map<String, Object> made = new LinkedHashMap<>();
        made.put("name", function.text("name", ""));
        made.put("arguments", parsed(function.text("arguments", "{}")));
        calls.add(Map.of("id", call.text("id", ""), "type", "function", "function", made));
      }
      more.put("tool_calls", calls);
    }
    return new Message(role, content(m), more);
  }

  /** Templates write arguments as JSON themselves; what is none stays text. */
  private static Object parsed(String arguments) {
    try {
      return JSON.std.mapFrom(arguments);
    } catch (IOException _) {
      return arguments;
    }
  }

  private static String content(Wire m) {
    return switch (m.get("content")) {
      case null -> {
        if (!m.has("tool_calls")) {
          throw m.wrong("content", "text", null);
        }
        yield "";
      }
      case String s -> s;
      case List<?> parts -> {
        StringBuilder out = new StringBuilder();
        int index = 0;
        for (Object one : parts) {
          Wire part = Wire.of(one, m.path() + ".content[" + index++ + "]");
          if (!"text".equals(part.get("type"))) {
            throw part.wrong("type", "text", part.get("type"));
          }
          out.append(part.text("text", ""));
        }
        yield out.toString();
      }
      case Object o -> throw m.wrong("content", "text or an array of text parts", o);
    };
  }

  /** The tools of a request: what the template sees, and the grammar of a call that is demanded. */
  private record Tools(
      List<Object> tools,
      Map<String, Object> schemas,
      Optional<ToolCallFormat> format,
      Optional<Grammar> grammar) {
    /** The name of a function that is one of the tools. */
    private static String name(Wire of, Map<String, Object> schemas) {
      String name = of.object("function").text("name", "");
      if (!schemas.containsKey(name)) {
        throw ApiException.invalid("tool_choice", "tool_choice: no tool named " + name);
      }
      return name;
    }

    static Tools of(Wire body, Model model) {
      List<Object> tools = new ArrayList<>();
      Map<String, Object> schemas = new LinkedHashMap<>();
      int count = body.list("tools").size();
      if (count > MOST_TOOLS) {
        throw ApiException.invalid(
            "tools", "tools: expected=at most " + MOST_TOOLS + " actual=" + count);
      }
      int index = 0;
      for (Object one : body.list("tools")) {
        Wire tool = Wire.of(one, "tools[" + index++ + "]");
        if (!"function".equals(tool.get("type"))) {
          throw tool.wrong("type", "function", tool.get("type"));
        }
        Wire function = tool.object("function");
        String name = function.text("name", "");
        if (!name.matches("[a-zA-Z0-9_.-]{1,64}")) {
          throw function.wrong("name", "1 to 64 letters, digits, _ . -", name);
        }
        schemas.put(
            name, function.has("parameters") ? function.object("parameters").map() : NO_PARAMETERS);
        tools.add(tool.map());
      }
      String choice = "auto";
      String named = null;
      switch (body.get("tool_choice")) {
        case null -> {}
        case String s when Set.of("auto", "none", "required").contains(s) -> choice = s;
        case Map<?, ?> _ -> {
          Wire wish = body.object("tool_choice");
          String type = wish.text("type", "function");
          if (type.equals("allowed_tools")) {
            Wire some = wish.object("allowed_tools");
            choice = some.text("mode", "auto");
            if (!Set.of("auto", "required").contains(choice)) {
              throw some.wrong("mode", "auto or required", choice);
            }
            Set<String> allowed = new HashSet<>();
            for (Object one : some.list("tools")) {
              allowed.add(name(Wire.of(one, "tool_choice.allowed_tools.tools[]"), schemas));
            }
            // The model sees the others no more, so it calls none of them.
            tools.removeIf(tool -> !allowed.contains(name(Wire.of(tool, "tools[]"), schemas)));
            schemas.keySet().retainAll(allowed);
          } else if (type.equals("function")) {
            choice = "required";
            named = name(wish, schemas);
          } else {
            throw wish.wrong("type", "function or allowed_tools", type);
          }
        }
        case Object o -> throw body.wrong("tool_choice", "auto, none, required or a function", o);
      }
      if (tools.isEmpty() || choice.equals("none")) {
        if (tools.isEmpty() && choice.equals("required")) {
          throw ApiException.invalid("tool_choice", "tool_choice: there are no tools");
        }
        return new Tools(List.of(), Map.of(), Optional.empty(), Optional.empty());
      }
      ToolCallFormat format =
          model
              .toolCallFormat()
              .orElseThrow(() ->
                  ApiException.invalid(
                      "tools", "the chat template of model " + model.name() + " knows no tools"));
      if (!choice.equals("required")) {
        return new Tools(tools, schemas, Optional.of(format), Optional.empty());
      }
      if (named != null) {
        schemas.keySet().retainAll(Set.of(named));
      }
      try {
        return new Tools(tools, schemas, Optional.of(format), Optional.of(format.grammar(schemas)));
      } catch (SamplingException e) {
        throw ApiException.invalid("tools", "tool_choice required: " + e.getMessage());
      }
    }
  }
}
