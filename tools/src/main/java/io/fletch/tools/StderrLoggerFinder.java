package io.fletch.tools;

import java.text.MessageFormat;
import java.util.ResourceBundle;

/**
 * The program's {@link System.Logger}: one line on standard error. Warnings always; what Fletch
 * says about itself (which kernels, and why) with {@code --verbose}. The logging module of the JDK
 * would cost start-up time and write two lines per message.
 */
public final class StderrLoggerFinder extends System.LoggerFinder {
  private static volatile boolean verbose;

  /** For the service loader. */
  public StderrLoggerFinder() {}

  /** Shows informational messages of Fletch from now on, or no more. */
  static void verbose(boolean value) {
    verbose = value;
  }

  @Override
  public System.Logger getLogger(String name, Module module) {
    return new Logger(name);
  }

  private record Logger(String name) implements System.Logger {
    @Override
    public String getName() {
      return name;
    }

    @Override
    public boolean isLoggable(Level level) {
      int least =
          verbose && name.startsWith("io.fletch")
              ? Level.INFO.getSeverity()
              : Level.WARNING.getSeverity();
      return level != Level.OFF && level.getSeverity() >= least;
    }

    @Override
    public void log(Level level, ResourceBundle bundle, String message, Throwable thrown) {
      if (isLoggable(level)) {
        write(localized(bundle, message) + (thrown == null ? "" : ": " + thrown));
      }
    }

    @Override
    public void log(Level level, ResourceBundle bundle, String format, Object... parameters) {
      if (isLoggable(level)) {
        String message = localized(bundle, format);
        write(
            parameters == null || parameters.length == 0
                ? message
                : MessageFormat.format(message, parameters));
      }
    }

    private static String localized(ResourceBundle bundle, String key) {
      return bundle != null && key != null && bundle.containsKey(key)
          ? bundle.getString(key)
          : String.valueOf(key);
    }

    private static void write(String message) {
      System.err.println("fletch: " + message);
    }
  }
}
