package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Generation;
import io.fletch.Generation.FinishReason;
import io.fletch.GenerationOptions;
import io.fletch.JsonSchemas;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.lifecycle.AfterContainer;
import net.jqwik.api.lifecycle.BeforeContainer;

/**
 * Whatever a model samples under a JSON schema parses and validates, or is cut off at a limit. The
 * validator here reads the schema itself and knows nothing of grammars.
 */
class StructuredOutputPropertyTest {
  private static Model model;

  @BeforeContainer
  static void open() {
    model =
        TestModels.open(
            "demo-small", TestModels.options(ModelOptions.Backend.CPU).withContextLength(256));
  }

  @AfterContainer
  static void close() {
    model.close();
  }

  private static Object schema(SplittableRandom random, int depth) {
    Map<String, Object> out = new LinkedHashMap<>();
    int kind = random.nextInt(depth > 2 ? 6 : 9);
    switch (kind) {
      case 0 -> {
        out.put("type", "string");
        if (random.nextBoolean()) {
          out.put("minLength", random.nextInt(3));
          out.put("maxLength", 3 + random.nextInt(5));
        }
      }
      case 1 -> {
        out.put("type", "integer");
        int low = random.nextInt(-300, 300);
        out.put("minimum", low);
        out.put("exclusiveMaximum", low + 1 + random.nextInt(500));
      }
      case 2 -> {
        out.put("type", "number");
        out.put("minimum", 0);
      }
      case 3 -> out.put("type", List.of("boolean", "null"));
      case 4 -> out.put("enum", List.of("a\"b", 17, true, List.of(1, Map.of("k", "\u20ac\n"))));
      case 5 -> out.put("const", "fixed " + random.nextInt(10));
      case 6 -> {
        out.put("type", "array");
        out.put("items", schema(random, depth + 1));
        out.put("minItems", random.nextInt(2));
        out.put("maxItems", 1 + random.nextInt(3));
      }
      case 7 -> out.put("anyOf", List.of(schema(random, depth + 1), schema(random, depth + 1)));
      default -> {
        out.put("type", "object");
        Map<String, Object> properties = new LinkedHashMap<>();
        List<String> required = new ArrayList<>();
        for (int i = random.nextInt(4); i >= 0; i--) {
          String name = "p\"" + i;
          properties.put(name, schema(random, depth + 1));
          if (random.nextBoolean()) {
            required.add(name);
          }
        }
        out.put("properties", properties);
        out.put("required", required);
        out.put("additionalProperties", false);
      }
    }
    return out;
  }

  private static boolean validates(Object value, Map<?, ?> schema) {
    if (schema.get("anyOf") instanceof List<?> any) {
      return any.stream().anyMatch(s -> validates(value, (Map<?, ?>) s));
    }
    if (schema.containsKey("const")) {
      return schema.get("const").equals(value);
    }
    if (schema.get("enum") instanceof List<?> all) {
      return all.contains(value);
    }
    return switch (String.valueOf(schema.get("type"))) {
      case "[boolean, null]" -> value == null || value instanceof Boolean;
      case "string" -> {
        int n = value instanceof String s ? s.codePointCount(0, s.length()) : -1;
        yield n >= number(schema, "minLength", 0) && n <= number(schema, "maxLength", 9999);
      }
      case "integer" ->
          value instanceof Number n
              && n.doubleValue() == Math.rint(n.doubleValue())
              && n.longValue() >= number(schema, "minimum", 0)
              && n.longValue() < number(schema, "exclusiveMaximum", 0);
      case "number" -> value instanceof Number n && n.doubleValue() >= 0;
      case "array" ->
          value instanceof List<?> list
              && list.size() >= number(schema, "minItems", 0)
              && list.size() <= number(schema, "maxItems", 99)
              && list.stream().allMatch(v -> validates(v, (Map<?, ?>) schema.get("items")));
      case "object" ->
          value instanceof Map<?, ?> map
              && map.keySet().containsAll((List<?>) schema.get("required"))
              && map.entrySet().stream()
                  .allMatch(e ->
                      ((Map<?, ?>) schema.get("properties")).containsKey(e.getKey())
                          && validates(
                              e.getValue(),
                              (Map<?, ?>) ((Map<?, ?>) schema.get("properties")).get(e.getKey())));
      default -> false;
    };
  }

  private static int number(Map<?, ?> schema, String key, int otherwise) {
    return schema.get(key) instanceof Number n ? n.intValue() : otherwise;
  }

  @Property(tries = 60)
  void sampledOutputValidates(@ForAll long seed) throws IOException {
    SplittableRandom random = new SplittableRandom(seed);
    Map<?, ?> schema = (Map<?, ?>) schema(random, 0);
    String text = JSON.std.asString(schema);
    Grammar grammar = JsonSchemas.grammar(text);
    // Hot enough that the model's own opinion counts for little.
    GenerationOptions options =
        GenerationOptions.defaults()
            .withSampling(
                SamplingOptions.defaults()
                    .withTemperature(random.nextBoolean() ? 20f : 1f)
                    .withTopK(0)
                    .withTopP(1)
                    .withMinP(0)
                    .withSeed(seed))
            .withIgnoreEnd(random.nextInt(4) == 0)
            .withMaxTokens(200)
            .withGrammar(grammar);
    try (Session session = model.newSession()) {
      Generation.Result result = session.generate("JSON: ", options).result();
      if (result.finishReason() == FinishReason.STOP) {
        Object value = JSON.std.anyFrom(result.text().isBlank() ? "!" : result.text());
        assertTrue(validates(value, schema), text + " " + result.text());
      } else {
        assertEquals(FinishReason.LENGTH, result.finishReason());
      }
    }
  }

  @Property(tries = 5, seed = "1")
  void aGrammarOfEverythingChangesNothing(@ForAll long seed) {
    GenerationOptions free =
        GenerationOptions.defaults()
            .withSampling(SamplingOptions.defaults().withSeed(seed))
            .withMaxTokens(30);
    try (Session session = model.newSession()) {
      String prompt = "<|im_start|>user\nWhat is 4 + 3?<|im_end|>\n<|im_start|>assistant\n";
      List<Integer> expected = session.generate(prompt, free).result().ids();
      List<Integer> actual =
          session.generate(prompt, free.withGrammar(Grammar.parse("root ::= .*"))).result().ids();
      assertEquals(expected, actual);
      assertFalse(expected.isEmpty());
    }
  }
}
