package io.fletch.ffm.x86;

import java.io.BufferedReader;
import java.io.IOException;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;

/**
 * Adds to the stored vectors what they do not cover: draws calls until every form of operands that
 * an instruction method has is among them, and has GNU {@code as} assemble their text. Where {@code
 * as} takes another of several encodings, ours is stored if {@code objdump} says that it is the
 * same instruction.
 *
 * <pre>
 *   java -cp CLASSES io.fletch.ffm.x86.EncodingVectors ffm/src/test/resources/io/fletch/ffm/x86/encodings.txt
 * </pre>
 */
final class EncodingVectors {
  private static final int DRAWS = 6000;

  /** Instructions whose broadcasts are of 64 bits. */
  private static final Set<String> WIDE =
      Set.of(
          "vmaxpd",
          "vaddpd",
          "vmulpd",
          "vfmadd231pd",
          "vpaddq",
          "vpmultishiftqb",
          "vpunpcklqdq",
          "vpunpckhqdq",
          "vpermq");

  private EncodingVectors() {}

  /**
   * What of the encoder a call uses: prefix, mask, and for every operand its width or its half of
   * the registers, kind of address, size of displacement and broadcast.
   */
  static Set<String> forms(IntelText.Instruction instruction) {
    Set<String> forms = new TreeSet<>();
    String prefix =
        switch (instruction.encode()[0] & 255) {
          case 0x62 -> instruction.forced() ? "EVEX forced" : "EVEX";
          case 0xc5 -> "VEX of 2 bytes";
          case 0xc4 -> "VEX of 3 bytes";
          default -> "no vector prefix";
        };
    forms.add(prefix);
    if (instruction.mask() != null) {
      forms.add(instruction.zeroing() ? "zeroed" : "masked");
    }
    Object[] arguments = instruction.arguments();
    for (int i = 0; i < arguments.length; i++) {
      String at = "operand " + i + " ";
      switch (arguments[i]) {
        case Vec v -> {
          forms.add(at + prefix + ", bytes=" + v.bytes());
          forms.add(at + "vector " + (v.code() & -8) + "..");
        }
        case Gpr g -> forms.add(at + "register " + (g.code() & 8) + "..");
        case Mem m -> {
          forms.add(at + (m.broadcast() ? "broadcast" : "memory"));
          forms.add(at + "base " + (m.base().code() & 8) + "..");
          if (m.index() != null) {
            forms.add(at + "index " + (m.index().code() & 8) + "..");
          }
          forms.add(at + (prefix.startsWith("EVEX") ? "EVEX, " : "") + displacement(m));
        }
        default -> {}
      }
    }
    return forms;
  }

  private static String displacement(Mem m) {
    int d = m.displacement();
    boolean compressed = d % 64 == 0 && d / 64 == (byte) (d / 64);
    return "displacement "
        + (d == 0 ? "none" : compressed ? "of whole lines" : d == (byte) d ? "short" : "long");
  }

  /** Extends a file of vectors. */
  public static void main(String[] args) throws IOException, InterruptedException {
    Path file = Path.of(args[0]);
    List<String> lines = new ArrayList<>(Files.readAllLines(file));
    Map<Method, Set<String>> covered = new HashMap<>();
    for (String line : lines) {
      if (!line.startsWith("#")) {
        IntelText.Instruction i = IntelText.parse(line.substring(line.indexOf('\t') + 1));
        covered.computeIfAbsent(i.method(), m -> new TreeSet<>()).addAll(forms(i));
      }
    }
    Random random = new Random(1);
    List<IntelText.Instruction> added = new ArrayList<>();
    for (Method m : IntelText.methods()) {
      List<IntelText.Instruction> drawn = new ArrayList<>();
      Set<String> missing = new TreeSet<>();
      for (int i = 0; i < DRAWS; i++) {
        drawn.add(IntelText.random(m, random));
        missing.addAll(forms(drawn.getLast()));
      }
      missing.removeAll(covered.getOrDefault(m, Set.of()));
      while (!missing.isEmpty()) {
        // The one that covers most of what is missing.
        IntelText.Instruction best = drawn.getFirst();
        int most = 0;
        for (IntelText.Instruction i : drawn) {
          Set<String> gain = forms(i);
          gain.retainAll(missing);
          if (gain.size() > most) {
            most = gain.size();
            best = i;
          }
        }
        missing.removeAll(forms(best));
        added.add(best);
      }
    }
    List<String> bytes = assemble(added);
    for (int i = 0; i < added.size(); i++) {
      String text = added.get(i).text();
      String ours = HexFormat.of().formatHex(added.get(i).encode());
      if (!ours.equals(bytes.get(i))) {
        String means = IntelText.normalize(disassemble(added.get(i).encode()).getFirst());
        System.out.println("as=" + bytes.get(i) + " ours=" + ours + " " + text + ": " + means);
        if (!means.equals(text.replace(IntelText.EVEX, ""))) {
          throw new AssertionError("another instruction");
        }
      }
      lines.add(ours + "\t" + text);
    }
    Files.write(file, lines);
    System.out.println("added " + added.size() + " vectors");
  }

  /** The bytes that {@code as} gives for each. */
  private static List<String> assemble(List<IntelText.Instruction> instructions)
      throws IOException, InterruptedException {
    Path source = Files.createTempFile("vectors", ".s");
    Path listing = Files.createTempFile("vectors", ".lst");
    Path object = Files.createTempFile("vectors", ".o");
    StringBuilder text = new StringBuilder(".intel_syntax noprefix\n");
    instructions.forEach(i -> text.append(source(i)).append('\n'));
    Files.writeString(source, text);
    int status =
        new ProcessBuilder(
                "as",
                "--listing-lhs-width=8",
                "-aln=" + listing,
                "-o",
                object.toString(),
                source.toString())
            .inheritIO()
            .start()
            .waitFor();
    if (status != 0) {
      throw new IOException("as ended with " + status);
    }
    List<String> bytes = new ArrayList<>();
    for (String line : Files.readAllLines(listing)) {
      // Line number, offset, bytes in groups of four, tab, source.
      String[] columns = line.split("\t")[0].strip().split(" +");
      if (columns.length > 2 && columns[0].matches("\\d+") && columns[1].matches("[0-9a-f]{4,}")) {
        bytes.add(
            String.join("", List.of(columns).subList(2, columns.length)).toLowerCase(Locale.ROOT));
      }
    }
    for (Path p : List.of(source, listing, object)) {
      Files.delete(p);
    }
    if (bytes.size() != instructions.size()) {
      throw new IOException("bytes of " + bytes.size() + " of " + instructions.size());
    }
    return bytes;
  }

  /** Text as {@code as} wants it. */
  private static String source(IntelText.Instruction instruction) {
    String s = instruction.text();
    String name = instruction.method().getName();
    s = s.replaceAll("(\\[[^]]*])bcst", (WIDE.contains(name) ? "QWORD" : "DWORD") + " BCST $1");
    s = s.replaceAll("^movzx8 (\\w+),", "movzx $1,BYTE PTR ");
    s = s.replaceAll("^movzx16 (\\w+),", "movzx $1,WORD PTR ");
    s = s.replaceAll("^movsx (\\w+),", "movsx $1,BYTE PTR ");
    // Both forms of these have one name, of which as takes the longer one.
    return name.startsWith("vpdp") && !instruction.evex() ? "{vex} " + s : s;
  }

  /** What {@code objdump} says of code, line by line. */
  static List<String> disassemble(byte[] code) throws IOException, InterruptedException {
    Path file = Files.createTempFile("code", ".bin");
    try {
      Files.write(file, code);
      Process process =
          new ProcessBuilder(
                  "objdump",
                  "-D",
                  "-b",
                  "binary",
                  "-m",
                  "i386:x86-64",
                  "-M",
                  "intel",
                  "--no-show-raw-insn",
                  file.toString())
              .redirectErrorStream(true)
              .start();
      List<String> lines = new ArrayList<>();
      try (BufferedReader reader = process.inputReader(StandardCharsets.US_ASCII)) {
        for (String line; (line = reader.readLine()) != null; ) {
          int colon = line.indexOf(":\t");
          if (colon > 0 && line.substring(0, colon).strip().matches("[0-9a-f]+")) {
            lines.add(line.substring(colon + 2).strip());
          }
        }
      }
      if (process.waitFor() != 0) {
        throw new IOException("objdump ended with " + process.exitValue());
      }
      return lines;
    } finally {
      Files.delete(file);
    }
  }
}
