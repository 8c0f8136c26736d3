package io.fletch.runtime.engine;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** One decode step. */
@Name("fletch.DecodeStep")
@Label("Decode Step")
@Category("Fletch")
@Description("One step of the decode loop: forward pass and choice of tokens")
@StackTrace(false)
final class DecodeStepEvent extends Event {
  @Label("Position")
  @Description("Tokens before the step, prompt included")
  int position;

  @Label("Tokens")
  @Description("Tokens committed by the step")
  int tokens;
}
