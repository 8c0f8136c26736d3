package io.fletch.langchain4j;

import com.fasterxml.jackson.jr.ob.JSON;
import dev.langchain4j.exception.InvalidRequestException;
import dev.langchain4j.exception.UnsupportedFeatureException;
import dev.langchain4j.model.chat.request.json.JsonAnyOfSchema;
import dev.langchain4j.model.chat.request.json.JsonArraySchema;
import dev.langchain4j.model.chat.request.json.JsonBooleanSchema;
import dev.langchain4j.model.chat.request.json.JsonEnumSchema;
import dev.langchain4j.model.chat.request.json.JsonIntegerSchema;
import dev.langchain4j.model.chat.request.json.JsonNullSchema;
import dev.langchain4j.model.chat.request.json.JsonNumberSchema;
import dev.langchain4j.model.chat.request.json.JsonObjectSchema;
import dev.langchain4j.model.chat.request.json.JsonRawSchema;
import dev.langchain4j.model.chat.request.json.JsonReferenceSchema;
import dev.langchain4j.model.chat.request.json.JsonSchemaElement;
import dev.langchain4j.model.chat.request.json.JsonStringSchema;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;

/** LangChain4j's schemas as parsed JSON. Stateless. */
final class Schemas {
  private Schemas() {}

  /** Converts; the order of properties is kept, since answers follow it. */
  static Map<String, Object> of(JsonSchemaElement element) {
    Map<String, Object> out = new LinkedHashMap<>();
    switch (element) {
      case JsonObjectSchema o -> {
        out.put("type", "object");
        out.put("properties", all(o.properties()));
        if (o.required() != null && !o.required().isEmpty()) {
          out.put("required", o.required());
        }
        if (o.additionalProperties() != null) {
          out.put("additionalProperties", o.additionalProperties());
        }
        if (o.definitions() != null && !o.definitions().isEmpty()) {
          out.put("$defs", all(o.definitions()));
        }
      }
      case JsonArraySchema a -> {
        out.put("type", "array");
        if (a.items() != null) {
          out.put("items", of(a.items()));
        }
      }
      case JsonAnyOfSchema a -> out.put("anyOf", a.anyOf().stream().map(Schemas::of).toList());
      case JsonEnumSchema e -> {
        out.put("type", "string");
        out.put("enum", e.enumValues());
      }
      case JsonStringSchema _ -> out.put("type", "string");
      case JsonIntegerSchema _ -> out.put("type", "integer");
      case JsonNumberSchema _ -> out.put("type", "number");
      case JsonBooleanSchema _ -> out.put("type", "boolean");
      case JsonNullSchema _ -> out.put("type", "null");
      case JsonReferenceSchema r -> out.put("$ref", "#/$defs/" + r.reference());
      case JsonRawSchema r -> out.putAll(parsed(r.schema()));
      default ->
          throw new UnsupportedFeatureException(
              "JSON schema element: expected=one of LangChain4j's own actual="
                  + element.getClass().getName());
    }
    if (element.description() != null && !out.containsKey("$ref")) {
      out.put("description", element.description());
    }
    return out;
  }

  private static Map<String, Object> all(Map<String, JsonSchemaElement> elements) {
    Map<String, Object> out = new LinkedHashMap<>();
    elements.forEach((name, element) -> out.put(name, of(element)));
    return out;
  }

  private static Map<String, Object> parsed(String json) {
    try {
      return JSON.std.mapFrom(json);
    } catch (IOException e) {
      throw new InvalidRequestException("JSON schema: " + e.getMessage(), e);
    }
  }
}
