package io.fletch.graph.cuda;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** NVIDIA's assembler, where it is installed. */
final class Assembler {
  private static final List<String> TARGETS = List.of("sm_80", "sm_90", "sm_100");

  private Assembler() {}

  /**
   * What the assembler says of a module, by target; empty, and a line that says so, where there is
   * none. Fails if a target refuses it or a kernel spills registers.
   */
  static Map<String, String> assemble(String ptx, Path folder)
      throws IOException, InterruptedException {
    return assemble(ptx, folder, TARGETS.toArray(String[]::new));
  }

  /** The same for some targets; {@code TARGET.cubin} is in the folder then. */
  static Map<String, String> assemble(String ptx, Path folder, String... targets)
      throws IOException, InterruptedException {
    Optional<Path> ptxas =
        Arrays.stream(System.getenv("PATH").split(File.pathSeparator))
            .map(p -> Path.of(p, "ptxas"))
            .filter(Files::isExecutable)
            .findFirst();
    Map<String, String> outputs = new LinkedHashMap<>();
    if (ptxas.isEmpty()) {
      System.out.println("skipped: no ptxas on the path");
      return outputs;
    }
    Path file = Files.writeString(folder.resolve("kernels.ptx"), ptx);
    // All at once: assembling takes seconds.
    Map<String, Process> running = new LinkedHashMap<>();
    for (String target : targets) {
      String[] command = {
        ptxas.get().toString(),
        "-v",
        "-arch=" + target,
        "-o",
        folder.resolve(target + ".cubin").toString(),
        file.toString()
      };
      running.put(
          target,
          new ProcessBuilder(command)
              .redirectErrorStream(true)
              .redirectOutput(folder.resolve(target + ".log").toFile())
              .start());
    }
    for (Map.Entry<String, Process> e : running.entrySet()) {
      int code = e.getValue().waitFor();
      String output = Files.readString(folder.resolve(e.getKey() + ".log"));
      assertEquals(0, code, e.getKey() + ": " + output);
      List<String> spills = new ArrayList<>();
      String function = "";
      for (String line : output.lines().toList()) {
        function = line.contains("Compiling entry function") ? line : function;
        if (line.contains("spill")
            && !line.contains(" 0 bytes spill stores, 0 bytes spill loads")) {
          spills.add(function + ": " + line);
        }
      }
      assertEquals(List.of(), spills, e.getKey());
      outputs.put(e.getKey(), output);
    }
    return outputs;
  }
}
