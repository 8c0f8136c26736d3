package io.fletch.langchain4j;

import dev.langchain4j.model.chat.ChatModel;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.response.ChatResponse;

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
public final class FletchChatModel extends AbstractChatModel implements ChatModel {
  private FletchChatModel(Builder builder) {
    super(builder);
  }

  /** A builder. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  public ChatResponse doChat(ChatRequest request) {
    return chats.answer(request, Chats.Reader.of(_ -> {})).orElseThrow();
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
