package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.management.ThreadMXBean;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.graph.LowRankAdapter;
import io.fletch.quant.TensorType;
import io.fletch.sampling.AutoregressiveDecoder;
import io.fletch.sampling.AutoregressiveOptions;
import io.fletch.sampling.Sampler;
import io.fletch.sampling.SamplerExtras;
import io.fletch.sampling.SamplingOptions;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * After warm-up a decode step, forward pass and choice of the token, allocates nothing on the
 * session's thread. On the default kernels where machine code runs, else on the scalar ones: those
 * of the Vector API box until the last compiler has seen them.
 */
class AllocationTest {
  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();

  private static ModelOptions.Kernels kernels() {
    boolean machineCode =
        System.getProperty("os.arch").equals("amd64") && ExecutableMemory.refusal().isEmpty();
    return machineCode ? ModelOptions.Kernels.AUTO : ModelOptions.Kernels.SCALAR;
  }

  @TempDir static Path folder;

  /** Chains that between them have every step of a sampler. */
  enum Chain {
    GREEDY(SamplingOptions.greedy()),
    USUAL(SamplingOptions.defaults()),
    NUCLEUS(whole().withTopP(0.95f).withLogitBias(Map.of(7, 1f, 300, -2f))),
    EXTRAS(
        whole()
            .withPenalties(1.1f, 0.2f, 0.1f, 64)
            .withExtras(
                SamplerExtras.NONE
                    .withDry(SamplerExtras.Dry.of(0.8f))
                    .withTopNSigma(3)
                    .withTypicalP(0.9f)
                    .withXtc(0.5f, 0.1f)
                    .withDynamicTemperature(0.3f, 1))),
    MIROSTAT(whole().withExtras(SamplerExtras.NONE.withMirostat(5, 0.1f)));

    private final SamplingOptions options;

    Chain(SamplingOptions options) {
      this.options = options;
    }

    private static SamplingOptions whole() {
      return SamplingOptions.defaults().withTopK(0).withTopP(1).withMinP(0);
    }
  }

  @ParameterizedTest
  @CsvSource({
    "GREEDY, F16, false",
    "USUAL, F16, false",
    "GREEDY, F16, true",
    "USUAL, Q8_0, true",
    "NUCLEUS, Q8_0, false",
    "EXTRAS, F16, false",
    "MIROSTAT, F32, false"
  })
  void decodeStepsAllocateNothing(Chain chain, ModelOptions.KvType kv, boolean adapted) {
    SamplingOptions sampling = chain.options;
    try (Model model =
        TestModels.open(
            "demo-small",
            TestModels.options(ModelOptions.Backend.CPU).withKernels(kernels()).withKvType(kv))) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      try (GraphForward forward = loaded.newForward(256, 1)) {
        if (adapted) {
          Path file = folder.resolve("a.gguf");
          AdapterFiles.gguf(TestModels.demo("demo-small"), file, 8, TensorType.F16, 1, 1);
          LoadedAdapter a = assertInstanceOf(LoadedAdapter.class, model.adapter(file));
          forward.adapt(List.of(new LowRankAdapter.Term(a.weights(), 1)));
        }
        AutoregressiveDecoder decoder =
            AutoregressiveDecoder.of(
                forward,
                Sampler.of(sampling, forward.vocabulary()),
                new AutoregressiveOptions(0, new int[0], -1));
        decoder.start(new int[] {1021, 266, 10}, 3);
        DecodeStepEvent event = new DecodeStepEvent();
        steps(decoder, event, 100);
        // A lambda or a call site may still be linked late; what a step needs, every step needs.
        long least = Long.MAX_VALUE;
        for (int i = 0; i < 5; i++) {
          long before = THREADS.getCurrentThreadAllocatedBytes();
          steps(decoder, event, 20);
          least = Math.min(least, THREADS.getCurrentThreadAllocatedBytes() - before);
        }
        assertTrue(THREADS.isThreadAllocatedMemoryEnabled());
        assertEquals(0, least, "bytes of 20 steps");
      }
    }
  }

  private static void steps(AutoregressiveDecoder decoder, DecodeStepEvent event, int n) {
    for (int i = 0; i < n; i++) {
      event.begin();
      decoder.next();
      event.end();
      if (event.shouldCommit()) {
        event.commit();
      }
    }
  }
}
