/** An application that embeds Fletch. Without this file it runs from the class path. */
module sample {
  requires io.fletch.runtime;
}
