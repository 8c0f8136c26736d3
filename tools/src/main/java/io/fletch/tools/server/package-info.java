/** The HTTP server of {@code fletch serve}. */
package io.fletch.tools.server;
