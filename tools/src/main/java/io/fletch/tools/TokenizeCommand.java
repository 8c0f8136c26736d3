package io.fletch.tools;

import io.fletch.Tokenizer;
import java.io.IOException;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** {@code fletch tokenize}: text to token ids and back. */
final class TokenizeCommand implements Command {
  @Override
  public String usage() {
    return "[options] [TEXT]";
  }

  @Override
  public String description() {
    return """
    Prints the token ids of a text (--file, the words on the command line, or standard
    input), separated by spaces; with --decode, the text of ids. Special tokens written in the text
    are recognised; beginning-of-text tokens are added only with --add-special.\
    """;
  }

  @Override
  public List<Section> sections() {
    return List.of(
        new Section(
            "Input and output",
            List.of(
                Command.value("f", "file", "FILE", "the whole file is the text (- for stdin)"),
                Command.flag("d", "decode", "from ids to text, exactly, without a line end"),
                Command.flag("add-special", "add the tokens that the model puts around a text"),
                Command.flag("no-special", "special tokens in the text are plain text"),
                Command.flag("json", "print one JSON object"))),
        ModelFlags.fileSection());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch tokenize --model F --file prompt.txt",
        "fletch tokenize \"What is 4 + 3?\" | fletch tokenize --decode");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    String text;
    if (arguments.has("file")) {
      arguments.checkNoRest();
      text = Texts.read(arguments.required("file"), io);
    } else {
      text = arguments.rest().isEmpty() ? io.readAll() : String.join(" ", arguments.rest());
    }
    boolean decode = arguments.has("decode");
    int[] given = decode && !text.isBlank() ? Ids.parse(text) : new int[0];
    Tokenizer tokenizer = Tokenizer.open(ModelFlags.path(arguments));
    if (decode) {
      Ids.check(given, tokenizer.vocabularySize());
    }
    int[] ids =
        decode
            ? given
            : tokenizer.encode(text, arguments.has("add-special"), !arguments.has("no-special"));
    String decoded = decode ? tokenizer.decode(ids, true) : text;
    if (arguments.has("json")) {
      Map<String, Object> report = new LinkedHashMap<>();
      report.put("text", decoded);
      report.put("ids", Arrays.stream(ids).boxed().toList());
      report.put("tokens", Arrays.stream(ids).mapToObj(tokenizer::token).toList());
      io.println(Json.line(report));
    } else if (decode) {
      io.print(decoded);
    } else {
      io.println(Ids.format(ids));
    }
    return Cli.OK;
  }
}
