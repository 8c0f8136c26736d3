package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GreedySteps;
import io.fletch.graph.KernelTime;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import jdk.jfr.EventType;
import jdk.jfr.FlightRecorder;

/** An executable whose forwards and caches show in recordings of the flight recorder. */
record RecordedExecutable(Executable executable) implements Executable {
  /**
   * Whether events can go anywhere. The flight recorder sets itself up when the first event class
   * is loaded, which a small model's start would notice: so none is before there is a recorder.
   */
  static boolean isRecorded() {
    return FlightRecorder.isInitialized();
  }

  @Override
  public Graph graph() {
    return executable.graph();
  }

  @Override
  public List<Plan> plans() {
    return executable.plans();
  }

  @Override
  public String description() {
    return executable.description();
  }

  @Override
  public KvCache newKvCache(int capacity, KvCache.Type type) {
    if (!isRecorded()) {
      return executable.newKvCache(capacity, type);
    }
    AllocationEvent event = new AllocationEvent();
    event.begin();
    KvCache cache = executable.newKvCache(capacity, type);
    event.end();
    if (event.shouldCommit()) {
      event.purpose = "keys and values, " + type;
      event.slots = capacity;
      event.bytes = cache.bytes();
      event.commit();
    }
    return cache;
  }

  @Override
  public Batch newBatch(int maxRows, int maxLogitRows) {
    return executable.newBatch(maxRows, maxLogitRows);
  }

  @Override
  public LowRankAdapter newAdapter(String name, Map<Value, LowRankDelta> deltas) {
    return executable.newAdapter(name, deltas);
  }

  @Override
  public void checkTerms(List<LowRankAdapter.Term> terms) {
    executable.checkTerms(terms);
  }

  @Override
  public void forward(Batch batch) {
    if (!isRecorded() || !Replay.TYPE.isEnabled()) {
      executable.forward(batch);
      return;
    }
    GraphReplayEvent event = new GraphReplayEvent();
    event.begin();
    executable.forward(batch);
    event.end();
    if (event.shouldCommit()) {
      event.rows = batch.rows();
      event.logitRows = batch.logitRows();
      event.commit();
    }
  }

  @Override
  public Optional<GreedySteps> newGreedySteps(KvCache cache, Batch batch) {
    return executable.newGreedySteps(cache, batch);
  }

  @Override
  public List<KernelTime> kernelTimes(int context, KvCache.Type type) {
    return executable.kernelTimes(context, type);
  }

  @Override
  public void close() {
    executable.close();
  }

  /** Loaded with a recorder; a forward that no recording wants allocates nothing. */
  private static final class Replay {
    static final EventType TYPE = EventType.getEventType(GraphReplayEvent.class);
  }
}
