/**
 * Models that are open: loading, sessions, generations, and the adapters between decode schedules
 * and the graph. Implements the interfaces of {@code io.fletch}.
 */
package io.fletch.runtime.engine;
