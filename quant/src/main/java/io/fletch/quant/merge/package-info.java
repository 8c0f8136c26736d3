/** Arithmetic on the weights of several models and adapters (specs weights 4.7). Pure functions. */
package io.fletch.quant.merge;
