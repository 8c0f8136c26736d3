package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CUgraphExecUpdateResultInfo_st;
import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** A graph that is ready to run, as often as wanted. One thread at a time. */
public final class CudaGraphExec extends CudaResource {
  private final MemorySegment handle;
  private final int nodes;

  CudaGraphExec(CudaContext context, MemorySegment handle, int nodes) {
    super(context);
    this.handle = handle;
    this.nodes = nodes;
  }

  /** Number of operations. */
  public int nodes() {
    return nodes;
  }

  /** Queues the whole graph as one piece of work. */
  public void launch(CudaStream stream) {
    use();
    int status = CudaDriver.cuGraphLaunch(handle, stream.handle());
    if (status != Driver.SUCCESS) {
      throw Driver.failure(status, "cuGraphLaunch", this + ", " + stream, "");
    }
  }

  /** Sends the graph to the device, so that its first launch is as quick as the next ones. */
  public void upload(CudaStream stream) {
    use();
    Driver.check(
        CudaDriver.cuGraphUpload(handle, stream.handle()), "cuGraphUpload", this + ", " + stream);
  }

  /**
   * Takes the parameters of another graph of the same shape, without a new instantiation.
   *
   * @return false if the graphs differ too much: then this one is as it was, and the caller
   *     instantiates the other
   */
  public boolean update(CudaGraph graph) {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment info = CUgraphExecUpdateResultInfo_st.allocate(arena);
      int status = CudaDriver.cuGraphExecUpdate_v2(handle, graph.handle(), info);
      if (status == Driver.GRAPH_EXEC_UPDATE_FAILURE) {
        return false;
      }
      Driver.check(status, "cuGraphExecUpdate_v2", this + ", " + graph);
      return true;
    }
  }

  @Override
  void release() {
    Driver.check(CudaDriver.cuGraphExecDestroy(handle), "cuGraphExecDestroy", toString());
  }

  @Override
  public String toString() {
    return "executable graph " + Driver.hex(handle.address()) + " (" + nodes + " nodes)";
  }
}
