package io.fletch.runtime.engine;

import jdk.jfr.Category;
import jdk.jfr.DataAmount;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** Memory outside the Java heap. */
@Name("fletch.Allocation")
@Label("Allocation")
@Category("Fletch")
@Description("Memory outside the Java heap, for keys and values")
@StackTrace(false)
final class AllocationEvent extends Event {
  @Label("Purpose")
  String purpose;

  @Label("Slots")
  @Description("Tokens that it holds")
  int slots;

  @Label("Bytes")
  @DataAmount
  long bytes;
}
