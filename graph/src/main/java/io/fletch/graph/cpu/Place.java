package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;

/**
 * Where the rows of a value lie, in floats: row r starts at {@code offset + r * stride}.
 *
 * @param logits in the logits of the batch rather than in scratch memory
 */
record Place(boolean logits, long offset, long stride) {
  MemorySegment segment(Frame f) {
    return logits ? f.logits : f.scratch;
  }

  long at(int row) {
    return offset + row * stride;
  }
}
