/**
 * Models on their way into another container: names, order of rows, hyper-parameters and tokenizer
 * (specs weights 1.5 to 1.7). For the command-line tools.
 */
package io.fletch.runtime.convert;
