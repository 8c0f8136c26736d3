/** JMH suites; never shipped. Run with {@code java -jar bench/target/benchmarks.jar}. */
package io.fletch.bench;
