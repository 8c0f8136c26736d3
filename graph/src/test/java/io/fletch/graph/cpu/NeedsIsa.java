package io.fletch.graph.cpu;

import io.fletch.ffm.CpuFeatures;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import net.jqwik.api.lifecycle.LifecycleContext;
import net.jqwik.api.lifecycle.SkipExecutionHook;

/**
 * Skips a container of properties where the CPU lacks the instructions. A failed assumption inside
 * a property would count as a rejected try, and a property without any try that counts fails.
 */
@Retention(RetentionPolicy.RUNTIME)
@Target(ElementType.TYPE)
@interface NeedsIsa {
  Isa value();

  /** Reads the annotation of the container. */
  final class Hook implements SkipExecutionHook {
    @Override
    public SkipResult shouldBeSkipped(LifecycleContext context) {
      Isa isa =
          context
              .optionalContainerClass()
              .map(c -> c.getAnnotation(NeedsIsa.class))
              .map(NeedsIsa::value)
              .orElseThrow();
      return isa.supportedBy(CpuFeatures.host())
          ? SkipResult.doNotSkip()
          : SkipResult.skip("this machine cannot run " + isa.label() + " code");
    }
  }
}
