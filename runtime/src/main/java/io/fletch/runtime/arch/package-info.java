/**
 * Model families as data: hyper-parameters read from GGUF metadata or a Hugging Face configuration,
 * tensor names, rotary embeddings, and the one builder that turns them into a graph.
 *
 * <p>Nothing here runs a model or holds state; all classes are immutable or used by the one thread
 * that opens a model.
 */
package io.fletch.runtime.arch;
