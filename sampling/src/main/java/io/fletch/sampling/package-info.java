/** Sampler chain and decode schedules over a small {@code Forward} interface. */
package io.fletch.sampling;
