package io.fletch.langchain4j;

import dev.langchain4j.agent.tool.ToolExecutionRequest;
import dev.langchain4j.model.chat.StreamingChatModel;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.CompleteToolCall;
import dev.langchain4j.model.chat.response.PartialResponse;
import dev.langchain4j.model.chat.response.PartialResponseContext;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.chat.response.StreamingHandle;
import io.fletch.Generation;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.util.Optional;

/**
 * A Fletch model as LangChain4j's {@code StreamingChatModel}; see {@link FletchChatModel} for what
 * is common to both.
 *
 * <p>A request returns at once and runs in a virtual thread of its own, which calls the handler.
 * Text that can no longer become a call of a tool comes as it is generated, calls come when they
 * are whole. Cancelling through the handle takes effect within one forward pass; the handler then
 * hears no more. Errors, those of the request too, go to the handler. An exception of the handler
 * itself is reported to its {@code onError}, and the answer goes on.
 */
public final class FletchStreamingChatModel extends AbstractChatModel
    implements StreamingChatModel {
  private static final Logger LOG = System.getLogger("io.fletch.langchain4j");

  private FletchStreamingChatModel(Builder builder) {
    super(builder);
  }

  /** A builder. */
  public static Builder builder() {
    return new Builder();
  }

  @Override
  public void doChat(ChatRequest request, StreamingChatResponseHandler handler) {
    Thread.ofVirtual().name("fletch-chat").start(() -> run(request, handler));
  }

  private void run(ChatRequest request, StreamingChatResponseHandler handler) {
    Optional<ChatResponse> answer;
    try {
      answer = chats.answer(request, new Stream(handler));
    } catch (RuntimeException | Error e) {
      fail(handler, e);
      return;
    }
    // The session is free again: the handler may ask the next question.
    answer.ifPresent(response -> {
      int index = 0;
      for (ToolExecutionRequest call : response.aiMessage().toolExecutionRequests()) {
        CompleteToolCall complete = new CompleteToolCall(index++, call);
        tell(handler, () -> handler.onCompleteToolCall(complete));
      }
      tell(handler, () -> handler.onCompleteResponse(response));
    });
  }

  private static void tell(StreamingChatResponseHandler handler, Runnable call) {
    try {
      call.run();
    } catch (RuntimeException e) {
      fail(handler, e);
    }
  }

  private static void fail(StreamingChatResponseHandler handler, Throwable error) {
    try {
      handler.onError(error);
    } catch (RuntimeException e) {
      LOG.log(Level.WARNING, "onError of a handler failed", e);
    }
  }

  /** One answer on its way to a handler, and the handle to stop it. */
  private static final class Stream implements Chats.Reader, StreamingHandle {
    private final StreamingChatResponseHandler handler;
    private final PartialResponseContext context = new PartialResponseContext(this);
    private volatile Generation generation;
    private volatile boolean cancelled;

    Stream(StreamingChatResponseHandler handler) {
      this.handler = handler;
    }

    @Override
    public void started(Generation started) {
      generation = started;
    }

    @Override
    public void text(String piece) {
      tell(handler, () -> handler.onPartialResponse(new PartialResponse(piece), context));
    }

    @Override
    public void cancel() {
      cancelled = true;
      // The handle is handed out with text, so there is one.
      generation.cancel();
    }

    @Override
    public boolean isCancelled() {
      return cancelled;
    }
  }

  /** Makes streaming chat models. */
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
    public FletchStreamingChatModel build() {
      return new FletchStreamingChatModel(this);
    }
  }
}
