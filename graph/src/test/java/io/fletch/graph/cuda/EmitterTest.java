package io.fletch.graph.cuda;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Gate;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Value.Rows;
import io.fletch.quant.TensorType;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The text of the kernels; the assembler takes all of them where it is installed. */
class EmitterTest {
  private static final Optional<Gate> GATE = Optional.of(new Gate(1, Gate.Unit.FFN));

  private static List<PtxKernel> kernels(int rows) {
    Emitter e = new Emitter(new Control(rows, 2, 4, 3, 7));
    List<PtxKernel> all = new ArrayList<>();
    for (TensorType t : TensorType.values()) {
      if (Emitter.isNative(t)) {
        all.add(e.embedding(t, 64, 2));
        all.add(e.linear(t, 96, 33, true, GATE, Rows.BATCH));
        all.add(e.linear(t, 96, 33, false, GATE, Rows.LOGITS));
      }
    }
    all.add(e.linear(TensorType.F32, 33, 1, false, Optional.empty(), Rows.BATCH));
    for (Rows r : Rows.values()) {
      all.add(e.rmsNorm(207, 3, 1e-5f, 1, r));
      all.add(e.layerNorm(33, 1e-5f, true, r));
      all.add(e.layerNorm(33, 1e-5f, false, r));
      for (RopeSpec.Style style : RopeSpec.Style.values()) {
        all.add(e.rope(new RopeSpec(style, new float[8], 1.5f), 3, 20, r));
      }
      for (Activation a : Activation.values()) {
        all.add(e.activate(a, 33, true, GATE, r));
        all.add(e.activate(a, 33, false, Optional.empty(), r));
      }
      all.add(e.add(33, 0.5f, GATE, r));
      all.add(e.scale(33, 2, r));
      all.add(e.softCap(33, 30, r));
      all.add(e.slice(33, 1, 31, r));
      all.add(e.gather(33, 31, r));
      for (KvCache.Type t : KvCache.Type.values()) {
        int n = t == KvCache.Type.Q8_0 ? 64 : 40;
        AttentionSpec spec = new AttentionSpec(0, 4, 2, n, n, 0.1f, 50, 7);
        all.add(e.attention(spec, t, 1, 640, GATE, r));
      }
    }
    for (KvCache.Type t : KvCache.Type.values()) {
      all.add(e.kvStore(t, 64, 640));
    }
    all.add(e.selectRows(33));
    all.add(e.skipSimilar(1, 33, GATE.orElseThrow(), new int[] {0, 3}));
    all.add(e.routeUnit(2, GATE.orElseThrow()));
    all.add(e.add(33, 1, Optional.of(GATE.orElseThrow().standIn()), Rows.BATCH));
    all.add(e.input(2, 5));
    all.add(e.statistics(97));
    return all;
  }

  @Test
  void theTextDependsOnTheShapesOnly() {
    List<PtxKernel> one = kernels(8);
    List<PtxKernel> two = kernels(8);
    for (int i = 0; i < one.size(); i++) {
      String text = one.get(i).text("k");
      assertEquals(text, two.get(i).text("k"));
      assertTrue(text.startsWith(".visible .entry k("), text);
      assertFalse(text.contains("null"), text);
    }
  }

  @Test
  void theAssemblerTakesAllKernels(@TempDir Path folder) throws Exception {
    Optional<Path> ptxas =
        Arrays.stream(System.getenv("PATH").split(File.pathSeparator))
            .map(p -> Path.of(p, "ptxas"))
            .filter(Files::isExecutable)
            .findFirst();
    if (ptxas.isEmpty()) {
      System.out.println("skipped: no ptxas on the path");
      return;
    }
    StringBuilder text = new StringBuilder(PtxKernel.header());
    int n = 0;
    for (int rows : new int[] {1, 8}) {
      for (PtxKernel k : kernels(rows)) {
        text.append(k.text("k" + n++));
      }
    }
    Path file = Files.writeString(folder.resolve("kernels.ptx"), text);
    for (String target : List.of("sm_80", "sm_90", "sm_100")) {
      Process p =
          new ProcessBuilder(
                  ptxas.get().toString(),
                  "-v",
                  "-O1",
                  "-arch=" + target,
                  "-o",
                  folder.resolve("out").toString(),
                  file.toString())
              .redirectErrorStream(true)
              .start();
      String output = new String(p.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertEquals(0, p.waitFor(), target + ": " + output);
      List<String> spills =
          output.lines().filter(l -> l.contains("spill") && !l.contains(" 0 bytes spill")).toList();
      assertEquals(List.of(), spills, target);
      System.out.println(target + ": kernels=" + n + " assembled, none spills");
    }
  }
}
