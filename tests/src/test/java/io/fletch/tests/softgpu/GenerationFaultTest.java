package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.SyntheticModel;
import io.fletch.sampling.SamplingOptions;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Each driver call of a whole generation fails: nothing is left, the message says what failed, and
 * the next generation gives the same tokens.
 */
class GenerationFaultTest {
  private static final boolean FULL = Boolean.getBoolean("fletch.full");

  /** Out of memory, illegal address, unknown. */
  private static final int[] CODES = {2, 700, 999};

  /** Failing calls that nobody needs to hear of: what they clean up goes with the context. */
  private static final Set<String> QUIET = Set.of("cuCtxSetCurrent", "cuLinkDestroy");

  private static final SyntheticModel.Shape TINY =
      new SyntheticModel.Shape(
          "tiny", "llama", 1, 32, 32, 1, 1, 32, 1024, 64, 10000f, false, true, false);

  @TempDir static Path folder;

  private static Path file;

  @BeforeAll
  static void write() {
    SoftGpu.install();
    file = folder.resolve("tiny.gguf");
    SyntheticModel.write(file, TINY, SyntheticModel.Mix.Q8_0, 7);
  }

  @BeforeEach
  void compileOnce() throws Exception {
    run();
  }

  /** Opens, prefills in two chunks, decodes, forks, decodes beside it, and closes all. */
  private static List<Integer> run() throws Exception {
    ModelOptions options =
        ModelOptions.defaults()
            .withBackend(ModelOptions.Backend.GPU)
            .withContextLength(24)
            .withPrefillChunk(3);
    GenerationOptions greedy = GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(2);
    List<Integer> tokens = new ArrayList<>();
    try (Model model = Model.open(file, options);
        Session session = model.newSession()) {
      read(session, new int[] {300, 301, 302, 303, 304}, greedy, tokens);
      try (Session fork = session.fork()) {
        read(fork, new int[] {300, 301, 302, 303, 304, 400}, greedy, tokens);
      }
      session.save(folder.resolve("session"));
      session.truncate(0);
      session.restore(folder.resolve("session"));
      // Whole rows of logits come to the host.
      GenerationOptions sampled =
          GenerationOptions.defaults()
              .withSampling(SamplingOptions.defaults().withSeed(5))
              .withIgnoreEnd(true)
              .withMaxTokens(1);
      read(session, new int[] {300, 301, 302, 303, 304, 500}, sampled, tokens);
      // Pairs are chosen on the device.
      GenerationOptions few =
          sampled.withSampling(SamplingOptions.defaults().withTopK(5).withSeed(5));
      read(session, new int[] {300, 301, 302, 303, 304, 501}, few, tokens);
    }
    return tokens;
  }

  private static void read(
      Session session, int[] prompt, GenerationOptions options, List<Integer> tokens) {
    try (Generation generation = session.generate(prompt, options)) {
      for (int t : generation.result().ids()) {
        tokens.add(t);
      }
    }
  }

  @Test
  void aFailingCallLeavesNothing() throws Exception {
    SoftGpu counting = SoftGpu.reset();
    List<Integer> expected = run();
    assertEquals(6, expected.size());
    assertEquals(0, counting.liveBytes());
    assertEquals(0, counting.liveObjects());
    long calls = counting.calls();
    assertTrue(calls > 100, "calls=" + calls);
    Set<String> failed = new TreeSet<>();
    // Neighbouring calls differ, so that a stride meets every function.
    long stride = FULL ? 1 : Math.max(1, calls / 24);
    for (int c = 0; c < CODES.length; c++) {
      for (long n = 1 + c; n <= calls; n += stride) {
        failed.add(oneFailure(n, CODES[c], expected));
      }
    }
    System.out.println(calls + " calls, of these failed once: " + failed);
  }

  /** Each function of the driver that the scenario calls fails at its first and last call. */
  @Test
  void everyFunctionFails() throws Exception {
    SoftGpu tracing = SoftGpu.reset();
    tracing.trace();
    List<Integer> expected = run();
    List<String> names = tracing.traced();
    for (String name : new TreeSet<>(names)) {
      for (int n : new TreeSet<>(List.of(names.indexOf(name), names.lastIndexOf(name)))) {
        assertEquals(name, oneFailure(n + 1, 999, expected));
      }
    }
  }

  private static String oneFailure(long n, int code, List<Integer> expected) throws Exception {
    SoftGpu gpu = SoftGpu.reset();
    gpu.failCall(n, code);
    String where = "call " + n + " with " + code;
    try {
      run();
      where += " " + gpu.failedCall();
      assertTrue(QUIET.contains(gpu.failedCall()), "no exception: " + where);
    } catch (FletchException | IllegalStateException e) {
      where += " " + gpu.failedCall();
      assertFalse(gpu.failedCall().isEmpty(), where + ": " + e);
      assertTrue(
          e.getMessage().contains(gpu.failedCall().replaceFirst("_v\\d$", "")), where + ": " + e);
      assertFalse(e.getMessage().contains("leaked"), where + ": " + e);
    }
    assertEquals(0, gpu.liveBytes(), "bytes left: " + where);
    assertEquals(0, gpu.liveObjects(), "objects left: " + where);
    assertEquals(0, gpu.retained(), "contexts left: " + where);
    if (FULL || n % 8 == 0) {
      assertEquals(expected, run(), "after " + where);
      assertEquals(0, gpu.liveBytes(), "bytes left after " + where);
    }
    return gpu.failedCall();
  }
}
