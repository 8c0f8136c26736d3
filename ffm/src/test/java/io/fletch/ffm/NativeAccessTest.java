package io.fletch.ffm;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/**
 * What a process without the grant sees: one line that names the flag, no JVM warning, no crash.
 */
class NativeAccessTest {
  /** Runs in the child process. */
  static final class Child {
    private Child() {}

    public static void main(String[] args) {
      System.out.println("granted=" + NativeAccess.granted());
      System.out.println("refusal=" + ExecutableMemory.refusal().orElse("none"));
      System.out.println("source=" + CpuFeatures.host());
      System.out.println("pin=" + Affinity.pin(0) + " cores=" + Affinity.physicalCores());
      try (NativeMemory memory = NativeMemory.allocate(1 << 22)) {
        memory.segment().set(ValueLayout.JAVA_BYTE, 0, (byte) 1);
        System.out.println("lazy=" + memory.lazy());
      }
      System.out.println(NativeAccess.granted() ? "" : NativeAccess.missing());
    }
  }

  @Test
  void withoutTheGrantEverythingFallsBack() throws Exception {
    for (List<String> flags : List.of(List.<String>of(), List.of("--illegal-native-access=deny"))) {
      String out = run(flags);
      assertTrue(out.contains("granted=false"), out);
      assertTrue(out.contains("refusal=native access is not granted"), out);
      assertTrue(out.contains("pin=false"), out);
      assertTrue(out.contains("lazy=false"), out);
      assertFalse(out.contains("A restricted method"), out);
      // Once in the refusal printed above, once in the line for the log.
      assertEquals(3, out.split("--enable-native-access=ALL-UNNAMED", -1).length, out);
    }
  }

  @Test
  void withTheGrantNothingIsReported() throws Exception {
    String out = run(List.of("--enable-native-access=ALL-UNNAMED"));
    assertTrue(out.contains("granted=true"), out);
    assertFalse(out.contains("start java with"), out);
  }

  private static String run(List<String> flags) throws IOException, InterruptedException {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(flags);
    command.addAll(List.of("-Xshare:auto", "-cp", System.getProperty("java.class.path")));
    command.add(Child.class.getName());
    Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
    String out = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertEquals(0, process.waitFor(), out);
    return out;
  }
}
