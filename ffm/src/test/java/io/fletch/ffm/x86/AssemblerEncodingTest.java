package io.fletch.ffm.x86;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Encodings against GNU binutils: stored vectors, made by {@code as}, byte for byte; and, where
 * objdump is installed, random calls of every instruction method, disassembled and compared with
 * what was meant.
 */
class AssemblerEncodingTest {
  @TempDir Path directory;

  @Test
  void storedVectors() throws Exception {
    Set<String> covered = new HashSet<>();
    int lines = 0;
    try (BufferedReader reader =
        new BufferedReader(
            new InputStreamReader(
                AssemblerEncodingTest.class.getResourceAsStream("encodings.txt"),
                StandardCharsets.US_ASCII))) {
      for (String line; (line = reader.readLine()) != null; ) {
        if (line.startsWith("#")) {
          continue;
        }
        int tab = line.indexOf('\t');
        IntelText.Instruction instruction = IntelText.parse(line.substring(tab + 1));
        String actual = HexFormat.of().formatHex(instruction.encode());
        assertEquals(line.substring(0, tab), actual, line);
        covered.add(instruction.method().getName());
        lines++;
      }
    }
    assertTrue(lines > 1500, "vectors: " + lines);
    for (Method m : IntelText.methods()) {
      assertTrue(covered.contains(m.getName()), "no stored vector for " + m.getName());
    }
  }

  @Test
  void disassemblesToWhatWasMeant() throws Exception {
    assumeTrue(hasObjdump(), "objdump is not installed");
    long seed = new Random().nextLong();
    Random random = new Random(seed);
    List<IntelText.Instruction> meant = new ArrayList<>();
    ByteArrayOutputStream code = new ByteArrayOutputStream();
    for (Method m : IntelText.methods()) {
      int draws = m.getParameterCount() == 0 ? 1 : 12;
      for (int i = 0; i < draws; i++) {
        IntelText.Instruction instruction = IntelText.random(m, random);
        meant.add(instruction);
        code.writeBytes(instruction.encode());
      }
    }
    List<String> lines = disassemble(code.toByteArray());
    for (int i = 0; i < meant.size(); i++) {
      String expected = meant.get(i).text();
      String actual = i < lines.size() ? IntelText.normalize(lines.get(i)) : "(missing)";
      String bytes = HexFormat.of().formatHex(meant.get(i).encode());
      assertEquals(expected, actual, () -> "seed=" + seed + " bytes=" + bytes);
    }
    assertEquals(meant.size(), lines.size());
  }

  @Test
  void jumpsAndConstants() throws Exception {
    Assembler a = new Assembler();
    Label top = a.here();
    Label out = a.label();
    a.vmovups(Ymm.YMM0, a.repeated(7, 32));
    a.vpcmpub(Opmask.K1, Zmm.ZMM0, a.repeated(9, 64), 2);
    a.vpaddd(Zmm.ZMM1, Zmm.ZMM1, a.ints(11).each());
    a.jcc(Condition.E, out);
    a.align(16);
    assertEquals(0, a.size() % 16);
    a.jcc(Condition.NE, top);
    a.jmp(top);
    a.bind(out);
    a.ret();
    byte[] code = a.assemble();
    assertArrayEquals(code, a.assemble(), "assembling twice");
    assertEquals(
        7, HexFormat.fromHexDigits(hexAt(code, ((a.size() + 31) & -32), 4)) >>> 24, "constant");
    assumeTrue(hasObjdump(), "objdump is not installed");
    List<String> lines = disassemble(Arrays.copyOf(code, a.size()));
    assertTrue(lines.stream().anyMatch(s -> s.matches("jne +0x0")), lines.toString());
    assertTrue(lines.stream().anyMatch(s -> s.matches("jmp +0x0")), lines.toString());
    int ret = a.size() - 1;
    assertTrue(
        lines.stream().anyMatch(s -> s.matches("je +0x" + Integer.toHexString(ret))),
        lines.toString());
  }

  @Test
  void refusesWhatCannotBeEncoded() {
    Assembler a = new Assembler();
    assertThrows(IllegalArgumentException.class, () -> a.vpaddd(Ymm.YMM0, Xmm.XMM1, Ymm.YMM2));
    assertThrows(IllegalArgumentException.class, () -> a.vpsignb(Zmm.ZMM0, Zmm.ZMM1, Zmm.ZMM2));
    assertThrows(IllegalArgumentException.class, () -> a.vpsignb(Ymm.YMM16, Ymm.YMM1, Ymm.YMM2));
    assertThrows(IllegalArgumentException.class, () -> Mem.of(Gpr.RAX, Gpr.RSP, 1, 0));
    assertThrows(IllegalArgumentException.class, () -> Mem.of(Gpr.RAX, Gpr.RCX, 3, 0));
    assertThrows(
        IllegalArgumentException.class,
        () -> new Assembler().vpaddb(Zmm.ZMM0, Zmm.ZMM1, Mem.of(Gpr.RAX).each()));
    assertThrows(IllegalArgumentException.class, () -> a.masked(Opmask.K0));
    Assembler unbound = new Assembler();
    unbound.jmp(unbound.label());
    assertThrows(IllegalStateException.class, unbound::assemble);
    Assembler dangling = new Assembler();
    dangling.masked(Opmask.K1);
    assertThrows(IllegalStateException.class, dangling::ret);
    Label twice = a.here();
    assertThrows(IllegalStateException.class, () -> a.bind(twice));
  }

  private static String hexAt(byte[] code, int at, int n) {
    return HexFormat.of().formatHex(code, at, at + n);
  }

  private static boolean hasObjdump() {
    try {
      return new ProcessBuilder("objdump", "--version")
              .redirectOutput(ProcessBuilder.Redirect.DISCARD)
              .start()
              .waitFor()
          == 0;
    } catch (IOException | InterruptedException e) {
      return false;
    }
  }

  private List<String> disassemble(byte[] code) throws Exception {
    Path file = directory.resolve("code.bin");
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
    try (BufferedReader reader =
        new BufferedReader(
            new InputStreamReader(process.getInputStream(), StandardCharsets.US_ASCII))) {
      for (String line; (line = reader.readLine()) != null; ) {
        int colon = line.indexOf(":\t");
        if (colon > 0 && line.substring(0, colon).strip().matches("[0-9a-f]+")) {
          lines.add(line.substring(colon + 2).strip());
        }
      }
    }
    assertEquals(0, process.waitFor());
    return lines;
  }
}
