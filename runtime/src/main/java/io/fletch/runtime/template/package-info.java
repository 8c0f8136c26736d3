/**
 * Chat templates: an interpreter of the part of Jinja 2 that models' templates use, with the
 * settings and additions of the transformers library ({@code apply_chat_template}).
 *
 * <p>A template comes from a model file and is not trusted: it can reach nothing but the values it
 * is given, and steps, output size and nesting are bounded.
 */
package io.fletch.runtime.template;
