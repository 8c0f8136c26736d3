package io.fletch.sampling;

/**
 * The exact cache of block-causal models (specs/diffusion.md 2.5): whole clean blocks are stored,
 * forwards run the active block. The prompt's last, incomplete block is the head of the first
 * active one. Clean rows that are not stored yet run in a forward of their own, or (fused) in the
 * block's first forward, where they give the same values because they do not see the block.
 */
final class BlockCausalCache implements CachePolicy {
  private final int lead;
  private final boolean fused;
  private int stored;

  BlockCausalCache(int lead, boolean fused) {
    this.lead = lead;
    this.fused = fused;
  }

  @Override
  public Region before(CanvasState s) {
    int from = s.gridFrom();
    return fused || stored >= from ? null : new Region(stored, from, stored, 0, 0, true);
  }

  @Override
  public void stored(Region region) {
    stored = region.to();
  }

  @Override
  public Region plan(CanvasState s) {
    int block = s.gridFrom();
    if (fused && stored < block) {
      return new Region(stored, s.to, stored, 0, 0, true);
    }
    int from = Math.max(0, block - lead);
    return new Region(from, s.to, from, 0, 0, false);
  }

  @Override
  public void evaluated(CanvasState s, Region region) {
    stored = s.gridFrom();
  }

  @Override
  public CachePolicy copy() {
    BlockCausalCache c = new BlockCausalCache(lead, fused);
    c.stored = stored;
    return c;
  }
}
