package io.fletch.ffm;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Ymm;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class ExecutableMemoryTest {
  @BeforeEach
  void supported() {
    assumeTrue(ExecutableMemory.refusal().isEmpty(), () -> ExecutableMemory.refusal().get());
  }

  private static byte[] addConstant(int constant) {
    Assembler a = new Assembler();
    a.lea(Gpr.RAX, Mem.of(Gpr.RDI, Gpr.RSI, 2, constant));
    a.ret();
    return a.assemble();
  }

  @ParameterizedTest
  @ValueSource(strings = {"mprotect", "memfd", "auto"})
  void runsWhatWasEmitted(String choice) {
    ExecutableMemory memory;
    try {
      memory = ExecutableMemory.create(choice);
    } catch (ExecutableMemoryException e) {
      assumeTrue(false, e.getMessage());
      return;
    }
    // More than one region's worth of pages is not needed: every function starts a page of its own.
    for (int i = 0; i < 40; i++) {
      ExecutableMemory.Function f = memory.emit("f" + i, addConstant(i * 1000));
      assertEquals(5 + 2 * 7 + i * 1000, ExecutableMemory.call(f, 5, 7, 0));
      assertEquals(0, f.entry().address() % 4096);
    }
  }

  @Test
  void noPageIsWritableAndExecutable() throws IOException {
    for (String choice : new String[] {"mprotect", "memfd"}) {
      List<ExecutableMemory.Function> functions = new ArrayList<>();
      try {
        ExecutableMemory memory = ExecutableMemory.create(choice);
        for (int i = 0; i < 3; i++) {
          functions.add(memory.emit("f" + i, addConstant(i)));
        }
      } catch (ExecutableMemoryException e) {
        System.out.println("skipped " + choice + ": " + e.getMessage());
      }
      List<String> maps = Files.readAllLines(Path.of("/proc/self/maps"));
      for (ExecutableMemory.Function f : functions) {
        assertEquals(Optional.of("r-x"), rights(maps, f.entry().address()), choice + " " + f);
      }
      for (String line : maps) {
        if (line.contains("fletch-code")) {
          String rights = line.split(" ")[1];
          assertFalse(rights.contains("w") && rights.contains("x"), line);
        }
      }
    }
  }

  /** Rights of the mapping that holds an address; empty if none does. */
  private static Optional<String> rights(List<String> maps, long address) {
    for (String line : maps) {
      String[] range = line.split(" ")[0].split("-");
      if (Long.compareUnsigned(Long.parseUnsignedLong(range[0], 16), address) <= 0
          && Long.compareUnsigned(address, Long.parseUnsignedLong(range[1], 16)) < 0) {
        return Optional.of(line.split(" ")[1].substring(0, 3));
      }
    }
    return Optional.empty();
  }

  @Test
  void growsBeyondOneRegion() {
    ExecutableMemory memory = ExecutableMemory.create("auto");
    byte[] large = new byte[5 << 20];
    byte[] code = addConstant(3);
    System.arraycopy(code, 0, large, 0, code.length);
    ExecutableMemory.Function first = memory.emit("first", large);
    ExecutableMemory.Function second = memory.emit("second", large);
    assertEquals(6, ExecutableMemory.call(first, 1, 1, 0));
    assertEquals(6, ExecutableMemory.call(second, 1, 1, 0));
    assertTrue(memory.emittedBytes() >= 10 << 20);
  }

  @Test
  void codeGoesWithItsClassLoader() throws Exception {
    long address = emitElsewhere();
    for (int i = 0; i < 200 && isMapped(address); i++) {
      System.gc();
      Thread.sleep(10);
    }
    assertFalse(isMapped(address), Long.toHexString(address));
  }

  /**
   * Emits by classes of a loader that nobody knows afterwards, as a redeployed application does.
   */
  private static long emitElsewhere() throws Exception {
    URL classes = ExecutableMemory.class.getProtectionDomain().getCodeSource().getLocation();
    try (URLClassLoader loader =
        new URLClassLoader(new URL[] {classes}, ClassLoader.getPlatformClassLoader())) {
      Class<?> type = loader.loadClass(ExecutableMemory.class.getName());
      assertNotSame(ExecutableMemory.class, type);
      Object memory = type.getMethod("shared").invoke(null);
      Object function =
          type.getMethod("emit", String.class, byte[].class).invoke(memory, "f", addConstant(1));
      MemorySegment entry = (MemorySegment) function.getClass().getMethod("entry").invoke(function);
      assertTrue(isMapped(entry.address()));
      return entry.address();
    }
  }

  private static boolean isMapped(long address) throws IOException {
    return rights(Files.readAllLines(Path.of("/proc/self/maps")), address)
        .equals(Optional.of("r-x"));
  }

  @Test
  void vectorCodeWithConstants() {
    assumeTrue(CpuFeatures.host().has(CpuFeatures.Feature.AVX2), "no AVX2");
    Assembler a = new Assembler();
    a.vmovdqu(Ymm.YMM0, Mem.of(Gpr.RDI));
    a.vpaddd(Ymm.YMM0, Ymm.YMM0, a.ints(1, 2, 3, 4, 5, 6, 7, 8));
    a.vmovdqu(Mem.of(Gpr.RDI), Ymm.YMM0);
    a.vzeroupper();
    a.ret();
    ExecutableMemory.Function f = ExecutableMemory.shared().emit("add", a.assemble());
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment s = arena.allocateFrom(ValueLayout.JAVA_INT, 10, 20, 30, 40, 50, 60, 70, 80);
      ExecutableMemory.call(f, s.address(), 0, 0);
      for (int i = 0; i < 8; i++) {
        assertEquals(11 * (i + 1), s.getAtIndex(ValueLayout.JAVA_INT, i));
      }
    }
  }

  @Test
  void refusalsHaveReasons() {
    assertTrue(
        assertThrows(ExecutableMemoryException.class, () -> ExecutableMemory.create("off"))
            .getMessage()
            .contains("fletch.executable=off"));
    assertTrue(
        assertThrows(ExecutableMemoryException.class, () -> ExecutableMemory.create("maybe"))
            .getMessage()
            .contains("actual=maybe"));
    assertThrows(
        IllegalArgumentException.class, () -> ExecutableMemory.shared().emit("empty", new byte[0]));
  }
}
