package io.fletch.sampling;

/** The counters of a run while it goes on. */
final class Tally {
  long forwards;
  long rows;
  long headRows;
  long steps;
  long committed;
  long filled;
  long drafted;
  long accepted;
  int exitStep = -1;
  long guideForwards;
  long guideRows;
  long bytesAtStart;

  DecodeCounters snapshot(long bytesNow) {
    return new DecodeCounters(
        forwards,
        rows,
        headRows,
        bytesNow < 0 ? -1 : bytesNow - bytesAtStart,
        steps,
        committed,
        filled,
        drafted,
        accepted,
        exitStep,
        guideForwards,
        guideRows);
  }
}
