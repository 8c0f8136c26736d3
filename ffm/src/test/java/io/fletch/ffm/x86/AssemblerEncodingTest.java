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
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;

/**
 * Encodings against GNU binutils: stored vectors, made by {@code as}, byte for byte; and, where
 * objdump is installed, random calls of every instruction method, disassembled and compared with
 * what was meant.
 */
class AssemblerEncodingTest {
  @Test
  void storedVectors() throws Exception {
    Map<Method, Set<String>> covered = new HashMap<>();
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
        covered
            .computeIfAbsent(instruction.method(), m -> new HashSet<>())
            .addAll(EncodingVectors.forms(instruction));
        lines++;
      }
    }
    assertTrue(lines > 1500, "vectors: " + lines);
    // Every overload, in every form of its operands that chance finds.
    Random random = new Random(20261130);
    for (Method m : IntelText.methods()) {
      Set<String> missing = new TreeSet<>();
      for (int i = 0; i < 200; i++) {
        missing.addAll(EncodingVectors.forms(IntelText.random(m, random)));
      }
      missing.removeAll(covered.getOrDefault(m, Set.of()));
      assertEquals(Set.of(), missing, "no stored vector for " + m);
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
    List<String> lines = EncodingVectors.disassemble(code.toByteArray());
    for (int i = 0; i < meant.size(); i++) {
      // Where the prefix is chosen, objdump says so for some instructions only.
      String expected = meant.get(i).text().replace(IntelText.EVEX, "");
      String actual = i < lines.size() ? IntelText.normalize(lines.get(i)) : "(missing)";
      String bytes = HexFormat.of().formatHex(meant.get(i).encode());
      assertEquals(expected, actual, () -> "seed=" + seed + " bytes=" + bytes);
      assertTrue(!meant.get(i).forced() || bytes.startsWith("62"), bytes);
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
    List<String> lines = EncodingVectors.disassemble(Arrays.copyOf(code, a.size()));
    assertTrue(lines.stream().anyMatch(s -> s.matches("jne +0x0")), lines.toString());
    assertTrue(lines.stream().anyMatch(s -> s.matches("jmp +0x0")), lines.toString());
    // Behind an immediate, with a broadcast and without: where each constant is.
    List<Integer> values = new ArrayList<>();
    for (String line : lines) {
      int comment = line.indexOf("# 0x");
      if (comment > 0) {
        int at = Integer.parseInt(line.substring(comment + 4).strip(), 16);
        values.add(ByteBuffer.wrap(code).order(ByteOrder.LITTLE_ENDIAN).getInt(at));
      }
    }
    assertEquals(List.of(7, 9, 11), values, lines.toString());
    int ret = a.size() - 1;
    assertTrue(
        lines.stream().anyMatch(s -> s.matches("je +0x" + Integer.toHexString(ret))),
        lines.toString());
  }

  @Test
  void registersArePoppedInTheOppositeOrder() {
    Assembler all = new Assembler();
    all.pushAll(Gpr.RBX, Gpr.R12, Gpr.RBP);
    all.popAll(Gpr.RBX, Gpr.R12, Gpr.RBP);
    Assembler each = new Assembler();
    each.push(Gpr.RBX);
    each.push(Gpr.R12);
    each.push(Gpr.RBP);
    each.pop(Gpr.RBP);
    each.pop(Gpr.R12);
    each.pop(Gpr.RBX);
    assertArrayEquals(each.assemble(), all.assemble());
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
    for (Consumer<Assembler> refused :
        List.<Consumer<Assembler>>of(
            b -> b.vmovups(Mem.of(Gpr.RAX), Zmm.ZMM1),
            b -> b.vmovss(Mem.of(Gpr.RAX), Xmm.XMM1),
            b -> b.vpmovdb(Mem.of(Gpr.RAX), Zmm.ZMM1),
            b -> b.vcvtps2ph(Mem.of(Gpr.RAX), Zmm.ZMM1, 4),
            b -> b.vextracti32x4(Mem.of(Gpr.RAX), Zmm.ZMM1, 1),
            b -> b.vpcmpd(Opmask.K1, Zmm.ZMM0, Zmm.ZMM1, 1))) {
      Assembler zeroed = new Assembler();
      zeroed.zeroed(Opmask.K2);
      assertThrows(IllegalArgumentException.class, () -> refused.accept(zeroed));
      Assembler masked = new Assembler();
      masked.masked(Opmask.K2);
      refused.accept(masked);
    }
    for (Consumer<Assembler> refused :
        List.<Consumer<Assembler>>of(
            b -> b.vmovd(Xmm.XMM0, Gpr.RAX),
            b -> b.vmovq(Xmm.XMM0, Mem.of(Gpr.RAX)),
            b -> b.vmovlhps(Xmm.XMM0, Xmm.XMM1, Xmm.XMM2),
            b -> b.vmovntps(Mem.of(Gpr.RAX), Zmm.ZMM1),
            b -> b.vpsadbw(Zmm.ZMM0, Zmm.ZMM1, Zmm.ZMM2),
            b -> b.vpsrldq(Zmm.ZMM0, Zmm.ZMM1, 3),
            b -> b.vpinsrd(Xmm.XMM0, Xmm.XMM1, Gpr.RAX, 1),
            b -> b.vpextrb(Mem.of(Gpr.RAX), Xmm.XMM1, 1))) {
      Assembler masked = new Assembler();
      masked.masked(Opmask.K2);
      assertThrows(IllegalArgumentException.class, () -> refused.accept(masked));
    }
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
}
