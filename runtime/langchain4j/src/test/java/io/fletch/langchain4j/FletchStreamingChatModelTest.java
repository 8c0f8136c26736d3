package io.fletch.langchain4j;

import static io.fletch.langchain4j.TestModels.ANSWER;
import static io.fletch.langchain4j.TestModels.QUESTION;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.langchain4j.agent.tool.Tool;
import dev.langchain4j.agent.tool.ToolSpecification;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.exception.InvalidRequestException;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.request.ChatRequestParameters;
import dev.langchain4j.model.chat.request.ToolChoice;
import dev.langchain4j.model.chat.request.json.JsonObjectSchema;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.CompleteToolCall;
import dev.langchain4j.model.chat.response.PartialResponse;
import dev.langchain4j.model.chat.response.PartialResponseContext;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.output.FinishReason;
import dev.langchain4j.service.AiServices;
import dev.langchain4j.service.TokenStream;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Streams through LangChain4j's own interfaces. */
class FletchStreamingChatModelTest {
  @TempDir static Path folder;
  private static Model model;
  private FletchStreamingChatModel chat;

  @BeforeAll
  static void open() throws Exception {
    model = TestModels.withTools(folder);
  }

  @AfterAll
  static void closeModel() {
    model.close();
  }

  @BeforeEach
  void build() {
    chat = streaming(GenerationOptions.greedy());
  }

  @AfterEach
  void close() {
    chat.close();
  }

  private static FletchStreamingChatModel streaming(GenerationOptions options) {
    return FletchStreamingChatModel.builder().model(model).options(options).build();
  }

  /** Collects; the future ends with the answer or the error. */
  private static class Collector implements StreamingChatResponseHandler {
    final List<String> pieces = new ArrayList<>();
    final List<CompleteToolCall> calls = new ArrayList<>();
    final CompletableFuture<ChatResponse> end = new CompletableFuture<>();

    @Override
    public void onPartialResponse(String piece) {
      pieces.add(piece);
    }

    @Override
    public void onCompleteToolCall(CompleteToolCall call) {
      calls.add(call);
    }

    @Override
    public void onCompleteResponse(ChatResponse response) {
      end.complete(response);
    }

    @Override
    public void onError(Throwable error) {
      end.completeExceptionally(error);
    }

    ChatResponse await() throws Exception {
      return end.get(60, TimeUnit.SECONDS);
    }
  }

  private static ChatRequest.Builder ask() {
    return ChatRequest.builder().messages(UserMessage.from(QUESTION));
  }

  private static final ToolSpecification ADD =
      ToolSpecification.builder()
          .name("add")
          .parameters(JsonObjectSchema.builder().addIntegerProperty("a").required("a").build())
          .build();

  @Test
  void piecesMakeTheAnswer() throws Exception {
    for (ChatRequest request : List.of(ask().build(), ask().toolSpecifications(ADD).build())) {
      Collector collector = new Collector();
      chat.chat(request, collector);
      ChatResponse response = collector.await();
      assertEquals(ANSWER, response.aiMessage().text());
      assertEquals(ANSWER, String.join("", collector.pieces));
      // Also with tools, text that is no call is not held back.
      assertTrue(collector.pieces.size() > 10, collector.pieces.toString());
      assertEquals(FinishReason.STOP, response.finishReason());
      assertTrue(response.tokenUsage().outputTokenCount() > 10);
    }
  }

  @Test
  void callsComeWhole() throws Exception {
    Collector collector = new Collector();
    chat.chat(ask().toolSpecifications(ADD).toolChoice(ToolChoice.REQUIRED).build(), collector);
    ChatResponse response = collector.await();
    assertEquals(List.of(), collector.pieces);
    assertEquals(1, collector.calls.size());
    assertEquals(
        response.aiMessage().toolExecutionRequests().getFirst(),
        collector.calls.getFirst().toolExecutionRequest());
    assertEquals(FinishReason.TOOL_EXECUTION, response.finishReason());
  }

  @Test
  void aCancelledStreamIsSilent() throws Exception {
    CountDownLatch cancelled = new CountDownLatch(1);
    AtomicInteger later = new AtomicInteger();
    try (FletchStreamingChatModel endless =
        streaming(GenerationOptions.greedy().withIgnoreEnd(true))) {
      endless.chat(
          ask().build(),
          new StreamingChatResponseHandler() {
            @Override
            public void onPartialResponse(PartialResponse piece, PartialResponseContext context) {
              if (cancelled.getCount() == 0) {
                later.incrementAndGet();
              }
              context.streamingHandle().cancel();
              assertTrue(context.streamingHandle().isCancelled());
              cancelled.countDown();
            }

            @Override
            public void onCompleteResponse(ChatResponse response) {
              later.incrementAndGet();
            }

            @Override
            public void onError(Throwable error) {
              later.incrementAndGet();
            }
          });
      assertTrue(cancelled.await(60, TimeUnit.SECONDS));
      // The session is free again and sound; closing waits for the thread.
      Collector next = new Collector();
      endless.chat(ask().maxOutputTokens(4).build(), next);
      assertEquals(FinishReason.LENGTH, next.await().finishReason());
    }
    assertEquals(0, later.get());
  }

  @Test
  void errorsGoToTheHandler() throws Exception {
    Collector collector = new Collector();
    chat.chat(
        ChatRequest.builder().messages(UserMessage.from("x ".repeat(4000))).build(), collector);
    ExecutionException e = assertThrows(ExecutionException.class, collector::await);
    assertInstanceOf(InvalidRequestException.class, e.getCause());
    // A handler that throws hears of it, and of the rest of the answer.
    List<Throwable> errors = new ArrayList<>();
    CompletableFuture<ChatResponse> end = new CompletableFuture<>();
    chat.chat(
        ask().build(),
        new StreamingChatResponseHandler() {
          @Override
          public void onPartialResponse(String piece) {
            throw new IllegalStateException("of the handler");
          }

          @Override
          public void onCompleteResponse(ChatResponse response) {
            end.complete(response);
          }

          @Override
          public void onError(Throwable error) {
            errors.add(error);
          }
        });
    assertEquals(ANSWER, end.get(60, TimeUnit.SECONDS).aiMessage().text());
    assertFalse(errors.isEmpty());
  }

  @Test
  void closingTellsTheHandler() throws Exception {
    FletchStreamingChatModel closing = streaming(GenerationOptions.greedy().withIgnoreEnd(true));
    CountDownLatch begun = new CountDownLatch(1);
    Collector collector =
        new Collector() {
          @Override
          public void onPartialResponse(String piece) {
            begun.countDown();
          }
        };
    closing.chat(ask().build(), collector);
    assertTrue(begun.await(60, TimeUnit.SECONDS));
    closing.close();
    ExecutionException e = assertThrows(ExecutionException.class, collector::await);
    assertInstanceOf(IllegalStateException.class, e.getCause());
  }

  interface Assistant {
    TokenStream answer(String question);
  }

  static final class Calculator {
    final List<String> calls = new ArrayList<>();

    @Tool("Adds")
    int add(int a, int b) {
      calls.add(a + "+" + b);
      return 843;
    }
  }

  @Test
  void aiServicesStreamAndRunTools() throws Exception {
    Calculator calculator = new Calculator();
    Assistant plain = AiServices.create(Assistant.class, chat);
    StringBuilder text = new StringBuilder();
    CompletableFuture<ChatResponse> end = new CompletableFuture<>();
    plain
        .answer(QUESTION)
        .onPartialResponse(text::append)
        .onCompleteResponse(end::complete)
        .onError(end::completeExceptionally)
        .start();
    assertEquals(ANSWER, end.get(60, TimeUnit.SECONDS).aiMessage().text());
    assertEquals(ANSWER, text.toString());

    Assistant tooled =
        AiServices.builder(Assistant.class)
            .streamingChatModel(chat)
            .tools(calculator)
            // The demo model, which has never seen tools, would not call by itself.
            .chatRequestTransformer(request ->
                request.messages().getLast() instanceof UserMessage
                    ? request.toBuilder()
                        .parameters(
                            request
                                .parameters()
                                .overrideWith(
                                    ChatRequestParameters.builder()
                                        .toolChoice(ToolChoice.REQUIRED)
                                        .build()))
                        .build()
                    : request)
            .build();
    CompletableFuture<ChatResponse> second = new CompletableFuture<>();
    List<String> executed = new ArrayList<>();
    tooled
        .answer(QUESTION)
        .onPartialResponse(_ -> {})
        .onToolExecuted(execution -> executed.add(execution.result()))
        .onCompleteResponse(second::complete)
        .onError(second::completeExceptionally)
        .start();
    ChatResponse last = second.get(60, TimeUnit.SECONDS);
    assertEquals(FinishReason.STOP, last.finishReason());
    assertEquals(List.of("843"), executed);
    assertEquals(1, calculator.calls.size());
  }
}
