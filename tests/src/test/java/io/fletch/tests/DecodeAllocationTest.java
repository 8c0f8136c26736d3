package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.management.ThreadMXBean;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.ffm.ExecutableMemory;
import java.lang.management.ManagementFactory;
import java.util.Arrays;
import org.junit.jupiter.api.Test;

/**
 * Garbage of the public path, by the JVM's counters per thread: what the workers do for a token
 * allocates nothing; the calling thread allocates what it hands out (a chunk with its text and
 * ids), and nothing that grows with the model.
 */
class DecodeAllocationTest {
  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();

  /** The default where machine code runs; the Vector API boxes until its last compiler has run. */
  private static ModelOptions.Kernels kernels() {
    boolean machineCode =
        System.getProperty("os.arch").equals("amd64") && ExecutableMemory.refusal().isEmpty();
    return machineCode ? ModelOptions.Kernels.AUTO : ModelOptions.Kernels.SCALAR;
  }

  @Test
  void workersAllocateNothingAndTheCallerAllocatesChunks() {
    ModelOptions options =
        ModelOptions.defaults().withThreads(3).withContextLength(512).withKernels(kernels());
    long[] before = THREADS.getAllThreadIds();
    Arrays.sort(before);
    try (Model model = Model.demo("demo-small", options);
        Session session = model.newSession();
        Generation generation =
            session.generate(
                new int[] {1021, 266, 10}, GenerationOptions.greedy().withIgnoreEnd(true))) {
      take(generation, 200);
      long[] workers =
          Arrays.stream(THREADS.getThreadInfo(THREADS.getAllThreadIds()))
              .filter(t -> t != null && t.getThreadName().startsWith("fletch-worker-"))
              .mapToLong(t -> t.getThreadId())
              .filter(id -> Arrays.binarySearch(before, id) < 0)
              .toArray();
      assertEquals(2, workers.length, "threads that work besides the caller");
      assertTrue(THREADS.isThreadAllocatedMemoryEnabled());
      // A call site may still be linked late; what a token needs, every token needs.
      long leastOfWorkers = Long.MAX_VALUE;
      long leastOfCaller = Long.MAX_VALUE;
      int tokens = 40;
      for (int i = 0; i < 4; i++) {
        long workersStart = allocated(workers);
        long callerStart = THREADS.getCurrentThreadAllocatedBytes();
        take(generation, tokens);
        long callerEnd = THREADS.getCurrentThreadAllocatedBytes();
        leastOfCaller = Math.min(leastOfCaller, callerEnd - callerStart);
        leastOfWorkers = Math.min(leastOfWorkers, allocated(workers) - workersStart);
      }
      assertEquals(0, leastOfWorkers, "bytes of the workers for " + tokens + " tokens");
      // Measured: 122. A vector of logits (4 KiB) or of activations would show.
      assertTrue(leastOfCaller < 256L * tokens, "bytes per token: " + leastOfCaller / tokens);
    }
  }

  private static void take(Generation generation, int chunks) {
    for (int i = 0; i < chunks; i++) {
      generation.next();
    }
  }

  private static long allocated(long[] threads) {
    return Arrays.stream(THREADS.getThreadAllocatedBytes(threads)).sum();
  }
}
