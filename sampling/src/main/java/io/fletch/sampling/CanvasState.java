package io.fletch.sampling;

import java.util.Arrays;

/**
 * A state of the static chain: the canvas and where the schedule stands. What a step does depends
 * on this and on nothing else, which is what lets drafts and beams copy it. Package-private fields:
 * policies read them, only this class writes them. Used by one thread.
 */
final class CanvasState {
  /** Prompt and answer; masked positions hold the mask id. */
  final int[] tokens;

  /** Start of the answer. */
  final int prompt;

  private final int mask;
  private final int block;
  private final boolean gridFromZero;

  /** The active block [from, to), within the canvas. */
  int from;

  int to;

  /** Masks in the active block when it was opened. */
  int blockMasks;

  /** Steps taken in the active block. */
  int blockStep;

  /** Steps taken in all, empty ones included. */
  int step;

  /** Tokens committed to masks since the start. */
  int committed;

  /** Of those, tokens that an exit has filled in. */
  int filled;

  /** Masks left. */
  int masks;

  /** Editing: steps since the block's last mask went, and whether the last one changed nothing. */
  int postSteps;

  boolean settled;

  /** SOAR: sum of committed probabilities. */
  double score;

  private CanvasState(int[] tokens, int prompt, int mask, int block, boolean gridFromZero) {
    this.tokens = tokens;
    this.prompt = prompt;
    this.mask = mask;
    this.block = block;
    this.gridFromZero = gridFromZero;
  }

  /**
   * The state before the first step.
   *
   * @param tokens prompt and answer; taken over
   * @param block block length
   * @param gridFromZero whether blocks are counted from position 0 (block-causal models) instead of
   *     from the start of the answer
   */
  static CanvasState start(int[] tokens, int prompt, int mask, int block, boolean gridFromZero) {
    CanvasState s = new CanvasState(tokens, prompt, mask, block, gridFromZero);
    s.masks = s.count(prompt, tokens.length);
    s.open(prompt);
    s.skipCleanBlocks();
    return s;
  }

  CanvasState copy() {
    CanvasState s = new CanvasState(tokens.clone(), prompt, mask, block, gridFromZero);
    s.from = from;
    s.to = to;
    s.blockMasks = blockMasks;
    s.blockStep = blockStep;
    s.step = step;
    s.committed = committed;
    s.filled = filled;
    s.masks = masks;
    s.postSteps = postSteps;
    s.settled = settled;
    s.score = score;
    return s;
  }

  int length() {
    return tokens.length;
  }

  boolean masked(int position) {
    return tokens[position] == mask;
  }

  int count(int start, int end) {
    int n = 0;
    for (int i = start; i < end; i++) {
      if (masked(i)) {
        n++;
      }
    }
    return n;
  }

  int masksInBlock() {
    return count(from, to);
  }

  /** First masked position, or the length. */
  int firstMask() {
    for (int i = prompt; i < tokens.length; i++) {
      if (masked(i)) {
        return i;
      }
    }
    return tokens.length;
  }

  /** Commits the selection and counts a step. */
  void apply(Selection selection) {
    for (int i = 0; i < selection.size(); i++) {
      int p = selection.position(i);
      if (masked(p)) {
        masks--;
        committed++;
      }
      tokens[p] = selection.token(i);
    }
    step++;
    blockStep++;
  }

  /** Goes on to the next block that has masks; stays at the end of the canvas. */
  void advance() {
    next();
    skipCleanBlocks();
  }

  private void skipCleanBlocks() {
    while (from < tokens.length && blockMasks == 0) {
      next();
    }
  }

  private void next() {
    open(to);
  }

  private void open(int start) {
    from = start;
    int end =
        gridFromZero
            ? (start / block + 1) * block
            : prompt + ((start - prompt) / block + 1) * block;
    to = Math.min(end, tokens.length);
    blockMasks = count(from, to);
    blockStep = 0;
    postSteps = 0;
    settled = false;
  }

  /** Start of the active block on the grid: before the answer for a block that the prompt opens. */
  int gridFrom() {
    return gridFromZero ? from / block * block : from;
  }

  boolean sameCanvas(CanvasState other) {
    return Arrays.equals(tokens, other.tokens);
  }
}
