package io.fletch.langchain4j;

import dev.langchain4j.agent.tool.ToolExecutionRequest;
import dev.langchain4j.agent.tool.ToolSpecification;
import dev.langchain4j.data.message.AiMessage;
import dev.langchain4j.data.message.ChatMessage;
import dev.langchain4j.data.message.Content;
import dev.langchain4j.data.message.SystemMessage;
import dev.langchain4j.data.message.TextContent;
import dev.langchain4j.data.message.ToolExecutionResultMessage;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.exception.InvalidRequestException;
import dev.langchain4j.exception.ModelNotFoundException;
import dev.langchain4j.exception.UnsupportedFeatureException;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.request.ResponseFormat;
import dev.langchain4j.model.chat.request.ResponseFormatType;
import dev.langchain4j.model.chat.request.ToolChoice;
import io.fletch.FletchException;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ToolCallFormat;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplingException;
import io.fletch.sampling.SamplingOptions;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * A request of LangChain4j in terms of Fletch.
 *
 * @param ids the prompt
 * @param options how to answer
 * @param tools how calls of tools are written; empty if the request has no tools
 * @param schemas of the arguments of the tools by their names
 */
record Prompt(
    int[] ids,
    GenerationOptions options,
    Optional<ToolCallFormat> tools,
    Map<String, Object> schemas) {
  /**
   * Converts.
   *
   * @param base what the request's parameters change
   * @throws dev.langchain4j.exception.LangChain4jException if the request cannot be answered
   */
  static Prompt of(
      ChatRequest request,
      Model model,
      String name,
      GenerationOptions base,
      Map<String, Object> variables) {
    if (request.modelName() != null && !request.modelName().equals(name)) {
      throw new ModelNotFoundException(
          "model: expected=" + name + " actual=" + request.modelName());
    }
    try {
      return convert(request, model, base, variables);
    } catch (SamplingException e) {
      UnsupportedFeatureException out = new UnsupportedFeatureException(e.getMessage());
      out.initCause(e);
      throw out;
    } catch (FletchException | IllegalArgumentException e) {
      throw new InvalidRequestException(e.getMessage(), e);
    }
  }

  private static Prompt convert(
      ChatRequest request, Model model, GenerationOptions base, Map<String, Object> variables) {
    List<Message> messages = request.messages().stream().map(Prompt::message).toList();
    Map<String, Object> all = new LinkedHashMap<>(variables);
    Optional<ToolCallFormat> format = Optional.empty();
    Optional<Grammar> calls = Optional.empty();
    List<ToolSpecification> tools = request.toolSpecifications();
    Map<String, Object> schemas = new LinkedHashMap<>();
    boolean isRequired = request.toolChoice() == ToolChoice.REQUIRED;
    if (tools != null && !tools.isEmpty() && request.toolChoice() != ToolChoice.NONE) {
      ToolCallFormat found =
          model
              .toolCallFormat()
              .orElseThrow(() ->
                  new UnsupportedFeatureException(
                      "the chat template of model " + model.name() + " knows no tools"));
      format = Optional.of(found);
      List<Object> described = new ArrayList<>();
      for (ToolSpecification tool : tools) {
        Map<String, Object> schema =
            tool.parameters() == null
                ? Map.of("type", "object", "properties", Map.of())
                : Schemas.of(tool.parameters());
        Map<String, Object> function = new LinkedHashMap<>();
        function.put("name", tool.name());
        if (tool.description() != null) {
          function.put("description", tool.description());
        }
        function.put("parameters", schema);
        described.add(Map.of("type", "function", "function", function));
        schemas.put(tool.name(), schema);
      }
      all.put("tools", described);
      if (isRequired || isJson(request.responseFormat())) {
        calls = Optional.of(found.grammar(schemas));
      }
    } else if (isRequired) {
      throw new InvalidRequestException("tool choice REQUIRED: there are no tools");
    }
    GenerationOptions options = options(request, base);
    Optional<Grammar> form = isRequired ? Optional.empty() : form(request.responseFormat());
    // Next to tools an answer is a call or has the form that is asked for.
    Optional<Grammar> grammar = form.isPresent() ? form : calls;
    if (form.isPresent() && calls.isPresent()) {
      grammar = Optional.of(form.get().or(calls.get()));
    }
    if (grammar.isPresent()) {
      options = options.withGrammar(grammar.get());
    }
    String prompt = model.chatPrompt(messages, true, all);
    return new Prompt(model.tokenizer().encode(prompt, false, true), options, format, schemas);
  }

  private static boolean isJson(ResponseFormat format) {
    return format != null && format.type() == ResponseFormatType.JSON;
  }

  private static Optional<Grammar> form(ResponseFormat format) {
    if (!isJson(format)) {
      return Optional.empty();
    }
    return Optional.of(
        format.jsonSchema() == null
            ? Grammar.ofJsonObject()
            : Grammar.ofJsonSchema(Schemas.of(format.jsonSchema().rootElement())));
  }

  private static GenerationOptions options(ChatRequest request, GenerationOptions base) {
    SamplingOptions sampling = base.sampling();
    if (request.temperature() != null) {
      sampling = sampling.withTemperature(request.temperature().floatValue());
    }
    if (request.topP() != null) {
      // 0 means the most likely token.
      sampling = sampling.withTopP(Math.max(Float.MIN_NORMAL, request.topP().floatValue()));
    }
    if (request.topK() != null) {
      sampling = sampling.withTopK(request.topK());
    }
    if (request.frequencyPenalty() != null || request.presencePenalty() != null) {
      sampling =
          sampling.withPenalties(
              sampling.repetitionPenalty(),
              request.frequencyPenalty() == null
                  ? sampling.frequencyPenalty()
                  : request.frequencyPenalty().floatValue(),
              request.presencePenalty() == null
                  ? sampling.presencePenalty()
                  : request.presencePenalty().floatValue(),
              sampling.penaltyWindow());
    }
    GenerationOptions out = base.withSampling(sampling);
    if (request.maxOutputTokens() != null) {
      if (request.maxOutputTokens() < 1) {
        throw new InvalidRequestException(
            "maxOutputTokens: expected>=1 actual=" + request.maxOutputTokens());
      }
      out = out.withMaxTokens(request.maxOutputTokens());
    }
    List<String> stops = request.stopSequences();
    return stops == null || stops.isEmpty() ? out : out.withStopStrings(stops);
  }

  private static Message message(ChatMessage message) {
    Map<String, Object> more = new LinkedHashMap<>();
    return switch (message) {
      case SystemMessage m -> Message.system(m.text());
      case UserMessage m -> {
        if (m.name() != null) {
          more.put("name", m.name());
        }
        yield new Message("user", text(m.contents()), more);
      }
      case AiMessage m -> {
        if (m.thinking() != null) {
          more.put("reasoning_content", m.thinking());
        }
        if (m.hasToolExecutionRequests()) {
          more.put("tool_calls", m.toolExecutionRequests().stream().map(Prompt::call).toList());
        }
        yield new Message("assistant", m.text() == null ? "" : m.text(), more);
      }
      case ToolExecutionResultMessage m -> {
        if (m.id() != null) {
          more.put("tool_call_id", m.id());
        }
        if (m.toolName() != null) {
          more.put("name", m.toolName());
        }
        yield new Message("tool", text(m.contents()), more);
      }
      default ->
          throw new UnsupportedFeatureException(
              "message: expected=system, user, assistant or tool result actual=" + message.type());
    };
  }

  private static String text(List<Content> contents) {
    StringBuilder out = new StringBuilder();
    for (Content content : contents) {
      if (!(content instanceof TextContent text)) {
        throw new UnsupportedFeatureException("content: expected=TEXT actual=" + content.type());
      }
      out.append(text.text());
    }
    return out.toString();
  }

  private static Map<String, Object> call(ToolExecutionRequest request) {
    Map<String, Object> function = new LinkedHashMap<>();
    function.put("name", request.name());
    String arguments = request.arguments() == null ? "" : request.arguments();
    // Templates write JSON themselves.
    function.put("arguments", new ToolCallFormat.Call(request.name(), arguments).value());
    Map<String, Object> out = new LinkedHashMap<>();
    if (request.id() != null) {
      out.put("id", request.id());
    }
    out.put("type", "function");
    out.put("function", function);
    return out;
  }
}
