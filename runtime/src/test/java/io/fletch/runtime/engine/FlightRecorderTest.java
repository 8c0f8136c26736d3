package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.sampling.DiffusionTechnique;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import jdk.jfr.Recording;
import jdk.jfr.consumer.RecordedEvent;
import jdk.jfr.consumer.RecordingFile;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What the flight recorder hears of a generation. */
class FlightRecorderTest {
  private static final ModelOptions OPTIONS =
      TestModels.options(ModelOptions.Backend.CPU).withContextLength(128);

  @TempDir Path folder;

  private interface Work {
    void run() throws IOException;
  }

  /** The events of Fletch while something runs. */
  private List<RecordedEvent> record(Work work) throws IOException {
    Path file = folder.resolve("recording.jfr");
    try (Recording recording = new Recording()) {
      recording.start();
      work.run();
      recording.stop();
      recording.dump(file);
    }
    return RecordingFile.readAllEvents(file).stream()
        .filter(e -> e.getEventType().getName().startsWith("fletch."))
        .toList();
  }

  /** Answers with the demo model {@code name} under a recording; gives the events of Fletch. */
  private List<RecordedEvent> record(String name, GenerationOptions options, String question)
      throws IOException {
    return record(() -> {
      try (Model model = TestModels.open(name, OPTIONS);
          Session session = model.newSession();
          Generation generation = session.chat(List.of(Message.user(question)), options)) {
        generation.forEachRemaining(_ -> {});
        assertFalse(generation.result().text().isEmpty());
      }
    });
  }

  private static Stream<RecordedEvent> named(List<RecordedEvent> events, String name) {
    return events.stream().filter(e -> e.getEventType().getName().equals("fletch." + name));
  }

  @Test
  void autoregressive() throws IOException {
    List<RecordedEvent> events = record("demo", GenerationOptions.greedy(), "What is 457 + 386?");
    RecordedEvent load = named(events, "ModelLoad").findFirst().orElseThrow();
    assertTrue(load.getLong("weightBytes") > 1_000_000);
    assertTrue(load.getString("backend").startsWith("cpu"), load.getString("backend"));
    RecordedEvent allocation = named(events, "Allocation").findFirst().orElseThrow();
    assertEquals(128, allocation.getInt("slots"));
    assertTrue(allocation.getLong("bytes") > 128);
    RecordedEvent prefill = named(events, "Prefill").findFirst().orElseThrow();
    int prompt = prefill.getInt("promptTokens");
    assertTrue(prompt > 5);
    List<RecordedEvent> steps = named(events, "DecodeStep").toList();
    assertEquals(prompt, steps.getFirst().getInt("position"));
    assertEquals(1, steps.getFirst().getInt("tokens"));
    // The first token comes of the prompt's last forward, every other one of a forward of its own.
    List<RecordedEvent> replays = named(events, "GraphReplay").toList();
    assertTrue(replays.size() >= steps.size() - 1, replays.size() + " " + steps.size());
    assertEquals(1, replays.getLast().getInt("rows"));
    assertEquals(1, replays.getLast().getInt("logitRows"));
    assertEquals(0, named(events, "DraftVerification").count());
  }

  @Test
  void draftsOfDiffusion() throws IOException {
    GenerationOptions drafting;
    try (Model model = TestModels.open("demo-diffusion", OPTIONS)) {
      drafting =
          GenerationOptions.greedy()
              .withDiffusion(
                  DiffusionTechnique.parse("freedave", model.diffusion().orElseThrow(), 64));
    }
    List<RecordedEvent> events =
        record("demo-diffusion", drafting, "Reverse the words: tower stone rock egg");
    List<RecordedEvent> verified = named(events, "DraftVerification").toList();
    assertFalse(verified.isEmpty());
    long drafted = verified.stream().mapToLong(e -> e.getLong("drafted")).sum();
    long accepted = verified.stream().mapToLong(e -> e.getLong("accepted")).sum();
    assertTrue(accepted > 0 && accepted <= drafted, accepted + " of " + drafted);
  }

  @Test
  void embeddings() throws IOException {
    int[] tokens = new int[2];
    List<RecordedEvent> events =
        record(() -> {
          try (Embedder embedder =
              Embedder.open(
                  TestModels.demo("demo"), EmbedderOptions.defaults().withModel(OPTIONS))) {
            tokens[0] = embedder.tokens("One text").length + embedder.tokens("and another").length;
            embedder.embed(List.of("One text", "and another"));
            tokens[1] = embedder.tokens("Every token").length;
            embedder.tokenVectors("Every token");
          }
        });
    assertEquals(1, named(events, "ModelLoad").count());
    List<RecordedEvent> embeddings = named(events, "Embedding").toList();
    assertEquals(2, embeddings.size());
    assertEquals(2, embeddings.getFirst().getInt("texts"));
    assertEquals(tokens[0], embeddings.getFirst().getInt("tokens"));
    assertEquals("LAST", embeddings.getFirst().getString("pooling"));
    assertEquals(1, embeddings.getLast().getInt("texts"));
    assertEquals(tokens[1], embeddings.getLast().getInt("tokens"));
    assertEquals("NONE", embeddings.getLast().getString("pooling"));
    // Texts of one call share a forward.
    List<RecordedEvent> replays = named(events, "GraphReplay").toList();
    assertEquals(2, replays.size());
    assertEquals(tokens[0], replays.getFirst().getInt("rows"));
  }

  @Test
  void withoutARecorderNoEventClassIsLoaded() throws Exception {
    Path file = Path.of(ProcessHandle.current().info().command().orElseThrow());
    Process process =
        new ProcessBuilder(
                file.toString(),
                "--enable-native-access=ALL-UNNAMED",
                "--sun-misc-unsafe-memory-access=allow",
                "-Xlog:class+load=info:file=" + folder.resolve("classes"),
                "-cp",
                System.getProperty("java.class.path"),
                Once.class.getName())
            .redirectErrorStream(true)
            .redirectOutput(folder.resolve("out").toFile())
            .start();
    assertEquals(0, process.waitFor(), () -> read(folder.resolve("out")));
    String classes = read(folder.resolve("classes"));
    assertTrue(classes.contains("io.fletch.runtime.engine.AutoregressiveGeneration "));
    assertFalse(classes.contains("jdk.jfr.Event "));
  }

  private static String read(Path path) {
    try {
      return Files.readString(path);
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  /** Answers once. */
  static final class Once {
    public static void main(String[] args) {
      try (Model model = TestModels.open("demo-small", OPTIONS);
          Session session = model.newSession();
          Generation generation =
              session.chat(
                  List.of(Message.user("What is 4 + 3?")),
                  GenerationOptions.greedy().withMaxTokens(4))) {
        generation.forEachRemaining(_ -> {});
      }
    }
  }
}
