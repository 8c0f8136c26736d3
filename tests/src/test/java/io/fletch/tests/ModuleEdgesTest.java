package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import java.lang.module.ModuleDescriptor;
import java.lang.module.ModuleFinder;
import java.lang.module.ModuleReference;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

/**
 * The dependency rules of the architecture, read from the compiled descriptors: a new edge between
 * modules, a new third-party module or a new public package fails here first and has to be argued
 * for.
 */
class ModuleEdgesTest {
  private static final Map<String, Set<String>> OURS =
      Map.of(
          "io.fletch.ffm", Set.of(),
          "io.fletch.quant", Set.of("io.fletch.ffm"),
          "io.fletch.graph", Set.of("io.fletch.ffm", "io.fletch.quant"),
          "io.fletch.sampling", Set.of(),
          "io.fletch.runtime",
              Set.of("io.fletch.ffm", "io.fletch.quant", "io.fletch.graph", "io.fletch.sampling"),
          "io.fletch.tools",
              Set.of("io.fletch.ffm", "io.fletch.quant", "io.fletch.graph", "io.fletch.runtime"));

  private static final Map<String, Set<String>> THIRD_PARTY =
      Map.of(
          "io.fletch.ffm", Set.of(),
          "io.fletch.quant",
              Set.of(
                  "org.apache.arrow.memory.core",
                  "org.apache.arrow.memory.unsafe",
                  "com.fasterxml.jackson.core"),
          "io.fletch.graph", Set.of(),
          "io.fletch.sampling", Set.of(),
          "io.fletch.runtime", Set.of("com.fasterxml.jackson.core", "com.fasterxml.jackson.jr.ob"),
          "io.fletch.tools",
              Set.of(
                  "com.fasterxml.jackson.core",
                  "com.fasterxml.jackson.jr.ob",
                  "org.apache.commons.cli",
                  "org.jline.reader",
                  "org.jline.terminal"));

  /** Packages that anybody may use; all other exports must be qualified. */
  private static final Map<String, Set<String>> PUBLIC =
      Map.of(
          "io.fletch.sampling", Set.of("io.fletch.sampling"),
          "io.fletch.runtime", Set.of("io.fletch"));

  private static Map<String, ModuleDescriptor> descriptors() {
    Path[] classPath =
        Arrays.stream(System.getProperty("java.class.path").split(java.io.File.pathSeparator))
            .map(Path::of)
            .filter(p -> p.toFile().exists())
            // test-classes and dependencies of the test JVM are not modules of ours
            .filter(p -> !p.endsWith("test-classes"))
            .filter(p -> p.toString().contains("fletch"))
            .toArray(Path[]::new);
    return ModuleFinder.of(classPath).findAll().stream()
        .map(ModuleReference::descriptor)
        .filter(d -> d.name().startsWith("io.fletch.") && !d.isAutomatic())
        .collect(Collectors.toMap(ModuleDescriptor::name, d -> d));
  }

  @Test
  void edgesBetweenOurModulesAreThoseOfTheDesign() {
    Map<String, ModuleDescriptor> found = descriptors();
    assertEquals(OURS.keySet(), found.keySet());
    found.forEach((name, descriptor) ->
        assertEquals(
            new TreeSet<>(OURS.get(name)), required(descriptor, true), () -> "edges of " + name));
  }

  @Test
  void thirdPartyModulesAreThoseThatWereWeighed() {
    descriptors()
        .forEach((name, descriptor) ->
            assertEquals(
                new TreeSet<>(THIRD_PARTY.get(name)),
                required(descriptor, false),
                () -> "third-party modules of " + name + " (docs/dependencies.md)"));
  }

  @Test
  void unqualifiedExportsAreThePublicApi() {
    descriptors()
        .forEach((name, descriptor) -> {
          assertEquals(
              PUBLIC.getOrDefault(name, Set.of()),
              descriptor.exports().stream()
                  .filter(e -> !e.isQualified())
                  .map(ModuleDescriptor.Exports::source)
                  .collect(Collectors.toSet()),
              () -> "public packages of " + name);
          assertFalse(
              descriptor.isOpen() || !descriptor.opens().isEmpty(), () -> name + " opens packages");
        });
  }

  private static Set<String> required(ModuleDescriptor descriptor, boolean ours) {
    return descriptor.requires().stream()
        .map(ModuleDescriptor.Requires::name)
        .filter(n -> !n.startsWith("java.") && !n.startsWith("jdk."))
        .filter(n -> n.startsWith("io.fletch.") == ours)
        .collect(Collectors.toCollection(TreeSet::new));
  }
}
