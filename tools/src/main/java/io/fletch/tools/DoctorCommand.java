package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.ffm.Affinity;
import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.ffm.NativeAccess;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** {@code fletch doctor}: what this machine and this JVM offer, what runs, and what to change. */
final class DoctorCommand implements Command {
  private static final Path HUGE_PAGES = Path.of("/sys/kernel/mm/transparent_hugepage/enabled");
  private static final Path CGROUP_LIMIT = Path.of("/sys/fs/cgroup/memory.max");
  private static final Path MEMORY = Path.of("/proc/meminfo");

  private final Map<String, Object> findings = new LinkedHashMap<>();
  private final List<String> advice = new ArrayList<>();

  @Override
  public String usage() {
    return "[options]";
  }

  @Override
  public String description() {
    return """
    Reports the machine, the JVM and its flags, which kernels run and why, memory and
    huge pages, the GPU or why there is none, then answers one question with a demo
    model. Status 1 if that fails; what would make it faster is listed at the end.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section("Output", List.of(Command.flag("json", "print one JSON object"))),
        ModelFlags.section());
  }

  @Override
  public List<String> examples() {
    return List.of("fletch doctor", "fletch doctor --kernels vector");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    findings.put("version", Cli.version());
    machine();
    jvm();
    memory();
    new GpuFindings(findings, advice, GpuFindings.COPY).add();
    boolean healthy = model(arguments, io);
    if (arguments.has("json")) {
      findings.put("healthy", healthy);
      findings.put("advice", advice);
      io.println(Json.line(findings));
    } else {
      findings.forEach((name, value) -> io.printf("%-18s %s", name.replace('_', ' '), value));
      io.println("");
      io.println(advice.isEmpty() ? "Nothing to change." : "What to change:");
      advice.forEach(line -> io.println("- " + line));
    }
    return healthy ? Cli.OK : Cli.ERROR;
  }

  private void machine() {
    CpuFeatures cpu = CpuFeatures.host();
    findings.put("cpu", cpu.model());
    findings.put("cpu_features", cpu.toString());
    findings.put("cores", Affinity.physicalCores());
    findings.put("processors", Runtime.getRuntime().availableProcessors());
    Optional<String> refusal = ExecutableMemory.refusal();
    findings.put("machine_code", refusal.map(reason -> "off: " + reason).orElse("on"));
    refusal.ifPresent(reason ->
        advice.add("machine code cannot run here, so slower kernels do (" + reason + ")"));
  }

  private void jvm() {
    findings.put(
        "jvm", System.getProperty("java.vm.name") + " " + System.getProperty("java.vm.version"));
    findings.put("java_home", System.getProperty("java.home"));
    List<String> flags = ManagementFactory.getRuntimeMXBean().getInputArguments();
    findings.put("jvm_flags", String.join(" ", flags));
    findings.put("native_access", NativeAccess.granted());
    if (!NativeAccess.granted()) {
      advice.add(NativeAccess.missing());
    }
    if (flags.stream().noneMatch(flag -> flag.startsWith("--sun-misc-unsafe-memory-access"))) {
      advice.add(
          "start java with --sun-misc-unsafe-memory-access=allow to silence the warning that Arrow"
              + " causes");
    }
  }

  private void memory() {
    findings.put("heap_limit", Texts.bytes(Runtime.getRuntime().maxMemory()));
    String info = read(MEMORY).orElse("");
    kilobytes(info, "MemTotal").ifPresent(n -> findings.put("memory", Texts.bytes(n)));
    kilobytes(info, "MemAvailable").ifPresent(n -> findings.put("memory_free", Texts.bytes(n)));
    read(CGROUP_LIMIT)
        .map(String::strip)
        .filter(text -> text.matches("\\d+"))
        .ifPresent(text -> findings.put("memory_limit", Texts.bytes(Long.parseLong(text))));
    read(HUGE_PAGES)
        .map(String::strip)
        .ifPresent(text -> {
          findings.put("huge_pages", text);
          if (text.contains("[never]")) {
            advice.add(
                "transparent huge pages are off: echo madvise > "
                    + HUGE_PAGES
                    + " (as root) makes packed weights faster to read");
          }
        });
  }

  private static Optional<Long> kilobytes(String info, String key) {
    Matcher matcher = Pattern.compile("(?m)^" + key + ":\\s+(\\d+) kB$").matcher(info);
    return matcher.find() ? Optional.of(Long.parseLong(matcher.group(1)) << 10) : Optional.empty();
  }

  private static Optional<String> read(Path path) {
    try {
      return Optional.of(Files.readString(path));
    } catch (IOException _) {
      return Optional.empty();
    }
  }

  /** Opens the model, answers, and reports what ran; an error is a finding, not the end. */
  private boolean model(Arguments arguments, Io io) {
    findings.put("model", ModelFlags.name(arguments));
    long start = System.nanoTime();
    try (Model model = ModelFlags.open(arguments, io);
        Session session = model.newSession();
        Generation generation =
            session.chat(
                List.of(Message.user("What is 4 + 3?")),
                GenerationOptions.greedy().withMaxTokens(16))) {
      findings.put("backend", model.backendDescription());
      findings.put("vector_module", VectorModule.isLoaded() ? "loaded" : "not loaded");
      generation.next();
      findings.put(
          "first_token", Texts.format("%.0f ms after opening", (System.nanoTime() - start) / 1e6));
      findings.put("answer", generation.result().text().replace('\n', ' '));
      return true;
    } catch (RuntimeException | LinkageError e) {
      findings.put("error", Cli.message(e));
      advice.add("the model does not run: " + Cli.message(e));
      return false;
    }
  }
}
