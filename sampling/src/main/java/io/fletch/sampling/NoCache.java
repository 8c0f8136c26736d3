package io.fletch.sampling;

/** No cache: every forward runs every row. */
final class NoCache implements CachePolicy {
  @Override
  public Region plan(CanvasState state) {
    return Region.full(state, false);
  }

  @Override
  public CachePolicy copy() {
    return this;
  }
}
