package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.Model;
import io.fletch.Tokenizer;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Control sequences of the view that fills in. */
class FillingViewTest {
  private final Tokenizer tokenizer = Tokenizer.open(Model.demoFile("demo-diffusion"));
  private final List<String> written = new ArrayList<>();

  private static Generation.Chunk chunk(int position, Integer... ids) {
    return new Generation.Chunk(List.of(ids), position, "", List.of());
  }

  @Test
  void drawsGapsAndHidesWhatStandsBehindTheEnd() {
    int a = tokenizer.id("a").orElseThrow();
    int b = tokenizer.id("b").orElseThrow();
    int end = tokenizer.endOfGeneration().getFirst();
    FillingView view = new FillingView(tokenizer, 80, written::add);
    view.accept(chunk(2, b));
    view.accept(chunk(4, end, b));
    view.accept(chunk(0, a, a));
    view.clear();
    assertEquals(
        List.of(
            "\r\033[J\u00b7\u00b7b",
            "\r\033[J\u00b7\u00b7b\u00b7",
            "\r\033[Jaab\u00b7",
            "\r\033[J"),
        written);
  }

  @Test
  void goesBackOverAllItsLines() {
    int a = tokenizer.id("a").orElseThrow();
    int line = tokenizer.encode("\n")[0];
    FillingView view = new FillingView(tokenizer, 4, written::add);
    view.accept(chunk(0, a, a, a, a, line, a));
    assertEquals("\r\033[Jaaa\na\na", written.getLast());
    view.accept(chunk(6, a));
    assertTrue(written.getLast().startsWith("\r\033[2A\033[J"), written.getLast());
  }
}
