package sample;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.JsonSchemas;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * An application that embeds Fletch: a streamed chat of two turns, an answer as JSON, and several
 * questions at once. The first argument is the model.
 */
public final class Sample {
  private static final String SCHEMA =
      """
      {"type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"]}
      """;

  private Sample() {}

  /** Runs it. */
  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 1) {
      System.err.println("usage: sample.Sample MODEL");
      System.exit(2);
    }
    try (Model model = Model.open(Path.of(arguments[0]))) {
      chat(model, List.of("What is 457 + 386?", "What is 4 + 3?"));
      System.out.println(json(model, "What is 4 + 3?"));
      System.out.println(atOnce(model, List.of("What is 4 + 3?", "What is 9 - 2?")));
    } catch (FletchException e) {
      System.err.println(e.getMessage());
      System.exit(1);
    }
  }

  /** A conversation: the session keeps what was said, so a turn computes only what is new. */
  private static void chat(Model model, List<String> questions) {
    try (Session session = model.newSession()) {
      List<Message> messages = new ArrayList<>();
      for (String question : questions) {
        messages.add(Message.user(question));
        try (Generation answer = session.chat(messages, GenerationOptions.greedy())) {
          answer.forEachRemaining(chunk -> System.out.print(chunk.text()));
          Generation.Result result = answer.result();
          System.out.println(
              "\n[" + result.finishReason() + ", reused " + (result.reusedTokens() > 0) + "]");
          messages.add(Message.assistant(result.text()));
        }
      }
    }
  }

  /** An answer that a grammar makes fit the schema. */
  private static String json(Model model, String question) {
    GenerationOptions options =
        GenerationOptions.greedy().withMaxTokens(60).withGrammar(JsonSchemas.grammar(SCHEMA));
    try (Session session = model.newSession();
        Generation answer = session.chat(List.of(Message.user(question)), options)) {
      return answer.result().text();
    }
  }

  /** Sessions of one model that run at once share the passes over its weights. */
  private static List<String> atOnce(Model model, List<String> questions) throws Exception {
    try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
      List<Future<String>> answers = new ArrayList<>();
      for (String question : questions) {
        answers.add(
            threads.submit(
                () -> {
                  try (Session session = model.newSession();
                      Generation answer =
                          session.chat(
                              List.of(Message.user(question)), GenerationOptions.greedy())) {
                    return answer.result().text().lines().toList().getLast();
                  }
                }));
      }
      List<String> out = new ArrayList<>();
      for (Future<String> answer : answers) {
        out.add(answer.get());
      }
      return out;
    }
  }
}
