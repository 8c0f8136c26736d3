package io.fletch.langchain4j;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.lang.module.ModuleDescriptor;
import java.lang.module.ModuleDescriptor.Requires;
import java.lang.module.ModuleFinder;
import java.nio.file.Path;
import java.util.Set;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

/** The adapter's descriptor: what it requires and what it shows. */
class ModuleTest {
  @Test
  void edgesAreThoseOfTheDesign() throws Exception {
    Path classes =
        Path.of(FletchChatModel.class.getProtectionDomain().getCodeSource().getLocation().toURI());
    ModuleDescriptor module =
        ModuleFinder.of(classes).find("io.fletch.langchain4j").orElseThrow().descriptor();
    assertEquals(
        Set.of("java.base", "io.fletch.runtime", "langchain4j.core", "com.fasterxml.jackson.jr.ob"),
        module.requires().stream().map(Requires::name).collect(Collectors.toSet()));
    assertEquals(
        Set.of("io.fletch.langchain4j"),
        module.exports().stream()
            .map(ModuleDescriptor.Exports::source)
            .collect(Collectors.toSet()));
  }
}
