package io.fletch.sampling;

import java.util.Arrays;

/**
 * What decoding must know of a diffusion model (specs/diffusion.md 2); taken from the model file,
 * never assumed.
 *
 * @param maskId the mask token M
 * @param endIds ids that end an answer (EOS, end of turn); may be empty
 * @param fillId what stands behind the end of an answer, usually EOS or padding
 * @param definedIds ids from here on are not defined by the tokenizer and are suppressed
 * @param shift whether row i predicts position i+1 (Dream) instead of i (LLaDA)
 * @param block block length of a block-causal model (SDAR, TraDo, LLaDA2); 0 if every position sees
 *     every other
 */
public record DiffusionModel(
    int maskId, int[] endIds, int fillId, int definedIds, boolean shift, int block) {
  /** Copies and checks. */
  public DiffusionModel {
    endIds = endIds.clone();
    Arrays.sort(endIds);
    if (maskId < 0 || fillId < 0 || definedIds <= 0 || block < 0) {
      throw new IllegalArgumentException(
          "out of range: maskId="
              + maskId
              + " fillId="
              + fillId
              + " definedIds="
              + definedIds
              + " block="
              + block);
    }
    if (fillId == maskId || Arrays.binarySearch(endIds, maskId) >= 0) {
      throw new IllegalArgumentException(
          "the mask token cannot end or fill an answer: maskId=" + maskId);
    }
  }

  /** The ending ids, ascending; a copy. */
  @Override
  public int[] endIds() {
    return endIds.clone();
  }

  /** Whether every position sees every other. */
  public boolean bidirectional() {
    return block == 0;
  }

  boolean ends(int token) {
    return Arrays.binarySearch(endIds, token) >= 0;
  }

  /** Rows in front of a window that are needed to predict its first position. */
  int lead() {
    return shift ? 1 : 0;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof DiffusionModel m
        && maskId == m.maskId
        && fillId == m.fillId
        && definedIds == m.definedIds
        && shift == m.shift
        && block == m.block
        && Arrays.equals(endIds, m.endIds);
  }

  @Override
  public int hashCode() {
    return 31 * (31 * maskId + fillId) + Arrays.hashCode(endIds);
  }

  @Override
  public String toString() {
    return "DiffusionModel[maskId="
        + maskId
        + ", endIds="
        + Arrays.toString(endIds)
        + ", fillId="
        + fillId
        + ", definedIds="
        + definedIds
        + ", shift="
        + shift
        + ", block="
        + block
        + "]";
  }
}
