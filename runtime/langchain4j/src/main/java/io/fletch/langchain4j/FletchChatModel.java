package io.fletch.langchain4j;

import dev.langchain4j.model.ModelProvider;
import dev.langchain4j.model.chat.Capability;
import dev.langchain4j.model.chat.ChatModel;
import dev.langchain4j.model.chat.listener.ChatModelListener;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.request.ChatRequestParameters;
import dev.langchain4j.model.chat.response.ChatResponse;
import java.util.List;
import java.util.Set;

/**
 * A Fletch model as LangChain4j's {@code ChatModel}.
 *
 * <p>Messages go through the model's chat template, tools included; a response format and a
 * demanded tool call are guaranteed by a grammar, and what a grammar cannot guarantee is refused.
 * The conversation of a request is looked for in the sessions that wait, so a chat computes only
 * what is new.
 *
 * <p><b>Threads.</b> Any number of threads at once; those beyond {@link Builder#maxSessions} wait.
 * Answers that are generated at the same time share passes over the weights.
 *
 * <p><b>Errors.</b> {@code InvalidRequestException}: the request is not valid, for example too
 * long. {@code UnsupportedFeatureException}: pictures, tools with a template that knows none, a
 * schema that cannot be guaranteed. {@code ModelNotFoundException}: another model name. {@code
 * InternalServerException}: generating failed. {@code IllegalStateException}: closed.
 */
public final class FletchChatModel implements ChatModel, AutoCloseable {
  private final Chats chats;
  private final ChatRequestParameters parameters;
  private final List<ChatModelListener> listeners;

  private FletchChatModel(Builder builder) {
    chats = new Chats(builder);
    parameters = builder.parameters;
    listeners = builder.listeners;
  }

  /** A builder. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  public ChatResponse doChat(ChatRequest request) {
    return chats.answer(request, Chats.Reader.of(_ -> {})).orElseThrow();
  }

  @Override
  public ChatRequestParameters defaultRequestParameters() {
    return parameters;
  }

  @Override
  public List<ChatModelListener> listeners() {
    return listeners;
  }

  @Override
  public ModelProvider provider() {
    return ModelProvider.OTHER;
  }

  @Override
  public Set<Capability> supportedCapabilities() {
    return Set.of(Capability.RESPONSE_FORMAT_JSON_SCHEMA);
  }

  /** Cancels what runs, whose callers get an exception, and closes the sessions. */
  @Override
  public void close() {
    chats.close();
  }

  /** Makes chat models. */
  public static final class Builder extends FletchModelBuilder<Builder> {
    private Builder() {}

    @Override
    Builder self() {
      return this;
    }

    /**
     * Makes the model.
     *
     * @throws IllegalArgumentException if something is out of range
     */
    public FletchChatModel build() {
      return new FletchChatModel(this);
    }
  }
}
