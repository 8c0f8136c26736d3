package io.fletch.tests.softgpu;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** NVIDIA's assembler, where a CUDA toolkit is installed: what hardware would run of our PTX. */
public final class Ptxas {
  /** The architectures that kernels are checked for, as compute capability. */
  public static final List<Integer> ARCHITECTURES = List.of(80, 90, 100);

  private static final Pattern FUNCTION = Pattern.compile("Compiling entry function '([^']+)' for");
  private static final Pattern SPILLS =
      Pattern.compile("(\\d+) bytes spill stores, (\\d+) bytes spill loads");
  private static final Pattern REGISTERS = Pattern.compile("Used (\\d+) registers");

  private final Path program;

  private Ptxas(Path program) {
    this.program = program;
  }

  /** What one kernel uses. */
  public record Usage(String kernel, int registers, int spillStores, int spillLoads) {}

  /** What the assembler said. */
  public record Result(boolean accepted, List<Usage> kernels, String log) {}

  /** Looks in {@code PATH} and {@code CUDA_HOME}. */
  public static Optional<Ptxas> find() {
    List<Path> places = new ArrayList<>();
    String home = System.getenv("CUDA_HOME");
    if (home != null && !home.isBlank()) {
      places.add(Path.of(home, "bin"));
    }
    String path = System.getenv("PATH");
    if (path != null) {
      for (String p : path.split(java.io.File.pathSeparator)) {
        if (!p.isBlank()) {
          places.add(Path.of(p));
        }
      }
    }
    return places.stream()
        .map(p -> p.resolve("ptxas"))
        .filter(Files::isExecutable)
        .findFirst()
        .map(Ptxas::new);
  }

  /** {@link #find()}, and a printed line that says what is skipped where there is none. */
  public static Optional<Ptxas> findOrSay(String skipped) {
    Optional<Ptxas> found = find();
    if (found.isEmpty()) {
      System.out.println("no ptxas in PATH or CUDA_HOME: skipping " + skipped);
    }
    return found;
  }

  /**
   * Assembles a module.
   *
   * @param capability the architecture, such as 90
   */
  public Result assemble(String ptx, int capability) {
    try {
      Path directory = Files.createTempDirectory("ptxas");
      Path source = directory.resolve("kernel.ptx");
      Path output = directory.resolve("kernel.cubin");
      Path log = directory.resolve("log");
      try {
        Files.writeString(source, ptx);
        Process process =
            new ProcessBuilder(
                    program.toString(),
                    "-v",
                    "-arch=sm_" + capability,
                    source.toString(),
                    "-o",
                    output.toString())
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .start();
        if (!process.waitFor(60, TimeUnit.SECONDS)) {
          process.destroyForcibly();
          return new Result(false, List.of(), "ptxas did not end in 60 s");
        }
        String text = Files.readString(log);
        return new Result(process.exitValue() == 0, usage(text), text);
      } finally {
        for (Path p : List.of(source, output, log, directory)) {
          Files.deleteIfExists(p);
        }
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException(e);
    }
  }

  private static List<Usage> usage(String log) {
    List<Usage> all = new ArrayList<>();
    String kernel = "";
    int stores = 0;
    int loads = 0;
    for (String line : log.lines().toList()) {
      Matcher m = FUNCTION.matcher(line);
      if (m.find()) {
        kernel = m.group(1);
      }
      m = SPILLS.matcher(line);
      if (m.find()) {
        stores = Integer.parseInt(m.group(1));
        loads = Integer.parseInt(m.group(2));
      }
      m = REGISTERS.matcher(line);
      if (m.find()) {
        all.add(new Usage(kernel, Integer.parseInt(m.group(1)), stores, loads));
      }
    }
    return List.copyOf(all);
  }
}
