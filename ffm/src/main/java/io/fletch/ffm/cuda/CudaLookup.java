package io.fletch.ffm.cuda;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * Where the generated bindings find the driver's functions: the installed driver, opened at the first look-up and kept for the
 * life of the process, or what a test installed before that.
 *
 * <p>Each function of {@link CudaDriver} resolves its symbol once, at first use, and keeps the address. So {@link #install} must
 * run before the first driver call of the process, and functions must be probed with {@link #has} before a first call that could
 * miss: a missing one makes its holder class unusable for good.
 */
public final class CudaLookup {
  private static final List<String> DRIVERS = List.of("libcuda.so.1", "nvcuda.dll");

  private static volatile SymbolLookup installed;

  private CudaLookup() {}

  /** Opened on demand; keeps why it could not be. */
  private static final class Installed {
    static final SymbolLookup DRIVER;
    static final String FAILURE;

    static {
      SymbolLookup driver = name -> Optional.empty();
      String failure = "";
      for (String library : DRIVERS) {
        try {
          driver = SymbolLookup.libraryLookup(library, Arena.global());
          failure = "";
          break;
        } catch (IllegalArgumentException e) {
          failure = "no NVIDIA driver: cannot open " + String.join(" or ", DRIVERS);
        } catch (IllegalCallerException e) {
          failure = "native access is not granted: " + e.getMessage();
        }
      }
      DRIVER = driver;
      FAILURE = failure;
    }
  }

  /**
   * Puts a lookup in place of the installed driver, for tests. Every symbol must stay valid for the life of the process.
   *
   * @throws IllegalStateException if one was installed before
   */
  public static synchronized void install(SymbolLookup lookup) {
    Objects.requireNonNull(lookup, "lookup");
    if (installed != null) {
      throw new IllegalStateException("a driver lookup is installed already");
    }
    installed = lookup;
  }

  /** Whether the driver has the function. */
  public static boolean has(String function) {
    return find(function).isPresent();
  }

  /** Why no driver could be opened, or empty. */
  public static Optional<String> failure() {
    return installed != null || Installed.FAILURE.isEmpty()
        ? Optional.empty()
        : Optional.of(Installed.FAILURE);
  }

  /** The lookup that the generated classes use. */
  static SymbolLookup get() {
    return CudaLookup::find;
  }

  /** The address of a driver function. */
  public static Optional<MemorySegment> find(String function) {
    SymbolLookup test = installed;
    return (test != null ? test : Installed.DRIVER).find(function);
  }
}
