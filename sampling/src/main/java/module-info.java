/**
 * Samplers and decode schedules: autoregressive and diffusion. Depends on nothing of ours; the
 * model is behind {@code Forward}, so every schedule can be tested against a model made of a table.
 * It touches no native memory.
 */
module io.fletch.sampling {
  exports io.fletch.sampling;
  exports io.fletch.sampling.support to
      io.fletch.runtime;
}
