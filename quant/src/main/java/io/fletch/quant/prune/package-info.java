/**
 * Training-free pruning of matrices (specs weights 4): which weights go, and what the others
 * become. Pure arithmetic on arrays; it reads no file and runs no model.
 */
package io.fletch.quant.prune;
