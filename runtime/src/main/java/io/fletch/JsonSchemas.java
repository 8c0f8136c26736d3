package io.fletch;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.sampling.Grammar;
import java.io.IOException;
import java.util.Map;

/** Grammars from the text of JSON schemas. Stateless. */
public final class JsonSchemas {
  private JsonSchemas() {}

  /**
   * The grammar of a schema given as text.
   *
   * @throws FletchException if it is not a JSON object
   * @throws io.fletch.sampling.SamplingException for keywords that cannot be guaranteed, see {@link
   *     Grammar#ofJsonSchema}
   */
  public static Grammar grammar(String schema) {
    Object parsed;
    try {
      parsed = JSON.std.anyFrom(schema);
    } catch (IOException e) {
      throw new FletchException("JSON schema: " + e.getMessage(), e);
    }
    if (!(parsed instanceof Map<?, ?>)) {
      throw new FletchException("JSON schema: expected=an object actual=" + schema.strip());
    }
    try {
      return Grammar.ofJsonSchema(JSON.std.mapFrom(schema));
    } catch (IOException e) {
      throw new FletchException("JSON schema: " + e.getMessage(), e);
    }
  }
}
