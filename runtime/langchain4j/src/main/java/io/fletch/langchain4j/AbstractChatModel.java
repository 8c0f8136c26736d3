package io.fletch.langchain4j;

import dev.langchain4j.model.ModelProvider;
import dev.langchain4j.model.chat.Capability;
import dev.langchain4j.model.chat.listener.ChatModelListener;
import dev.langchain4j.model.chat.request.ChatRequestParameters;
import java.util.List;
import java.util.Set;

/** What the chat models have in common, whether they stream or not. */
abstract class AbstractChatModel implements AutoCloseable {
  final Chats chats;
  private final ChatRequestParameters parameters;
  private final List<ChatModelListener> listeners;

  AbstractChatModel(FletchModelBuilder<?> builder) {
    chats = new Chats(builder);
    parameters = builder.parameters;
    listeners = builder.listeners;
  }

  /** What a request that says nothing else gets. */
  public ChatRequestParameters defaultRequestParameters() {
    return parameters;
  }

  /** Who hears of requests, answers and errors. */
  public List<ChatModelListener> listeners() {
    return listeners;
  }

  /** None of those that LangChain4j names. */
  public ModelProvider provider() {
    return ModelProvider.OTHER;
  }

  /** JSON schemas, by a grammar. */
  public Set<Capability> supportedCapabilities() {
    return Set.of(Capability.RESPONSE_FORMAT_JSON_SCHEMA);
  }

  /** Cancels what runs, whose callers or handlers get an exception, and closes the sessions. */
  @Override
  public void close() {
    chats.close();
  }
}
