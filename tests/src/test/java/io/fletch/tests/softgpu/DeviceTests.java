package io.fletch.tests.softgpu;

import static org.junit.platform.engine.discovery.DiscoverySelectors.selectClass;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.launcher.Launcher;
import org.junit.platform.launcher.TestExecutionListener;
import org.junit.platform.launcher.TestIdentifier;
import org.junit.platform.launcher.core.LauncherDiscoveryRequestBuilder;
import org.junit.platform.launcher.core.LauncherFactory;

/**
 * Runs test classes of this package without a build: {@code DeviceTests CLASS...}. Each test is a
 * line on standard error as soon as it ends; a line of JSON with the sums and the failures is
 * printed at the end. Status 1 if a test failed or none ran.
 */
public final class DeviceTests {
  private DeviceTests() {}

  private static final class Listener implements TestExecutionListener {
    final List<String> failures = new ArrayList<>();
    int passed;
    int skipped;
    private long started;

    @Override
    public void executionStarted(TestIdentifier test) {
      started = System.nanoTime();
    }

    @Override
    public void executionSkipped(TestIdentifier test, String reason) {
      skipped++;
      System.err.println("skipped  " + name(test) + ": " + reason);
    }

    @Override
    public void executionFinished(TestIdentifier test, TestExecutionResult result) {
      String message = result.getThrowable().map(Throwable::toString).orElse("");
      if (result.getStatus() == TestExecutionResult.Status.FAILED) {
        failures.add(name(test) + ": " + message);
        result.getThrowable().ifPresent(Throwable::printStackTrace);
      } else if (!test.isTest()) {
        return;
      } else if (result.getStatus() == TestExecutionResult.Status.ABORTED) {
        skipped++;
      } else {
        passed++;
      }
      System.err.printf(
          Locale.ROOT,
          "%-10s %7.2f s %s %s%n",
          result.getStatus().name().toLowerCase(Locale.ROOT),
          (System.nanoTime() - started) / 1e9,
          name(test),
          message);
    }

    /** The class or factory and the test, without the engine. */
    private static String name(TestIdentifier test) {
      return test.getUniqueId().replaceFirst("^\\[[^/]*/", "");
    }
  }

  /** Runs the named classes, of this package unless they have a package of their own. */
  public static void main(String[] args) throws ClassNotFoundException {
    LauncherDiscoveryRequestBuilder request = LauncherDiscoveryRequestBuilder.request();
    for (String name : args) {
      String full = name.indexOf('.') < 0 ? DeviceTests.class.getPackageName() + "." + name : name;
      request.selectors(selectClass(Class.forName(full)));
    }
    Listener listener = new Listener();
    Launcher launcher = LauncherFactory.create();
    launcher.execute(request.build(), listener);
    StringBuilder json = new StringBuilder();
    json.append("{\"passed\":").append(listener.passed);
    json.append(",\"skipped\":").append(listener.skipped);
    json.append(",\"failed\":").append(listener.failures.size()).append(",\"failures\":[");
    for (int i = 0; i < listener.failures.size(); i++) {
      json.append(i == 0 ? "" : ",");
      quote(listener.failures.get(i), json);
    }
    System.out.println(json.append("]}"));
    System.exit(listener.failures.isEmpty() && listener.passed > 0 ? 0 : 1);
  }

  private static void quote(String text, StringBuilder to) {
    to.append('"');
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') {
        to.append('\\').append(c);
      } else if (c < ' ') {
        to.append(String.format(Locale.ROOT, "\\u%04x", (int) c));
      } else {
        to.append(c);
      }
    }
    to.append('"');
  }
}
