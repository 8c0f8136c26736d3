package io.fletch.ffm.ptx;

/**
 * A virtual register of one kernel.
 *
 * @param type how instructions read it
 * @param name in the text
 */
public record PtxRegister(PtxType type, String name) {
  @Override
  public String toString() {
    return name;
  }
}
