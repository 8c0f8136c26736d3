package io.fletch.runtime.engine;

import java.lang.reflect.Proxy;

/** Implementations of interfaces for tests of what is around them. */
final class Stubs {
  /** What the methods of a stub do. */
  interface Answers {
    /**
     * Answers a call.
     *
     * @param arguments null without any
     */
    Object to(String method, Object[] arguments);
  }

  private Stubs() {}

  /** An object of a type; each is equal to itself alone. */
  static <T> T of(Class<T> type, Answers answers) {
    return type.cast(
        Proxy.newProxyInstance(
            type.getClassLoader(),
            new Class<?>[] {type},
            (proxy, method, arguments) ->
                switch (method.getName()) {
                  // Asked by Lincheck, too.
                  case "equals" -> proxy == arguments[0];
                  case "hashCode" -> type.getName().hashCode();
                  case "toString" -> type.getSimpleName();
                  default -> answers.to(method.getName(), arguments);
                }));
  }
}
