/** Weight files, tensors and quantized block formats. */
package io.fletch.quant;
