package io.fletch.sampling;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.reflect.Method;

/**
 * Bytes that the current thread has allocated. By reflection, since this module does not read the
 * management modules; a run without them is skipped with that reason.
 */
final class AllocationCounter {
  private final Object bean;
  private final Method bytes;

  AllocationCounter() {
    Object found = null;
    Method method = null;
    try {
      Class<?> factory = Class.forName("java.lang.management.ManagementFactory");
      found = factory.getMethod("getThreadMXBean").invoke(null);
      method =
          Class.forName("com.sun.management.ThreadMXBean")
              .getMethod("getCurrentThreadAllocatedBytes");
    } catch (ReflectiveOperationException e) {
      System.out.println("skipped: no per-thread allocation counter in this JVM: " + e);
    }
    assumeTrue(method != null, "no per-thread allocation counter in this JVM");
    bean = found;
    bytes = method;
  }

  long bytes() {
    try {
      return (Long) bytes.invoke(bean);
    } catch (ReflectiveOperationException e) {
      throw new AssertionError(e);
    }
  }
}
