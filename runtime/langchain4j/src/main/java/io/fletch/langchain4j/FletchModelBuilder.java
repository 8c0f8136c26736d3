package io.fletch.langchain4j;

import dev.langchain4j.model.chat.listener.ChatModelListener;
import dev.langchain4j.model.chat.request.ChatRequestParameters;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * What chat models and streaming chat models are made from.
 *
 * @param <B> the builder itself
 */
public abstract sealed class FletchModelBuilder<B extends FletchModelBuilder<B>>
    permits FletchChatModel.Builder, FletchStreamingChatModel.Builder {
  private Model model;
  String modelName;
  GenerationOptions options;
  ChatRequestParameters parameters = ChatRequestParameters.builder().build();
  List<ChatModelListener> listeners = List.of();
  Map<String, Object> variables = Map.of();
  int maxSessions = 4;

  FletchModelBuilder() {}

  abstract B self();

  Model checkedModel() {
    return Objects.requireNonNull(model, "model: expected=an open model actual=null");
  }

  /** The model. It stays its opener's and is closed after what is built here. Required. */
  public B model(Model value) {
    model = value;
    return self();
  }

  /** The name in answers, and the only one that requests may give; the model's own by default. */
  public B modelName(String value) {
    modelName = value;
    return self();
  }

  /**
   * How answers are generated: samplers, stop strings, limits and techniques that requests do not
   * change. By default {@link GenerationOptions#defaults()} with another seed for every answer;
   * with options given here, their seed counts, so that a request gives the same answer each time.
   */
  public B options(GenerationOptions value) {
    options = value;
    return self();
  }

  /** What requests leave open, in LangChain4j's terms; it counts more than {@link #options}. */
  public B defaultRequestParameters(ChatRequestParameters value) {
    parameters = Objects.requireNonNull(value, "parameters");
    return self();
  }

  /** Listeners, told of every request and what became of it. */
  public B listeners(List<ChatModelListener> value) {
    listeners = List.copyOf(value);
    return self();
  }

  /** Further variables of the chat template, for example {@code enable_thinking}. */
  public B templateVariables(Map<String, Object> value) {
    variables = Map.copyOf(value);
    return self();
  }

  /** Most answers at once, 4 by default; each has a session and its cache. Others wait. */
  public B maxSessions(int value) {
    maxSessions = value;
    return self();
  }
}
