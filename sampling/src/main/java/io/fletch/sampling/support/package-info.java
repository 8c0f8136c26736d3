/** What the options of this module and of the public API above it share. No part of either API. */
package io.fletch.sampling.support;
