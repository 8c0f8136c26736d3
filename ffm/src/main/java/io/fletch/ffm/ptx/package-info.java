/** Writes kernels as PTX text, typed. It knows instructions, not tensors. */
package io.fletch.ffm.ptx;
