/**
 * A GPU made of Java: an interpreter of PTX behind the driver's functions, for machines without a
 * GPU. It checks what hardware does not: every access, every register, every barrier.
 */
package io.fletch.tests.softgpu;
