/** The {@code fletch} command line. Nothing depends on it. */
module io.fletch.tools {
  requires io.fletch.runtime;
  requires io.fletch.graph;
  requires io.fletch.quant;
  requires io.fletch.ffm;
  requires com.fasterxml.jackson.core;
  requires com.fasterxml.jackson.jr.ob;
  requires org.apache.commons.cli;
  requires org.jline.reader;
  requires org.jline.terminal;
  requires java.management;
  requires jdk.httpserver;

  provides System.LoggerFinder with
      io.fletch.tools.StderrLoggerFinder;
}
