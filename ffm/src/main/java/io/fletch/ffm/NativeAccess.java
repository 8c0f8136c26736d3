package io.fletch.ffm;

import java.lang.foreign.ValueLayout;

/**
 * Whether this module may make restricted foreign calls, found out without making one, so that the
 * JVM prints no warning. Usable from any thread.
 *
 * <p>Without the grant nothing of this module that needs it runs and callers fall back; who opens a
 * model says so with {@link #missing()}.
 */
public final class NativeAccess {
  private NativeAccess() {}

  /** Whether restricted calls are granted. */
  public static boolean granted() {
    return NativeAccess.class.getModule().isNativeAccessEnabled();
  }

  /** Whether the calls of {@link Libc} can be made: access is granted and this is 64-bit Linux. */
  static boolean libc() {
    return granted()
        && System.getProperty("os.name").startsWith("Linux")
        && ValueLayout.ADDRESS.byteSize() == 8;
  }

  /** The flag that grants access, as it must be spelled in this process. */
  public static String flag() {
    Module module = NativeAccess.class.getModule();
    return "--enable-native-access=" + (module.isNamed() ? module.getName() : "ALL-UNNAMED");
  }

  /** The line that says what is missing and how to get it. */
  public static String missing() {
    return "native access is not granted: machine code, CUDA and huge pages are off and slower"
        + " paths are used; start java with "
        + flag();
  }

  /**
   * Guards a restricted call.
   *
   * @throws NativeException naming the flag if access is not granted
   */
  static void check(String what) {
    if (!granted()) {
      throw new NativeException(what + " needs native access; start java with " + flag());
    }
  }
}
