/**
 * Fletch's models as models of LangChain4j.
 *
 * <p>LangChain4j's jars have no descriptors, and its main jar shares packages with its core jar: on
 * the module path only the core can be used. Most applications run from the class path.
 */
module io.fletch.langchain4j {
  requires transitive io.fletch.runtime;
  requires transitive langchain4j.core;
  requires com.fasterxml.jackson.jr.ob;

  exports io.fletch.langchain4j;
}
