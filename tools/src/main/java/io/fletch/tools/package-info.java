/** Commands of the {@code fletch} program. */
package io.fletch.tools;
