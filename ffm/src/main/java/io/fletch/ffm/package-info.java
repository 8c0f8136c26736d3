/**
 * Memory, machine code and drivers for the modules above; thin and safe over {@code
 * java.lang.foreign}.
 */
package io.fletch.ffm;
