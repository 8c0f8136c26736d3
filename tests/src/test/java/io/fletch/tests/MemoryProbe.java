package io.fletch.tests;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.SplittableRandom;

/**
 * A program for {@link LoadTest}: opens a model, answers, and prints what the process holds in
 * memory, in KiB, as {@code name=value} lines. Linux only.
 */
final class MemoryProbe {
  private MemoryProbe() {}

  /** Arguments: file, layout of the weights, context length, tokens of the prompt. */
  public static void main(String[] args) throws IOException {
    Path file = Path.of(args[0]).toRealPath();
    ModelOptions options =
        ModelOptions.defaults()
            .withWeights(ModelOptions.Weights.valueOf(args[1]))
            .withContextLength(Integer.parseInt(args[2]))
            .withThreads(2);
    long start = System.nanoTime();
    try (Model model = Model.open(file, options)) {
      System.out.println("load_ms=" + (System.nanoTime() - start) / 1_000_000);
      print("loaded", file);
      int[] prompt = new int[Integer.parseInt(args[3])];
      SplittableRandom random = new SplittableRandom(1);
      for (int i = 0; i < prompt.length; i++) {
        prompt[i] = random.nextInt(model.tokenizer().vocabularySize());
      }
      GenerationOptions greedy = GenerationOptions.greedy().withMaxTokens(4).withIgnoreEnd(true);
      try (Session session = model.newSession();
          Generation generation = session.generate(prompt, greedy)) {
        System.out.println("tokens=" + generation.result().completionTokens());
        print("answered", file);
      }
    }
  }

  /** Resident pages of the model's mapping, and all others. */
  private static void print(String when, Path model) throws IOException {
    long mapped = 0;
    long other = 0;
    boolean isModel = false;
    for (String line : Files.readAllLines(Path.of("/proc/self/smaps"))) {
      if (line.matches("[0-9a-f]+-[0-9a-f]+ .*")) {
        isModel = line.endsWith(model.toString());
      } else if (line.startsWith("Rss:")) {
        long kib = Long.parseLong(line.replaceAll("[^0-9]", ""));
        mapped += isModel ? kib : 0;
        other += isModel ? 0 : kib;
      }
    }
    System.out.println(when + "_mapped=" + mapped);
    System.out.println(when + "_other=" + other);
  }
}
