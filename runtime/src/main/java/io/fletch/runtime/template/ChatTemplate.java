package io.fletch.runtime.template;

import io.fletch.FletchException;
import io.fletch.Tokenizer;
import io.fletch.runtime.template.Values.Args;
import io.fletch.runtime.template.Values.Function;
import java.time.Clock;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * The template by which a model turns a conversation into its prompt. Immutable and thread-safe.
 *
 * <p>The language is Jinja 2 as the transformers library configures it: {@code trim_blocks} and
 * {@code lstrip_blocks} on, loop controls, {@code tojson} that keeps Unicode and order, {@code
 * raise_exception}, {@code strftime_now}, the {@code generation} tag, no way to change the values
 * it is given. What is not supported (inheritance, includes, recursive loops, some filters) is an
 * error when the template is parsed; it names the construct and its line.
 */
public final class ChatTemplate {
  private static final String CHATML =
      "{% for message in messages %}"
          + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
          + "{% endfor %}"
          + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

  private static final int MAX_SOURCE = 4 << 20;

  private final String source;
  private final List<Stmt> body;
  private final Clock clock;

  private ChatTemplate(String source, List<Stmt> body, Clock clock) {
    this.source = source;
    this.body = body;
    this.clock = clock;
  }

  /**
   * Parses a template.
   *
   * @throws FletchException if it is malformed or uses something that is not supported
   */
  public static ChatTemplate parse(String jinja) {
    if (jinja.length() > MAX_SOURCE) {
      throw new FletchException(
          "chat template: length, expected<=" + MAX_SOURCE + " actual=" + jinja.length());
    }
    try {
      return new ChatTemplate(jinja, Parser.parse(jinja), Clock.systemDefaultZone());
    } catch (TemplateError e) {
      throw new FletchException("chat template: " + e.getMessage(), e);
    } catch (StackOverflowError e) {
      throw new FletchException("chat template: nested too deeply", e);
    }
  }

  /**
   * The template to use where a model has none: ChatML, if its vocabulary has ChatML's tokens. A
   * caller that gets nothing should say that the model has no chat template and that a raw prompt
   * works.
   */
  public static Optional<ChatTemplate> fallback(Tokenizer tokenizer) {
    return tokenizer.id("<|im_start|>").isPresent() && tokenizer.id("<|im_end|>").isPresent()
        ? Optional.of(parse(CHATML))
        : Optional.empty();
  }

  /** The same template with another clock for {@code strftime_now}. */
  public ChatTemplate withClock(Clock other) {
    return new ChatTemplate(source, body, other);
  }

  /** The text that was parsed. */
  public String source() {
    return source;
  }

  /**
   * Renders the template.
   *
   * @param context variables: null, booleans, numbers, strings, lists and maps of them. Usual are
   *     {@code messages} (maps with {@code role}, {@code content}, {@code tool_calls}, ...), {@code
   *     tools}, {@code documents}, {@code add_generation_prompt}, {@code bos_token}, {@code
   *     eos_token}. A variable that is null is {@code none}; leave it out to have it undefined.
   * @throws FletchException with the template's own message if it calls {@code raise_exception};
   *     with line and reason if it fails or exceeds its bounds
   */
  public String render(Map<String, ?> context) {
    Interpreter interpreter = new Interpreter();
    try {
      Map<String, Object> variables = new HashMap<>();
      variables.put(
          "raise_exception",
          (Function)
              args -> {
                throw new FletchException(
                    Values.str(args.bind("raise_exception", 1, "message")[0]));
              });
      variables.put("strftime_now", (Function) this::now);
      context.forEach((name, value) -> variables.put(name, Values.fromJava(value, 0)));
      return interpreter.run(body, variables);
    } catch (TemplateError e) {
      throw new FletchException(
          "chat template: line " + interpreter.line() + ": " + e.getMessage(), e);
    } catch (StackOverflowError e) {
      throw new FletchException(
          "chat template: line " + interpreter.line() + ": nested too deeply", e);
    }
  }

  private Object now(Args args) {
    return DateFormat.format(
        Values.string(args.bind("strftime_now", 1, "format")[0], "format"), clock);
  }
}
