package io.fletch.langchain4j;

import dev.langchain4j.agent.tool.ToolExecutionRequest;
import dev.langchain4j.data.message.AiMessage;
import dev.langchain4j.exception.InternalServerException;
import dev.langchain4j.exception.InvalidRequestException;
import dev.langchain4j.exception.LangChain4jException;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.ChatResponseMetadata;
import dev.langchain4j.model.output.FinishReason;
import dev.langchain4j.model.output.TokenUsage;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.SessionPool;
import io.fletch.ToolCallFormat;
import io.fletch.ToolCallReader;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** Answers requests in sessions of a pool. Thread-safe; owns the pool, not the model. */
final class Chats implements AutoCloseable {
  private static final SecureRandom SEEDS = new SecureRandom();
  private static final int CLOSE_SECONDS = 10;

  private final Model model;
  private final String name;
  private final Optional<GenerationOptions> options;
  private final Map<String, Object> variables;
  private final int most;
  private final Semaphore slots;
  private final SessionPool sessions;
  private final Set<Generation> running = ConcurrentHashMap.newKeySet();
  private volatile boolean closed;

  Chats(FletchModelBuilder<?> from) {
    model = from.checkedModel();
    name = from.modelName == null ? model.name() : from.modelName;
    options = Optional.ofNullable(from.options);
    variables = from.variables;
    most = from.maxSessions;
    slots = new Semaphore(most, true);
    sessions = new SessionPool(model, most);
  }

  /** Who reads an answer. Called by the thread that runs it. */
  interface Reader {
    /** Nothing is computed yet; the generation may be cancelled from now on. */
    void started(Generation generation);

    /** More text. */
    void text(String piece);

    /** Whether the reader does not want the answer any more. */
    boolean isCancelled();

    /** A reader of the whole. */
    static Reader of(Consumer<String> text) {
      return new Reader() {
        @Override
        public void started(Generation generation) {}

        @Override
        public void text(String piece) {
          text.accept(piece);
        }

        @Override
        public boolean isCancelled() {
          return false;
        }
      };
    }
  }

  /**
   * Answers, after waiting for a session where all are in use.
   *
   * @return the answer; empty if the reader has cancelled it
   * @throws LangChain4jException if the request is not valid or fails
   * @throws IllegalStateException if this is closed, before or meanwhile
   */
  Optional<ChatResponse> answer(ChatRequest request, Reader reader) {
    // A seed of the options means the same answer each time; else every answer is a new draw.
    GenerationOptions base =
        options.orElseGet(() -> {
          GenerationOptions out = GenerationOptions.defaults();
          return out.withSampling(out.sampling().withSeed(SEEDS.nextLong()));
        });
    checkOpen();
    Prompt prompt = Prompt.of(request, model, name, base, variables);
    try {
      slots.acquire();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new LangChain4jException("interrupted while waiting for a session", e);
    }
    try {
      checkOpen();
      try (SessionPool.Lease lease = sessions.lease(prompt.ids())) {
        try {
          Optional<ChatResponse> out = answer(lease.session(), prompt, reader);
          lease.keep();
          return out;
        } catch (InvalidRequestException e) {
          // The session has not begun.
          lease.keep();
          throw e;
        }
      }
    } finally {
      slots.release();
    }
  }

  private void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the chat model is closed");
    }
  }

  private Optional<ChatResponse> answer(Session session, Prompt prompt, Reader reader) {
    Generation made;
    try {
      made = session.generate(prompt.ids(), prompt.options());
    } catch (FletchException | IllegalArgumentException e) {
      throw new InvalidRequestException(e.getMessage(), e);
    }
    try (Generation generation = made) {
      running.add(generation);
      if (closed) {
        generation.cancel();
      }
      reader.started(generation);
      ToolCallReader calls =
          prompt
              .tools()
              .map(f -> new ToolCallReader(f, model.tokenizer(), prompt.schemas()))
              .orElse(null);
      while (!reader.isCancelled() && next(generation)) {
        Generation.Chunk chunk = generation.next();
        give(reader, calls == null ? chunk.text() : calls.accept(chunk));
      }
      if (reader.isCancelled()) {
        return Optional.empty();
      }
      Generation.Result result = generation.result();
      if (result.finishReason() == Generation.FinishReason.CANCELLED) {
        throw new IllegalStateException("the chat model was closed during the answer");
      }
      ToolCallFormat.Parsed parsed =
          calls == null ? new ToolCallFormat.Parsed(result.text(), List.of()) : calls.parse(result);
      if (calls != null) {
        give(reader, calls.rest(parsed));
      }
      return reader.isCancelled() ? Optional.empty() : Optional.of(response(parsed, result));
    } finally {
      running.remove(made);
    }
  }

  /** What fails here is neither the request nor the reader. */
  private static boolean next(Generation generation) {
    try {
      return generation.hasNext();
    } catch (RuntimeException e) {
      throw new InternalServerException("generating failed: " + e.getMessage(), e);
    }
  }

  private static void give(Reader reader, String text) {
    if (!text.isEmpty() && !reader.isCancelled()) {
      reader.text(text);
    }
  }

  private ChatResponse response(ToolCallFormat.Parsed parsed, Generation.Result result) {
    List<ToolExecutionRequest> requests = new ArrayList<>();
    for (ToolCallFormat.Call call : parsed.calls()) {
      requests.add(
          ToolExecutionRequest.builder()
              .id("call_" + UUID.randomUUID().toString().replace("-", "").substring(0, 24))
              .name(call.name())
              .arguments(call.arguments())
              .build());
    }
    AiMessage.Builder message = AiMessage.builder();
    if (requests.isEmpty()) {
      message.text(parsed.content());
    } else {
      message.toolExecutionRequests(requests);
      if (!parsed.content().isEmpty()) {
        message.text(parsed.content());
      }
    }
    FinishReason reason =
        result.finishReason() == Generation.FinishReason.LENGTH
            ? FinishReason.LENGTH
            : requests.isEmpty() ? FinishReason.STOP : FinishReason.TOOL_EXECUTION;
    return ChatResponse.builder()
        .aiMessage(message.build())
        .metadata(
            ChatResponseMetadata.builder()
                .id("chatcmpl-" + UUID.randomUUID().toString().replace("-", ""))
                .modelName(name)
                .tokenUsage(new TokenUsage(result.promptTokens(), result.completionTokens()))
                .finishReason(reason)
                .build())
        .build();
  }

  /** Cancels what runs, waits for its end, closes the sessions. */
  @Override
  public void close() {
    closed = true;
    running.forEach(Generation::cancel);
    boolean isWaited = false;
    try {
      isWaited = slots.tryAcquire(most, CLOSE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException _) {
      Thread.currentThread().interrupt();
    } finally {
      sessions.close();
      if (isWaited) {
        slots.release(most);
      }
    }
  }
}
