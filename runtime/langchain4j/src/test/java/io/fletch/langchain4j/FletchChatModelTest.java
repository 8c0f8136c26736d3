package io.fletch.langchain4j;

import static io.fletch.langchain4j.TestModels.ANSWER;
import static io.fletch.langchain4j.TestModels.QUESTION;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.langchain4j.agent.tool.P;
import dev.langchain4j.agent.tool.Tool;
import dev.langchain4j.agent.tool.ToolExecutionRequest;
import dev.langchain4j.agent.tool.ToolSpecification;
import dev.langchain4j.data.message.AiMessage;
import dev.langchain4j.data.message.ImageContent;
import dev.langchain4j.data.message.SystemMessage;
import dev.langchain4j.data.message.ToolExecutionResultMessage;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.exception.InvalidRequestException;
import dev.langchain4j.exception.ModelNotFoundException;
import dev.langchain4j.exception.UnsupportedFeatureException;
import dev.langchain4j.memory.chat.MessageWindowChatMemory;
import dev.langchain4j.model.chat.ChatModel;
import dev.langchain4j.model.chat.listener.ChatModelErrorContext;
import dev.langchain4j.model.chat.listener.ChatModelListener;
import dev.langchain4j.model.chat.listener.ChatModelRequestContext;
import dev.langchain4j.model.chat.listener.ChatModelResponseContext;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.request.ChatRequestParameters;
import dev.langchain4j.model.chat.request.ResponseFormat;
import dev.langchain4j.model.chat.request.ToolChoice;
import dev.langchain4j.model.chat.request.json.JsonObjectSchema;
import dev.langchain4j.model.chat.request.json.JsonRawSchema;
import dev.langchain4j.model.chat.request.json.JsonSchema;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.output.FinishReason;
import dev.langchain4j.service.AiServices;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The adapter through LangChain4j's own interfaces, on models that run here. */
class FletchChatModelTest {
  @TempDir static Path folder;
  private static Model demo;
  private static Model withTools;
  private FletchChatModel chat;

  @BeforeAll
  static void open() throws Exception {
    demo = TestModels.demo();
    withTools = TestModels.withTools(folder);
  }

  @AfterAll
  static void closeModels() {
    // Refused if the adapters left a session open.
    demo.close();
    withTools.close();
  }

  @BeforeEach
  void build() {
    chat = FletchChatModel.builder().model(demo).options(GenerationOptions.greedy()).build();
  }

  @AfterEach
  void close() {
    chat.close();
  }

  private static ChatRequest.Builder ask(String text) {
    return ChatRequest.builder().messages(UserMessage.from(text));
  }

  @Test
  void answersWithUsageAndReason() {
    assertEquals(ANSWER, chat.chat(QUESTION));
    ChatResponse response = chat.chat(ask(QUESTION).build());
    assertEquals(ANSWER, response.aiMessage().text());
    assertEquals(FinishReason.STOP, response.finishReason());
    assertEquals(demo.name(), response.modelName());
    int prompt =
        demo.tokenizer()
            .encode(
                demo.chatPrompt(
                    List.of(io.fletch.Message.user(QUESTION)), true, java.util.Map.of()),
                false,
                true)
            .length;
    assertEquals(prompt, response.tokenUsage().inputTokenCount());
    assertTrue(response.tokenUsage().outputTokenCount() > 20, response.toString());
    assertEquals(
        prompt + response.tokenUsage().outputTokenCount(), response.tokenUsage().totalTokenCount());
  }

  @Test
  void parametersOfTheRequestCount() {
    ChatResponse cut = chat.chat(ask(QUESTION).maxOutputTokens(3).build());
    assertEquals(FinishReason.LENGTH, cut.finishReason());
    assertEquals(3, cut.tokenUsage().outputTokenCount());
    ChatResponse stopped = chat.chat(ask(QUESTION).stopSequences(List.of("\n")).build());
    assertEquals("7+6=13", stopped.aiMessage().text());
    assertEquals(FinishReason.STOP, stopped.finishReason());
    // Hot enough to leave the likely answer; top-k 1 and top-p 0 lead back to it.
    assertNotEquals(
        ANSWER,
        chat.chat(ask(QUESTION).temperature(50.0).maxOutputTokens(60).build()).aiMessage().text());
    for (ChatRequest.Builder cold :
        List.of(
            ask(QUESTION).temperature(50.0).topK(1),
            ask(QUESTION).temperature(50.0).topP(0.0),
            ask(QUESTION).temperature(0.0))) {
      assertEquals(ANSWER, chat.chat(cold.build()).aiMessage().text());
    }
    assertNotEquals(
        ANSWER,
        chat.chat(ask(QUESTION).presencePenalty(2.0).frequencyPenalty(2.0).build())
            .aiMessage()
            .text());
    try (FletchChatModel limited =
        FletchChatModel.builder()
            .model(demo)
            .modelName("mine")
            .options(GenerationOptions.greedy())
            .defaultRequestParameters(
                ChatRequestParameters.builder().maxOutputTokens(2).modelName("mine").build())
            .build()) {
      ChatResponse response = limited.chat(ask(QUESTION).build());
      assertEquals(2, response.tokenUsage().outputTokenCount());
      assertEquals("mine", response.modelName());
    }
  }

  @Test
  void seedsDifferUnlessGiven() {
    ChatRequest hot = ask("Describe Ada.").temperature(9.0).maxOutputTokens(40).build();
    try (FletchChatModel free = FletchChatModel.builder().model(demo).build()) {
      assertNotEquals(free.chat(hot).aiMessage().text(), free.chat(hot).aiMessage().text());
    }
    assertEquals(chat.chat(hot).aiMessage().text(), chat.chat(hot).aiMessage().text());
  }

  record Sum(int left, int right, Kind kind) {}

  enum Kind {
    SMALL,
    LARGE
  }

  interface Extractor {
    Sum extract(String text);
  }

  interface Assistant {
    @dev.langchain4j.service.SystemMessage("Answer in steps.")
    String answer(String question);
  }

  @Test
  void aiServicesKeepAConversation() {
    Assistant assistant =
        AiServices.builder(Assistant.class)
            .chatModel(chat)
            .chatMemory(MessageWindowChatMemory.withMaxMessages(10))
            .build();
    try (io.fletch.Session session = demo.newSession()) {
      List<io.fletch.Message> messages = new ArrayList<>();
      messages.add(io.fletch.Message.system("Answer in steps."));
      for (String question : List.of(QUESTION, "What is 4 + 3?")) {
        messages.add(io.fletch.Message.user(question));
        String expected = session.chat(messages, GenerationOptions.greedy()).result().text();
        messages.add(io.fletch.Message.assistant(expected));
        assertEquals(expected, assistant.answer(question));
      }
    }
  }

  @Test
  void aiServicesGetObjectsThroughTheGrammar() {
    Sum sum = AiServices.create(Extractor.class, chat).extract("What is 4 + 3?");
    assertTrue(sum.kind() != null, sum.toString());
  }

  @Test
  void responseFormatsAreGuaranteed() {
    ResponseFormat schema =
        ResponseFormat.builder()
            .type(dev.langchain4j.model.chat.request.ResponseFormatType.JSON)
            .jsonSchema(
                JsonSchema.builder()
                    .name("n")
                    .rootElement(
                        JsonRawSchema.from(
                            "{\"type\":\"object\",\"properties\":{\"n\":{\"type\":\"integer\","
                                + "\"minimum\":10,\"maximum\":12}},\"required\":[\"n\"]}"))
                    .build())
            .build();
    String text = chat.chat(ask(QUESTION).responseFormat(schema).build()).aiMessage().text();
    assertTrue(text.matches("(?s)\\{\\s*\"n\"\\s*:\\s*1[0-2]\\s*}"), text);
    String any =
        chat.chat(ask(QUESTION).responseFormat(ResponseFormat.JSON).maxOutputTokens(20).build())
            .aiMessage()
            .text();
    assertTrue(any.startsWith("{"), any);
  }

  static final class Calculator {
    final List<String> calls = new ArrayList<>();

    @Tool("Adds")
    int add(@P("one") int a, @P("other") int b) {
      calls.add(a + "+" + b);
      return 843;
    }
  }

  /** Demands a call first; the demo model, which has never seen tools, would not call by itself. */
  private static ChatRequest demanding(ChatRequest request) {
    boolean isAsked = request.messages().getLast() instanceof UserMessage;
    return request.toBuilder()
        .parameters(
            request
                .parameters()
                .overrideWith(
                    ChatRequestParameters.builder()
                        .toolChoice(isAsked ? ToolChoice.REQUIRED : ToolChoice.AUTO)
                        .build()))
        .build();
  }

  @Test
  void aiServicesRunTools() {
    Calculator calculator = new Calculator();
    try (FletchChatModel tooled =
        FletchChatModel.builder().model(withTools).options(GenerationOptions.greedy()).build()) {
      List<ChatResponse> seen = new ArrayList<>();
      Assistant assistant =
          AiServices.builder(Assistant.class)
              .chatModel(tooled)
              .tools(calculator)
              .chatRequestTransformer(request -> {
                if (request.messages().getLast() instanceof ToolExecutionResultMessage result) {
                  assertEquals("843", result.text());
                }
                return demanding(request);
              })
              .registerListener(
                  new dev.langchain4j.observability.api.listener
                      .AiServiceResponseReceivedListener() {
                    @Override
                    public void onEvent(
                        dev.langchain4j.observability.api.event.AiServiceResponseReceivedEvent e) {
                      seen.add(e.response());
                    }
                  })
              .build();
      String text = assistant.answer(QUESTION);
      assertEquals(1, calculator.calls.size());
      assertFalse(text.isEmpty());
      assertEquals(2, seen.size());
      assertEquals(FinishReason.TOOL_EXECUTION, seen.get(0).finishReason());
      assertEquals("add", seen.get(0).aiMessage().toolExecutionRequests().get(0).name());
      assertEquals(FinishReason.STOP, seen.get(1).finishReason());
      assertEquals(text, seen.get(1).aiMessage().text());
    }
  }

  private static final ToolSpecification ADD =
      ToolSpecification.builder()
          .name("add")
          .description("Adds")
          .parameters(JsonObjectSchema.builder().addIntegerProperty("a").required("a").build())
          .build();

  @Test
  void toolChoices() {
    try (FletchChatModel tooled =
        FletchChatModel.builder().model(withTools).options(GenerationOptions.greedy()).build()) {
      ChatResponse required =
          tooled.chat(
              ask(QUESTION).toolSpecifications(ADD).toolChoice(ToolChoice.REQUIRED).build());
      ToolExecutionRequest call = required.aiMessage().toolExecutionRequests().getFirst();
      assertEquals("add", call.name());
      assertTrue(call.arguments().matches("\\{\"a\":-?\\d+}"), call.arguments());
      assertTrue(call.id().startsWith("call_"), call.id());
      for (ToolChoice free : new ToolChoice[] {null, ToolChoice.AUTO, ToolChoice.NONE}) {
        ChatResponse response =
            tooled.chat(ask(QUESTION).toolSpecifications(ADD).toolChoice(free).build());
        assertEquals(ANSWER, response.aiMessage().text());
        assertEquals(FinishReason.STOP, response.finishReason());
      }
      // A call or JSON, but nothing else.
      ChatResponse either =
          tooled.chat(
              ask(QUESTION)
                  .toolSpecifications(ADD)
                  .responseFormat(ResponseFormat.JSON)
                  .maxOutputTokens(30)
                  .build());
      String text = either.aiMessage().text();
      assertTrue(
          either.aiMessage().hasToolExecutionRequests()
              || text.startsWith("{")
              || text.startsWith("<tool_call>"),
          either.toString());
      // What was called and what came of it reaches the template.
      ChatResponse after =
          tooled.chat(
              ChatRequest.builder()
                  .messages(
                      SystemMessage.from("x"),
                      UserMessage.from("y"),
                      AiMessage.from(call),
                      ToolExecutionResultMessage.from(call, QUESTION))
                  .toolSpecifications(ADD)
                  .build());
      assertFalse(after.aiMessage().text().isEmpty());
    }
  }

  private void refused(Class<? extends Exception> expected, String about, ChatRequest request) {
    Exception e = assertThrows(expected, () -> chat.chat(request));
    assertTrue(e.getMessage().contains(about), e.getMessage());
  }

  @Test
  void whatCannotBeDoneIsRefused() {
    refused(ModelNotFoundException.class, "actual=other", ask("x").modelName("other").build());
    refused(InvalidRequestException.class, "context=512", ask("word ".repeat(3000)).build());
    refused(InvalidRequestException.class, "temperature", ask("x").temperature(-1.0).build());
    refused(InvalidRequestException.class, "maxOutputTokens", ask("x").maxOutputTokens(-1).build());
    refused(
        UnsupportedFeatureException.class,
        "knows no tools",
        ask("x").toolSpecifications(ADD).build());
    refused(
        InvalidRequestException.class,
        "there are no tools",
        ask("x").toolChoice(ToolChoice.REQUIRED).build());
    refused(
        UnsupportedFeatureException.class,
        "IMAGE",
        ChatRequest.builder()
            .messages(UserMessage.from(ImageContent.from("http://localhost/x.png")))
            .build());
    ResponseFormat pattern =
        ResponseFormat.builder()
            .type(dev.langchain4j.model.chat.request.ResponseFormatType.JSON)
            .jsonSchema(
                JsonSchema.builder()
                    .name("n")
                    .rootElement(JsonRawSchema.from("{\"type\":\"string\",\"pattern\":\"a\"}"))
                    .build())
            .build();
    refused(UnsupportedFeatureException.class, "pattern", ask("x").responseFormat(pattern).build());
    // Nothing of that has harmed the sessions.
    assertEquals(ANSWER, chat.chat(QUESTION));
    assertThrows(NullPointerException.class, () -> FletchChatModel.builder().build());
    assertThrows(
        IllegalArgumentException.class,
        () -> FletchChatModel.builder().model(demo).maxSessions(0).build());
  }

  @Test
  void manyThreadsShareFewSessions() throws Exception {
    try (FletchChatModel two =
            FletchChatModel.builder()
                .model(demo)
                .options(GenerationOptions.greedy())
                .maxSessions(2)
                .build();
        ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
      List<Future<String>> answers = new ArrayList<>();
      for (int i = 0; i < 8; i++) {
        String question = i % 2 == 0 ? QUESTION : "What is 4 + 3?";
        answers.add(threads.submit((Callable<String>) () -> two.chat(question)));
      }
      for (int i = 0; i < answers.size(); i++) {
        assertEquals(i % 2 == 0 ? ANSWER : "4+3=7\nAnswer: 7", answers.get(i).get());
      }
    }
  }

  @Test
  void closingEndsWhatRuns() throws Exception {
    FletchChatModel closing =
        FletchChatModel.builder()
            .model(demo)
            .options(GenerationOptions.greedy().withIgnoreEnd(true))
            .build();
    try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
      Future<String> answer = threads.submit((Callable<String>) () -> closing.chat(QUESTION));
      Thread.sleep(50);
      closing.close();
      Exception e = assertThrows(Exception.class, answer::get);
      assertInstanceOf(IllegalStateException.class, e.getCause());
    }
    assertThrows(IllegalStateException.class, () -> closing.chat(QUESTION));
    closing.close();
  }

  @Test
  void listenersHear() {
    List<String> heard = new ArrayList<>();
    ChatModelListener listener =
        new ChatModelListener() {
          @Override
          public void onRequest(ChatModelRequestContext context) {
            heard.add("request");
          }

          @Override
          public void onResponse(ChatModelResponseContext context) {
            heard.add(context.chatResponse().finishReason().name());
          }

          @Override
          public void onError(ChatModelErrorContext context) {
            heard.add(context.error().getClass().getSimpleName());
          }
        };
    try (FletchChatModel listened =
        FletchChatModel.builder()
            .model(demo)
            .options(GenerationOptions.greedy())
            .listeners(List.of(listener))
            .build()) {
      ChatModel model = listened;
      model.chat(QUESTION);
      assertThrows(
          ModelNotFoundException.class, () -> model.chat(ask("x").modelName("other").build()));
    }
    assertEquals(List.of("request", "STOP", "request", "ModelNotFoundException"), heard);
  }
}
