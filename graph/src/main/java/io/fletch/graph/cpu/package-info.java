/** The CPU backend and its kernel sets: scalar, Vector API, machine code. */
package io.fletch.graph.cpu;
