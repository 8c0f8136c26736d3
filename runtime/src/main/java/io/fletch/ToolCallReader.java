package io.fletch;

import java.util.Map;
import java.util.Objects;

/**
 * Reads an answer that may call tools while it is generated: text that can no longer become a call
 * is given out at once, calls come at the end, when they are whole. One per answer; used by the
 * thread that reads the answer.
 */
public final class ToolCallReader {
  private final ToolCallFormat format;
  private final Tokenizer tokenizer;
  private final Map<String, ?> tools;
  private final PlainText plain;
  private int given;

  /** After a control token, which a call may begin with: the text is not decided before the end. */
  private boolean isHeld;

  /** As {@link #ToolCallReader(ToolCallFormat, Tokenizer, Map)}, without schemas. */
  public ToolCallReader(ToolCallFormat format, Tokenizer tokenizer) {
    this(format, tokenizer, Map.of());
  }

  /**
   * Makes a reader of one answer.
   *
   * @param tools the JSON schemas of the arguments by the names of the tools, see {@link
   *     ToolCallFormat#parse(String, Map)}
   */
  public ToolCallReader(ToolCallFormat format, Tokenizer tokenizer, Map<String, ?> tools) {
    this.format = Objects.requireNonNull(format, "format");
    this.tokenizer = Objects.requireNonNull(tokenizer, "tokenizer");
    this.tools = Map.copyOf(tools);
    this.plain = format.plainText();
  }

  /**
   * Takes the next chunk.
   *
   * @return more of the answer's text, often empty
   */
  public String accept(Generation.Chunk chunk) {
    isHeld |= chunk.ids().stream().anyMatch(tokenizer::isSpecial);
    int end = isHeld ? given : plain.append(chunk.text());
    String out = plain.text().substring(given, end);
    given = end;
    return out;
  }

  /**
   * Takes the whole answer, after its last chunk or instead of chunks.
   *
   * @return its text besides the calls, and the calls
   */
  public ToolCallFormat.Parsed parse(Generation.Result result) {
    int[] ids = result.ids().stream().mapToInt(Integer::intValue).toArray();
    String all = withoutStop(tokenizer.decode(ids, true), tokenizer.decode(ids, false), result);
    ToolCallFormat.Parsed out = format.parse(all, tools);
    // Without a call the answer is what it would be without tools.
    return out.calls().isEmpty() ? new ToolCallFormat.Parsed(result.text(), out.calls()) : out;
  }

  /** An answer up to its stop string, whose tokens are among those of the answer. */
  private static String withoutStop(String all, String plain, Generation.Result result) {
    String text = result.text();
    if (!plain.startsWith(text)) {
      return all;
    }
    String stop = plain.substring(text.length());
    return all.endsWith(stop) ? all.substring(0, all.length() - stop.length()) : all;
  }

  /** The text of a parsed answer that {@link #accept} has not given. */
  public String rest(ToolCallFormat.Parsed parsed) {
    String before = plain.text().substring(0, given);
    if (!parsed.calls().isEmpty()) {
      // Content next to calls has no blanks around it.
      before = before.strip();
    }
    return parsed.content().startsWith(before) ? parsed.content().substring(before.length()) : "";
  }
}
