package io.fletch.bench;

import org.openjdk.jmh.annotations.AuxCounters;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;

/**
 * What one second takes in and computes: GB/s, the share of what a read loop reads from memory in
 * the same process, and 10^9 operations per second.
 */
@AuxCounters(AuxCounters.Type.OPERATIONS)
@State(Scope.Thread)
public class StreamRates {
  public double gigabytes;
  public double gigaops;
  public double percent;

  @Setup(Level.Iteration)
  public void clear() {
    gigabytes = 0;
    gigaops = 0;
    percent = 0;
  }
}
