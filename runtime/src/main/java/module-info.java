/**
 * The public API of Fletch: models, sessions, generation, tokenizers, chat templates.
 *
 * <p>Package {@code io.fletch} is the API; everything else is internal.
 */
module io.fletch.runtime {
  requires transitive io.fletch.sampling;
  requires io.fletch.graph;
  requires io.fletch.quant;
  requires io.fletch.ffm;
  requires com.fasterxml.jackson.core;
  requires com.fasterxml.jackson.jr.ob;
  requires jdk.jfr;

  exports io.fletch;
  exports io.fletch.runtime.arch to
      io.fletch.tools;
  exports io.fletch.runtime.calibrate to
      io.fletch.tools;
  exports io.fletch.runtime.convert to
      io.fletch.tools;
}
