package io.fletch.runtime.engine;

import io.fletch.sampling.DecodeCounters;
import jdk.jfr.Category;
import jdk.jfr.Description;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;

/** Proposals that a step verified. */
@Name("fletch.DraftVerification")
@Label("Draft Verification")
@Category("Fletch")
@Description(
    "A step whose proposals were verified: drafts of diffusion decoding, tokens of a small model")
@StackTrace(false)
final class DraftVerificationEvent extends Event {
  @Label("Drafted")
  @Description("Proposals that were made")
  long drafted;

  @Label("Accepted")
  @Description("Those of this step or the one before that were used")
  long accepted;

  /** Commits what came between two readings of the counters, if anything was proposed or used. */
  static void commit(DecodeCounters before, DecodeCounters after) {
    if (after.drafted() > before.drafted() || after.accepted() > before.accepted()) {
      DraftVerificationEvent event = new DraftVerificationEvent();
      event.drafted = after.drafted() - before.drafted();
      event.accepted = after.accepted() - before.accepted();
      event.commit();
    }
  }
}
