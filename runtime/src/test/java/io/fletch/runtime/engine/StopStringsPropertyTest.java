package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;

class StopStringsPropertyTest {
  @Provide
  Arbitrary<String> text() {
    return Arbitraries.strings().withChars('a', 'b', 'c').ofMaxLength(24);
  }

  @Provide
  Arbitrary<List<String>> stops() {
    return Arbitraries.strings()
        .withChars('a', 'b', 'c')
        .ofMinLength(1)
        .ofMaxLength(4)
        .list()
        .ofMaxSize(3);
  }

  /** What must come out, found the obvious way: the shortest prefix that ends with a stop. */
  private static String expected(String text, List<String> stops) {
    for (int end = 1; end <= text.length(); end++) {
      String seen = text.substring(0, end);
      int longest = stops.stream().filter(seen::endsWith).mapToInt(String::length).max().orElse(0);
      if (longest > 0) {
        return seen.substring(0, end - longest);
      }
    }
    return text;
  }

  @Property
  void outputDoesNotDependOnHowTextIsCut(
      @ForAll("text") String text,
      @ForAll("stops") List<String> stops,
      @ForAll @Size(max = 8) List<@IntRange(max = 5) Integer> cuts) {
    StopStrings matcher = new StopStrings(stops);
    StringBuilder out = new StringBuilder();
    int at = 0;
    for (int cut : cuts) {
      int end = Math.min(text.length(), at + cut);
      out.append(matcher.accept(text.substring(at, end)));
      at = end;
    }
    out.append(matcher.accept(text.substring(at))).append(matcher.finish());
    assertEquals(expected(text, stops), out.toString());
    assertEquals(!expected(text, stops).equals(text), matcher.matched());
  }
}
