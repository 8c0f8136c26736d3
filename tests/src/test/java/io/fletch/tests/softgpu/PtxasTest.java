package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Optional;
import org.junit.jupiter.api.Test;

/** The assembler is found, called and understood. */
class PtxasTest {
  @Test
  void assemblesAndReports() {
    Optional<Ptxas> ptxas = Ptxas.findOrSay("assembling");
    if (ptxas.isEmpty()) {
      return;
    }
    String ptx = Bench.kernel("", "st.global.b32 [%out], %t;").replace("sm_90", "sm_80");
    for (int capability : Ptxas.ARCHITECTURES) {
      Ptxas.Result result = ptxas.get().assemble(ptx, capability);
      assertTrue(result.accepted(), result.log());
      assertEquals(1, result.kernels().size(), result.log());
      assertEquals("k", result.kernels().getFirst().kernel());
      assertTrue(result.kernels().getFirst().registers() > 0);
      assertEquals(0, result.kernels().getFirst().spillStores());
    }
  }

  @Test
  void refusesWhatIsWrong() {
    Optional<Ptxas> ptxas = Ptxas.findOrSay("refusing");
    if (ptxas.isEmpty()) {
      return;
    }
    String ptx = Bench.kernel("", "add.f32 %t, %t, %in;");
    Ptxas.Result result = ptxas.get().assemble(ptx, 90);
    assertFalse(result.accepted());
    assertTrue(result.log().contains("add"), result.log());
  }
}
