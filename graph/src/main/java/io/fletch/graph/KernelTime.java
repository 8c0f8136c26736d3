package io.fletch.graph;

/**
 * What the launches of one kernel take in a decode step.
 *
 * @param kernel its name in the plan
 * @param launches launches of it per step
 * @param micros microseconds of all these launches together, at least 0
 * @param weightBytes bytes of weights that they read
 */
public record KernelTime(String kernel, int launches, double micros, long weightBytes) {}
