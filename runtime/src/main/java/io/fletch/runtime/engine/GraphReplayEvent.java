package io.fletch.runtime.engine;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** One execution of a model graph. */
@Name("fletch.GraphReplay")
@Label("Graph Replay")
@Category("Fletch")
@Description("One execution of the model graph over a batch of rows, on whatever backend runs it")
@StackTrace(false)
final class GraphReplayEvent extends Event {
  @Label("Rows")
  @Description("Tokens of all sessions in the batch")
  int rows;

  @Label("Logit Rows")
  @Description("Rows whose logits were computed")
  int logitRows;
}
