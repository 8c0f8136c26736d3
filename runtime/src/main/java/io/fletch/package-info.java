/**
 * Language models inside your process: open a {@link io.fletch.Model}, make a {@link
 * io.fletch.Session}, stream tokens.
 */
package io.fletch;
