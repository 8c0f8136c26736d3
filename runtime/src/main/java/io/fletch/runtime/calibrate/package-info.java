/** Runs models over calibration text, layer by layer (specs weights 4.1). For the tools. */
package io.fletch.runtime.calibrate;
