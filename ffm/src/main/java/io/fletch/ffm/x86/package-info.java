/** An x86-64 assembler: registers, labels, and an encoder for the instructions that kernels use. */
package io.fletch.ffm.x86;
