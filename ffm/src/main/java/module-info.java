/**
 * Everything below Java: mapped files, native memory, executable memory with an x86-64 assembler,
 * CPU features, threads, and the CUDA driver.
 *
 * <p>The sole module that makes restricted foreign calls, so the only name in {@code
 * --enable-native-access}. It knows bytes, not tensors, and depends on nothing.
 */
module io.fletch.ffm {
  exports io.fletch.ffm to
      io.fletch.quant,
      io.fletch.graph,
      io.fletch.runtime,
      io.fletch.tools;
  exports io.fletch.ffm.device to
      io.fletch.graph,
      io.fletch.runtime,
      io.fletch.tools;
  exports io.fletch.ffm.ptx to
      io.fletch.graph;
  exports io.fletch.ffm.x86 to
      io.fletch.graph,
      io.fletch.tools;
}
