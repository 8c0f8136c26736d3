/** What backends share: the inputs of a batch, visibility of slots, memory planning. */
package io.fletch.graph.support;
