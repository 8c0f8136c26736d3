package io.fletch.runtime.engine;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** Texts of one call were embedded. */
@Name("fletch.Embedding")
@Label("Embedding")
@Category("Fletch")
@Description(
    "The texts of one call were embedded; waiting for other calls and sharing forwards with them"
        + " included")
@StackTrace(false)
final class EmbeddingEvent extends Event {
  @Label("Texts")
  int texts;

  @Label("Tokens")
  @Description("Of all texts, special tokens included")
  int tokens;

  @Label("Pooling")
  String pooling;
}
