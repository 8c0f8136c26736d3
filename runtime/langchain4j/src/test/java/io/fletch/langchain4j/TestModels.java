package io.fletch.langchain4j;

import io.fletch.Model;
import io.fletch.ModelOptions;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/** The models that the tests chat with. */
final class TestModels {
  static final String QUESTION = "What is 457 + 386?";
  static final String ANSWER = "7+6=13\n5+8+1=14\n4+3+1=8\nAnswer: 843";

  private TestModels() {}

  static Model demo() {
    return Model.demo("demo", ModelOptions.defaults().withThreads(1).withContextLength(512));
  }

  /**
   * The demo model with another template of the same length, which knows tools: it writes the tools
   * into a system turn, and calls and results as turns.
   */
  static Model withTools(Path folder) throws IOException {
    byte[] file = Files.readAllBytes(Model.demoFile("demo"));
    String text = new String(file, StandardCharsets.ISO_8859_1);
    int start = text.indexOf("{% for message in messages %}");
    int end = text.indexOf("{% endif %}", start) + "{% endif %}".length();
    String template =
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] +"
            + " '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}{#<tool_call>";
    template += " ".repeat(end - start - template.length() - 2) + "#}";
    System.arraycopy(template.getBytes(StandardCharsets.ISO_8859_1), 0, file, start, end - start);
    return Model.open(
        Files.write(folder.resolve("tools.gguf"), file),
        ModelOptions.defaults().withThreads(1).withContextLength(512));
  }
}
