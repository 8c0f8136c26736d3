package io.fletch;

import com.fasterxml.jackson.core.JacksonException;
import com.fasterxml.jackson.jr.ob.JSON;
import com.fasterxml.jackson.jr.ob.JSONObjectException;
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
    if (schema.isBlank()) {
      throw new FletchException("JSON schema: expected=an object actual=nothing");
    }
    try {
      if (!(JSON.std.anyFrom(schema) instanceof Map<?, ?>)) {
        throw new FletchException("JSON schema: expected=an object actual=" + schema.strip());
      }
      return Grammar.ofJsonSchema(JSON.std.mapFrom(schema));
    } catch (JSONObjectException e) {
      throw new FletchException("JSON schema: " + e.getOriginalMessage(), e);
    } catch (JacksonException e) {
      throw new FletchException(
          "JSON schema: line "
              + e.getLocation().getLineNr()
              + " column "
              + e.getLocation().getColumnNr()
              + ": "
              + e.getOriginalMessage(),
          e);
    } catch (IOException e) {
      throw new FletchException("JSON schema: " + e.getMessage(), e);
    }
  }
}
