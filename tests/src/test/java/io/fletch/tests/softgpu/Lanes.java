package io.fletch.tests.softgpu;

import java.io.IOException;
import java.io.InputStream;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Loops of one operation over the lanes of a warp.
 *
 * <p>All operations come through the same few loops. The JIT compiles a loop with what it has seen
 * there, and would call an operation for each lane if it has seen many. So each operation, that is
 * each class of a lambda, gets a loop of its own: a hidden class with the bytes of the common one.
 */
final class Lanes {
  /** Constructors of the loops, by the class of their operation. */
  private static final Map<Class<?>, MethodHandle> LOOPS = new ConcurrentHashMap<>();

  private Lanes() {}

  /** An operation on one register of a lane. */
  interface One {
    long f(long a);
  }

  /** An operation on two registers of a lane. */
  interface Two {
    long f(long a, long b);
  }

  /** An operation on three registers of a lane. */
  interface Three {
    long f(long a, long b, long c);
  }

  /** A question about two registers of a lane. */
  interface Test {
    boolean f(long a, long b);
  }

  /** The lanes of a mask for which a test is true. */
  interface Tests {
    int of(Warp w, int mask);
  }

  static Instruction.Body map(int d, int a, One f) {
    return (Instruction.Body) loop(Loop1.class, f, d, a, a, a);
  }

  static Instruction.Body map(int d, int a, int b, Two f) {
    return (Instruction.Body) loop(Loop2.class, f, d, a, b, b);
  }

  static Instruction.Body map(int d, int a, int b, int c, Three f) {
    return (Instruction.Body) loop(Loop3.class, f, d, a, b, c);
  }

  static Tests test(int a, int b, Test f) {
    return (Tests) loop(TestLoop.class, f, 0, a, b, b);
  }

  private static Object loop(Class<?> common, Object f, int d, int a, int b, int c) {
    MethodHandle make = LOOPS.computeIfAbsent(f.getClass(), _ -> copy(common));
    try {
      return (Object) make.invokeExact(d, a, b, c, f);
    } catch (Throwable e) {
      throw new IllegalStateException(e);
    }
  }

  private static MethodHandle copy(Class<?> common) {
    String file = common.getName().substring(common.getPackageName().length() + 1) + ".class";
    try (InputStream in = Lanes.class.getResourceAsStream(file)) {
      MethodHandles.Lookup own =
          MethodHandles.lookup()
              .defineHiddenClass(
                  in.readAllBytes(), true, MethodHandles.Lookup.ClassOption.NESTMATE);
      MethodType constructor =
          MethodType.methodType(
              void.class, int.class, int.class, int.class, int.class, Object.class);
      return own.findConstructor(own.lookupClass(), constructor)
          .asType(constructor.changeReturnType(Object.class));
    } catch (IOException | ReflectiveOperationException e) {
      throw new IllegalStateException(e);
    }
  }

  /** What the loops have in common: first registers of the target and of the operands. */
  private abstract static class Loop {
    final int d;
    final int a;
    final int b;
    final int c;

    Loop(int d, int a, int b, int c) {
      this.d = d;
      this.a = a;
      this.b = b;
      this.c = c;
    }
  }

  private static final class Loop1 extends Loop implements Instruction.Body {
    private final One f;

    Loop1(int d, int a, int b, int c, Object f) {
      super(d, a, b, c);
      this.f = (One) f;
    }

    @Override
    public void run(Warp w, int mask) {
      long[] r = w.r;
      int d = this.d;
      int a = this.a;
      One op = f;
      if (mask == -1) {
        for (int l = 0; l < 32; l++) {
          r[d + l] = op.f(r[a + l]);
        }
        return;
      }
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        r[d + l] = op.f(r[a + l]);
      }
    }
  }

  private static final class Loop2 extends Loop implements Instruction.Body {
    private final Two f;

    Loop2(int d, int a, int b, int c, Object f) {
      super(d, a, b, c);
      this.f = (Two) f;
    }

    @Override
    public void run(Warp w, int mask) {
      long[] r = w.r;
      int d = this.d;
      int a = this.a;
      int b = this.b;
      Two op = f;
      if (mask == -1) {
        for (int l = 0; l < 32; l++) {
          r[d + l] = op.f(r[a + l], r[b + l]);
        }
        return;
      }
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        r[d + l] = op.f(r[a + l], r[b + l]);
      }
    }
  }

  private static final class Loop3 extends Loop implements Instruction.Body {
    private final Three f;

    Loop3(int d, int a, int b, int c, Object f) {
      super(d, a, b, c);
      this.f = (Three) f;
    }

    @Override
    public void run(Warp w, int mask) {
      long[] r = w.r;
      int d = this.d;
      int a = this.a;
      int b = this.b;
      int c = this.c;
      Three op = f;
      if (mask == -1) {
        for (int l = 0; l < 32; l++) {
          r[d + l] = op.f(r[a + l], r[b + l], r[c + l]);
        }
        return;
      }
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        r[d + l] = op.f(r[a + l], r[b + l], r[c + l]);
      }
    }
  }

  private static final class TestLoop extends Loop implements Tests {
    private final Test f;

    TestLoop(int d, int a, int b, int c, Object f) {
      super(d, a, b, c);
      this.f = (Test) f;
    }

    @Override
    public int of(Warp w, int mask) {
      long[] r = w.r;
      int a = this.a;
      int b = this.b;
      Test op = f;
      int yes = 0;
      for (int m = mask; m != 0; m &= m - 1) {
        int l = Integer.numberOfTrailingZeros(m);
        yes |= op.f(r[a + l], r[b + l]) ? 1 << l : 0;
      }
      return yes;
    }
  }
}
