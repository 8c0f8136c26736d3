/** Graph, plan, executable: what a model is below its tokens. */
package io.fletch.graph;
