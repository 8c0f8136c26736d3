package io.fletch.runtime.engine;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** A prompt was run. */
@Name("fletch.Prefill")
@Label("Prefill")
@Category("Fletch")
@Description("The tokens of a prompt that were not cached were run through the model")
@StackTrace(false)
final class PrefillEvent extends Event {
  @Label("Prompt Tokens")
  int promptTokens;

  @Label("Reused Tokens")
  int reusedTokens;
}
