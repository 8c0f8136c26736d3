package io.fletch.runtime.template;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** Errors and bounds of templates, which come from files that are not trusted. */
class ChatTemplateTest {
  private static void fails(String template, String... parts) {
    FletchException e =
        assertThrows(
            FletchException.class, () -> ChatTemplate.parse(template).render(Map.of()), template);
    for (String part : parts) {
      assertTrue(e.getMessage().contains(part), e.getMessage());
    }
  }

  @Test
  void unknownConstructsAreNamedWithTheirLine() {
    fails("a\n\n{% include 'x' %}", "line 3", "include");
    fails("a\n{{ x | nosuch }}", "line 2", "nosuch");
    fails("{{ x is nosuch }}", "line 1", "nosuch");
    fails("{% for x in y recursive %}{% endfor %}", "recursive");
    fails("\n{% if x %}", "missing tag");
    fails("{{ 'open", "string without end");
    fails("{{ (1 }}", "line 1");
    fails("{% break %}", "outside of a loop");
    fails("{% endfor %}", "endfor");
    fails("{# open", "comment");
  }

  @Test
  void workIsBounded() {
    fails("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested deeper");
    fails("{{ 'a' * 1000000000000 }}", "characters");
    fails(
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "steps");
    fails(
        "{% set s = namespace(x='ab') %}{% for i in range(64) %}{% set s.x = s.x + s.x %}"
            + "{% endfor %}",
        "characters");
    fails("{{ " + "(".repeat(10_000) + "1" + ")".repeat(10_000) + " }}", "nest");
    fails("{{ " + "1 + ".repeat(200_000) + "1 }}", "nest");
    fails("{{ 2 ** 100 }}", "out of range");
  }

  @Test
  void contextIsCopiedAndChecked() {
    ChatTemplate template = ChatTemplate.parse("{{ a[0] }} {{ b.c }} {{ n }} {{ missing }}");
    assertEquals(
        "1 2.5 None ",
        template.render(
            new java.util.HashMap<>() {
              private static final long serialVersionUID = 1L;

              {
                put("a", List.of(1));
                put("b", Map.of("c", 2.5f));
                put("n", null);
              }
            }));
    assertThrows(FletchException.class, () -> template.render(Map.of("a", new Object())));
  }
}
