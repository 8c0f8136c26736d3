package io.fletch.runtime.template;

/** A mistake found while a template is parsed or rendered; gets its line on the way out. */
final class TemplateError extends RuntimeException {
  private static final long serialVersionUID = 1L;

  TemplateError(String message) {
    super(message, null, false, false);
  }
}
