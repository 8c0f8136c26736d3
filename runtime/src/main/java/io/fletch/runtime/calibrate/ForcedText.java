package io.fletch.runtime.calibrate;

import java.util.Objects;

/**
 * Tokens that a calibration runs as they are.
 *
 * @param ids all of them
 * @param start index of the first one that counts as generated; what is before it is a prompt
 */
public record ForcedText(int[] ids, int start) {
  /** Checks the start. */
  public ForcedText {
    Objects.checkIndex(start, ids.length);
  }
}
