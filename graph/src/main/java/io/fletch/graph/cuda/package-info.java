/** The CUDA backend: kernels written as PTX, a forward as one captured graph. */
package io.fletch.graph.cuda;
