/**
 * The CUDA driver as safe objects: devices, contexts, streams, events, memory, modules, launches,
 * captured graphs.
 *
 * <p>A {@link io.fletch.ffm.device.CudaContext} owns everything made from it. Each object is closed
 * exactly once; use after close and a second close are {@link java.lang.IllegalStateException}s,
 * and closing a context releases and names what was still open. Every failing driver call is a
 * {@link io.fletch.ffm.device.CudaException} that says which call, with what, and why. Launches and
 * graph replays allocate nothing on the Java heap.
 */
package io.fletch.ffm.device;
