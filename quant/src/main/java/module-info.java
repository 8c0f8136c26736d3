/**
 * Weight files (GGUF, safetensors), tensors held in Arrow buffers, and the block formats of
 * quantized weights.
 *
 * <p>It reads and writes weights and never runs a model.
 */
module io.fletch.quant {
  requires io.fletch.ffm;
  requires transitive org.apache.arrow.memory.core;
  // Arrow looks for one allocation manager by name and refuses to start without it; nothing would
  // resolve this module on a module path.
  requires org.apache.arrow.memory.unsafe;
  requires com.fasterxml.jackson.core;

  exports io.fletch.quant.merge to
      io.fletch.tools;
  exports io.fletch.quant.prune to
      io.fletch.runtime,
      io.fletch.tools;
  exports io.fletch.quant to
      io.fletch.graph,
      io.fletch.runtime,
      io.fletch.tools;
}
