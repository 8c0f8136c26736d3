package io.fletch.ffm.x86;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.Set;

/**
 * Intel-syntax text of assembler calls as GNU objdump prints it (without operand sizes), both ways:
 * random calls with their text, and text back to a call. Works by reflection, so that every public
 * instruction method is covered.
 */
final class IntelText {
  /** Before the text of an instruction that is encoded with EVEX where VEX would do. */
  static final String EVEX = "{evex} ";

  /**
   * A call: what to invoke and the decorators before it.
   *
   * @param forced whether EVEX is chosen where VEX would do
   */
  record Instruction(
      Method method, Object[] arguments, Opmask mask, boolean zeroing, boolean forced) {
    byte[] encode() {
      Assembler a = new Assembler();
      if (forced) {
        a.evex();
      }
      if (mask != null) {
        if (zeroing) {
          a.zeroed(mask);
        } else {
          a.masked(mask);
        }
      }
      try {
        method.invoke(a, arguments);
      } catch (InvocationTargetException e) {
        if (e.getCause() instanceof RuntimeException r) {
          throw r;
        }
        throw new AssertionError(e);
      } catch (IllegalAccessException e) {
        throw new AssertionError(e);
      }
      return a.assemble();
    }

    /** Whether it was encoded with the EVEX prefix. */
    boolean evex() {
      return (encode()[0] & 0xff) == 0x62;
    }

    String text() {
      String name = method.getName();
      int gprBits = 64;
      if (name.endsWith("32") && !name.startsWith("v")) {
        name = name.substring(0, name.length() - 2);
        gprBits = 32;
      } else if (name.equals("mov8") || name.equals("mov16")) {
        gprBits = name.equals("mov8") ? 8 : 16;
        name = "mov";
      } else if (name.equals("movzx8") || name.equals("movzx16")) {
        gprBits = 32;
      } else if (name.equals("movsx8")) {
        name = "movsx";
      } else if (DWORD_GPR.contains(name)) {
        gprBits = 32;
      } else if (name.equals("cmov")) {
        name = "cmov" + arguments[0].toString().toLowerCase(Locale.ROOT);
      } else if (evex()) {
        name = EVEX_NAMES.getOrDefault(name, name);
      }
      if (arguments.length == 2 && arguments[1] instanceof Long l && l >>> 32 == 0) {
        // The shortest form writes the lower half, which zeroes the upper one.
        gprBits = 32;
      }
      List<String> operands = new ArrayList<>();
      for (Object o : arguments) {
        if (o instanceof Condition) {
          continue;
        }
        String s =
            switch (o) {
              case Gpr g -> gprName(g, gprBits);
              case Mem m -> memText(m);
              case Integer i -> immediate(name, i, gprBits);
              case Long l -> "0x" + Long.toHexString(l);
              default -> o.toString().toLowerCase(Locale.ROOT);
            };
        if (operands.isEmpty() && mask != null) {
          s += "{" + mask.toString().toLowerCase(Locale.ROOT) + "}" + (zeroing ? "{z}" : "");
        }
        operands.add(s);
      }
      return (forced ? EVEX : "")
          + (operands.isEmpty() ? name : name + " " + String.join(",", operands));
    }
  }

  static final Map<String, String> EVEX_NAMES =
      Map.of(
          "vpand",
          "vpandd",
          "vpandn",
          "vpandnd",
          "vpor",
          "vpord",
          "vpxor",
          "vpxord",
          "vmovdqu",
          "vmovdqu32",
          "vmovdqa",
          "vmovdqa32");

  /** Instructions that name 32-bit general registers. */
  private static final Set<String> DWORD_GPR =
      Set.of(
          "vmovd",
          "vmovmskps",
          "vpmovmskb",
          "vpinsrb",
          "vpinsrd",
          "vpextrb",
          "vpextrd",
          "vpbroadcastd",
          "kmovw",
          "kmovd");

  private static final Set<String> NOT_INSTRUCTIONS =
      Set.of("jmp", "jcc", "jccShort", "jmpShort", "pushAll", "popAll");

  private static final List<Method> METHODS = find();

  private IntelText() {}

  /** All public instruction methods, in a stable order. */
  static List<Method> methods() {
    return METHODS;
  }

  private static List<Method> find() {
    List<Method> methods = new ArrayList<>();
    for (Method m : Assembler.class.getDeclaredMethods()) {
      if (Modifier.isPublic(m.getModifiers())
          && !m.isSynthetic()
          && !NOT_INSTRUCTIONS.contains(m.getName())) {
        methods.add(m);
      }
    }
    methods.sort((a, b) -> (a.getName() + a.toString()).compareTo(b.getName() + b.toString()));
    return methods;
  }

  /** A random valid call of a method; operands that the assembler refuses are drawn again. */
  static Instruction random(Method method, Random random) {
    for (int attempt = 0; attempt < 2000; attempt++) {
      int bytes = 16 << random.nextInt(3);
      Class<?>[] types = method.getParameterTypes();
      Object[] arguments = new Object[types.length];
      int vectors = 0;
      for (int i = 0; i < types.length; i++) {
        arguments[i] = argument(method.getName(), types[i], bytes, random);
        if (Vec.class.isAssignableFrom(types[i])) {
          vectors++;
        }
      }
      // What has no mask, zeroing or EVEX form refuses, and is drawn again.
      boolean masked = vectors > 0 && random.nextInt(4) == 0;
      Opmask mask = masked ? Opmask.values()[1 + random.nextInt(7)] : null;
      boolean zeroing = masked && random.nextBoolean();
      Instruction candidate = new Instruction(method, arguments, mask, zeroing, false);
      if (vectors > 0 && random.nextInt(8) == 0 && encodes(candidate) && !candidate.evex()) {
        candidate = new Instruction(method, arguments, mask, zeroing, true);
      }
      if (encodes(candidate)) {
        return candidate;
      }
    }
    throw new AssertionError("no valid operands found for " + method);
  }

  /** Whether the assembler takes it: not every combination of operands exists. */
  private static boolean encodes(Instruction candidate) {
    try {
      candidate.encode();
      return true;
    } catch (IllegalArgumentException | IllegalStateException refused) {
      return false;
    }
  }

  private static Object argument(String name, Class<?> type, int bytes, Random random) {
    if (type == Vec.class) {
      return Vec.of(bytes, random.nextInt(random.nextBoolean() ? 16 : 32));
    }
    if (type == Xmm.class) {
      return Xmm.of(random.nextInt(random.nextBoolean() ? 16 : 32));
    }
    if (type == Ymm.class) {
      return Ymm.of(random.nextInt(random.nextBoolean() ? 16 : 32));
    }
    if (type == Zmm.class) {
      return Zmm.of(random.nextInt(32));
    }
    if (type == Operand.class) {
      if (random.nextBoolean()) {
        Mem m = mem(random);
        return random.nextInt(4) == 0 ? m.each() : m;
      }
      return Vec.of(16 << random.nextInt(3), random.nextInt(random.nextBoolean() ? 16 : 32));
    }
    if (type == Mem.class) {
      return mem(random);
    }
    if (type == Gpr.class) {
      return Gpr.values()[random.nextInt(16)];
    }
    if (type == Opmask.class) {
      return Opmask.values()[random.nextInt(8)];
    }
    if (type == Tmm.class) {
      return Tmm.values()[random.nextInt(8)];
    }
    if (type == Condition.class) {
      return Condition.values()[random.nextInt(16)];
    }
    if (type == long.class) {
      return random.nextLong() >> random.nextInt(64);
    }
    if (type == int.class) {
      if (name.startsWith("sh") || name.startsWith("sar")) {
        return random.nextInt(64);
      }
      if (name.startsWith("v")) {
        // Below 64 objdump prints comparisons as pseudo-instructions.
        return 64 + random.nextInt(64);
      }
      return random.nextInt() >> random.nextInt(31);
    }
    throw new AssertionError("no generator for " + type);
  }

  private static Mem mem(Random random) {
    Gpr base = Gpr.values()[random.nextInt(16)];
    Gpr index = Gpr.values()[random.nextInt(16)];
    int displacement =
        switch (random.nextInt(4)) {
          case 0 -> 0;
          case 1 -> (byte) random.nextInt();
          case 2 -> 64 * (byte) random.nextInt();
          default -> random.nextInt() >> random.nextInt(30);
        };
    return random.nextBoolean() || index == Gpr.RSP
        ? Mem.of(base, displacement)
        : Mem.of(base, index, 1 << random.nextInt(4), displacement);
  }

  private static String memText(Mem m) {
    StringBuilder s = new StringBuilder("[").append(gprName(m.base(), 64));
    if (m.index() != null) {
      s.append('+').append(gprName(m.index(), 64)).append('*').append(m.scale());
    }
    if (m.displacement() != 0) {
      long d = m.displacement();
      s.append(d < 0 ? "-0x" : "+0x").append(Long.toHexString(Math.abs(d)));
    }
    return s.append(m.broadcast() ? "]bcst" : "]").toString();
  }

  private static String immediate(String name, int value, int bits) {
    if (name.startsWith("v")) {
      return "0x" + Integer.toHexString(value & 0xff);
    }
    return "0x" + (bits == 32 ? Integer.toHexString(value) : Long.toHexString((long) value));
  }

  static String gprName(Gpr g, int bits) {
    String name = g.toString().toLowerCase(Locale.ROOT);
    boolean numbered = g.code() >= 8;
    return switch (bits) {
      case 64 -> name;
      case 32 -> numbered ? name + "d" : "e" + name.substring(1);
      case 16 -> numbered ? name + "w" : name.substring(1);
      default ->
          numbered
              ? name + "b"
              : g.code() < 4 ? name.substring(1, 2) + "l" : name.substring(1) + "l";
    };
  }

  /** Brings a line of objdump into the form that {@link Instruction#text()} gives. */
  static String normalize(String line) {
    String s =
        line.replaceAll("\\s+#.*", "")
            .replace("{vex} ", "")
            .replace(EVEX, "")
            .strip()
            .replaceAll("\\s+", " ");
    s = s.replaceAll("[A-Z]+ BCST (\\[[^]]*])", "$1bcst");
    s = s.replaceAll("(\\[[^]]*])\\{1to\\d+}", "$1bcst");
    s =
        s.replaceAll("^movzx (.*)BYTE PTR ", "movzx8 $1")
            .replaceAll("^movzx (.*)WORD PTR ", "movzx16 $1");
    s = s.replaceAll("[A-Z]+ PTR ", "");
    s = s.replaceAll("^(sh[lr]|sar) (\\w+),1$", "$1 $2,0x1");
    s = s.replace("+0x0]", "]").replace("[rsp+riz*1", "[rsp").replace("movabs ", "mov ");
    return s.replace(", ", ",");
  }

  /** Finds the call that gives a normalized text; the inverse of {@link Instruction#text()}. */
  static Instruction parse(String line) {
    boolean forced = line.startsWith(EVEX);
    String text = forced ? line.substring(EVEX.length()) : line;
    int space = text.indexOf(' ');
    String mnemonic = space < 0 ? text : text.substring(0, space);
    List<String> operands =
        space < 0 ? List.of() : Arrays.asList(text.substring(space + 1).split(","));
    for (Method m : METHODS) {
      if (m.getName().charAt(0) != mnemonic.charAt(0)) {
        continue;
      }
      Instruction found = match(m, mnemonic, operands);
      if (found != null) {
        try {
          Instruction whole =
              new Instruction(m, found.arguments(), found.mask(), found.zeroing(), forced);
          if (whole.text().equals(line)) {
            return whole;
          }
        } catch (IllegalArgumentException | IllegalStateException refused) {
          // Another overload takes it.
        }
      }
    }
    throw new AssertionError("no instruction method for: " + line);
  }

  private static Instruction match(Method m, String mnemonic, List<String> operands) {
    String name = m.getName();
    boolean similar =
        name.equals(mnemonic)
            || (!name.startsWith("v") && mnemonic.startsWith(name.replaceAll("\\d+$", "")))
            || EVEX_NAMES.getOrDefault(name, "").equals(mnemonic);
    Class<?>[] types = m.getParameterTypes();
    boolean condition = types.length > 0 && types[0] == Condition.class;
    if (!similar || types.length - (condition ? 1 : 0) != operands.size()) {
      return null;
    }
    Opmask mask = null;
    boolean zeroing = false;
    Object[] arguments = new Object[types.length];
    for (int i = 0; i < operands.size(); i++) {
      String s = operands.get(i);
      if (i == 0 && s.contains("{k")) {
        int at = s.indexOf("{k");
        mask = Opmask.valueOf("K" + s.charAt(at + 2));
        zeroing = s.endsWith("{z}");
        s = s.substring(0, at);
      }
      int slot = i + (condition ? 1 : 0);
      arguments[slot] = operand(s, types[slot]);
      if (arguments[slot] == null) {
        return null;
      }
    }
    if (condition) {
      String code = mnemonic.substring(name.length()).toUpperCase(Locale.ROOT);
      for (Condition c : Condition.values()) {
        if (c.name().equals(code)) {
          arguments[0] = c;
        }
      }
      if (arguments[0] == null) {
        return null;
      }
    }
    return new Instruction(m, arguments, mask, zeroing, false);
  }

  private static Object operand(String s, Class<?> type) {
    Object value;
    if (s.startsWith("[")) {
      value = parseMem(s);
    } else if (s.startsWith("0x")) {
      long number = Long.parseUnsignedLong(s.substring(2), 16);
      return type == int.class ? (Object) (int) number : type == long.class ? number : null;
    } else if (s.matches("[xyz]mm\\d+")) {
      int bytes = s.charAt(0) == 'x' ? 16 : s.charAt(0) == 'y' ? 32 : 64;
      value = Vec.of(bytes, Integer.parseInt(s.substring(3)));
    } else if (s.matches("k[0-7]")) {
      value = Opmask.valueOf(s.toUpperCase(Locale.ROOT));
    } else if (s.startsWith("tmm")) {
      value = Tmm.valueOf(s.toUpperCase(Locale.ROOT));
    } else {
      value = parseGpr(s);
    }
    return type.isInstance(value) ? value : null;
  }

  private static Gpr parseGpr(String s) {
    for (int bits : new int[] {64, 32, 16, 8}) {
      for (Gpr g : Gpr.values()) {
        if (gprName(g, bits).equals(s)) {
          return g;
        }
      }
    }
    return null;
  }

  private static Mem parseMem(String s) {
    boolean broadcast = s.endsWith("bcst");
    String inner = s.substring(1, s.indexOf(']'));
    int displacement = 0;
    Gpr base = null;
    Gpr index = null;
    int scale = 1;
    for (String part : inner.replace("-", "+-").split("\\+")) {
      if (part.startsWith("0x")) {
        displacement = (int) Long.parseLong(part.substring(2), 16);
      } else if (part.startsWith("-0x")) {
        displacement = (int) -Long.parseLong(part.substring(3), 16);
      } else if (part.contains("*")) {
        index = parseGpr(part.substring(0, part.indexOf('*')));
        scale = part.charAt(part.indexOf('*') + 1) - '0';
      } else {
        base = parseGpr(part);
      }
    }
    Mem m = index == null ? Mem.of(base, displacement) : Mem.of(base, index, scale, displacement);
    return broadcast ? m.each() : m;
  }
}
