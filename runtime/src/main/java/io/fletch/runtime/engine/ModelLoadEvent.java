package io.fletch.runtime.engine;

import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** A model was opened. */
@Name("fletch.ModelLoad")
@Label("Model Load")
@Category("Fletch")
@Description("A model file was mapped, planned and prepared")
@StackTrace(false)
final class ModelLoadEvent extends Event {
  @Label("Path")
  String path;

  @Label("Architecture")
  String architecture;

  @Label("Weight Bytes")
  @jdk.jfr.DataAmount
  long weightBytes;

  @Label("Backend")
  String backend;
}
