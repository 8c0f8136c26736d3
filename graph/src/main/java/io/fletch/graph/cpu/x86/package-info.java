/**
 * Generators of machine-code kernels: packed weight layouts and the code that multiplies with them.
 * They know bytes and strides; calling, caching and the kernel contract are in the package above.
 */
package io.fletch.graph.cpu.x86;
