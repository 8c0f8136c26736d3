package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Chats over pipes; the terminal differs in how lines are read only. */
class ChatCommandTest {
  @Test
  void linesAreTurns() {
    Fletch.Outcome outcome =
        Fletch.runWith("What is 4 + 3?\n\nWhat is 20 + 90?", "chat", "--max-tokens", "40");
    assertEquals("", outcome.err());
    assertEquals(0, outcome.status());
    assertTrue(outcome.out().startsWith("4+3=7\nAnswer: 7\n"), outcome.out());
  }

  @Test
  void secondTurnPrefillsOnlyWhatIsNew() {
    Fletch.Outcome outcome =
        Fletch.runWith("What is 4 + 3?\nWhat is 20 + 90?\n", "chat", "--verbose");
    Matcher turns =
        Pattern.compile("\\[prompt (\\d+) tokens \\((\\d+) reused\\).*answer (\\d+) tokens")
            .matcher(outcome.err());
    assertTrue(turns.find(), outcome.err());
    int prompt = Integer.parseInt(turns.group(1));
    int answer = Integer.parseInt(turns.group(3));
    assertEquals("0", turns.group(2));
    assertTrue(turns.find(), outcome.err());
    int reused = Integer.parseInt(turns.group(2));
    // The prompt of the first turn and its answer, up to the end of the turn.
    assertTrue(reused >= prompt + answer - 1, outcome.err());
  }

  @Test
  void resetForgets() {
    String once = Fletch.runWith("What is 20 + 90?\n", "chat").out();
    Fletch.Outcome outcome =
        Fletch.runWith("What is 4 + 3?\n/reset\nWhat is 20 + 90?\n", "chat", "--verbose");
    assertTrue(outcome.out().endsWith(once), outcome.out());
    assertTrue(outcome.err().contains("[conversation forgotten]"), outcome.err());
    assertEquals(2, outcome.err().split("\\(0 reused\\)", -1).length - 1, outcome.err());
  }

  @Test
  void exitLeaves() {
    Fletch.Outcome outcome = Fletch.runWith("/exit\nWhat is 4 + 3?\n", "chat");
    assertEquals("", outcome.out());
    assertEquals(0, outcome.status());
  }

  @Test
  void conversationsAreSavedAndLoaded(@TempDir Path folder) throws IOException {
    Path file = folder.resolve("chat.json");
    Fletch.Outcome saved =
        Fletch.runWith(
            "/system Be brief.\nWhat is 4 + 3?\n/save " + file + "\nWhat is 20 + 90?\n", "chat");
    assertEquals(0, saved.status(), saved.err());
    List<Object> turns = JSON.std.listFrom(Files.readString(file));
    assertEquals(3, turns.size());
    assertEquals(Map.of("role", "system", "content", "Be brief."), turns.getFirst());
    assertEquals(Map.of("role", "user", "content", "What is 4 + 3?"), turns.get(1));
    Fletch.Outcome loaded = Fletch.runWith("/load " + file + "\nWhat is 20 + 90?\n", "chat");
    assertTrue(saved.out().endsWith(loaded.out()), saved.out() + "\n--\n" + loaded.out());
    assertTrue(loaded.err().contains("[3 turns loaded]"), loaded.err());
  }

  @Test
  void mistakesAreReportedAndTheChatGoesOn(@TempDir Path folder) throws IOException {
    Path broken = folder.resolve("broken.json");
    Files.writeString(broken, "{\"role\": \"user\"");
    Path odd = folder.resolve("odd.json");
    Files.writeString(odd, "[{\"role\": \"user\"}]");
    Fletch.Outcome outcome =
        Fletch.runWith(
            "/frobnicate\n/save\n/load "
                + folder.resolve("none")
                + "\n/load "
                + broken
                + "\n/load "
                + odd
                + "\nWhat is 4 + 3?\n",
            "chat");
    assertEquals(1, outcome.status());
    assertEquals("4+3=7\nAnswer: 7\n", outcome.out());
    List<String> lines = outcome.err().lines().toList();
    assertEquals(5, lines.size(), outcome.err());
    assertEquals("fletch: unknown command /frobnicate (see /help)", lines.get(0));
    assertEquals("fletch: /save needs a file name", lines.get(1));
    assertEquals("fletch: no such file: " + folder.resolve("none"), lines.get(2));
    assertTrue(lines.get(3).startsWith("fletch: " + broken + ": not a saved conversation: "));
    assertTrue(lines.get(4).startsWith("fletch: " + odd + ": not a saved conversation: turn 0"));
  }

  @Test
  void helpListsAllCommands() {
    String help = Fletch.runWith("/help\n", "chat").err();
    for (String command :
        List.of("/help", "/reset", "/system TEXT", "/save FILE", "/load FILE", "/exit")) {
      assertTrue(help.contains(command + " "), help);
    }
  }
}
