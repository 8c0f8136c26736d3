package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import de.kherud.llama.InferenceParameters;
import de.kherud.llama.LlamaModel;
import de.kherud.llama.LlamaOutput;
import de.kherud.llama.ModelParameters;
import de.kherud.llama.args.LogFormat;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.TensorType;
import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.reflect.Constructor;
import java.lang.reflect.Method;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Files that {@code fletch convert} and {@code fletch quantize} write open in llama.cpp ({@code
 * de.kherud:llama}) and give the same greedy text as here. Skipped where the peer does not load.
 */
class ConvertedFilesPeerTest {
  private static final int TOKENS = 24;
  private static final String PROMPT = "What is 457 + 386? The answer is";

  /** All that can be written and that the peer knows: MXFP4 is younger than it. */
  private static final List<String> RECIPES =
      List.of(
          "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L",
          "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K");

  @TempDir static Path folder;

  @BeforeAll
  static void peerLoads() {
    try {
      LlamaModel.setLogger(LogFormat.TEXT, (level, message) -> {});
    } catch (Throwable e) {
      System.out.println(
          "ConvertedFilesPeerTest skipped: the library of de.kherud:llama does not load: " + e);
      assumeTrue(false, () -> "the library of de.kherud:llama does not load here: " + e);
    }
  }

  /** The program, in this process: it exports nothing, being nobody's library. */
  private static Path fletch(Path output, String... arguments) throws Exception {
    List<String> words = new ArrayList<>(List.of(arguments));
    words.addAll(List.of("-o", output.toString()));
    Class<?> streams = Class.forName("io.fletch.tools.Io");
    Constructor<?> constructor =
        streams.getDeclaredConstructor(
            InputStream.class, OutputStream.class, OutputStream.class, Set.class);
    constructor.setAccessible(true);
    Method run =
        Class.forName("io.fletch.tools.Cli").getDeclaredMethod("run", streams, String[].class);
    run.setAccessible(true);
    ByteArrayOutputStream errors = new ByteArrayOutputStream();
    Object io =
        constructor.newInstance(
            InputStream.nullInputStream(), OutputStream.nullOutputStream(), errors, Set.of());
    assertEquals(0, run.invoke(null, io, words.toArray(String[]::new)), errors::toString);
    return output;
  }

  @Test
  void sameGreedyTextFromEveryFile() throws Exception {
    Path source = PeerTest.llama(folder, TensorType.F16);
    // There and back, so that the order of rows is turned twice.
    Path hf = fletch(folder.resolve("hf"), "convert", "-m", source.toString());
    Path back = fletch(folder.resolve("back.gguf"), "convert", "-m", hf.toString());
    String expected = ours(source);
    assertEquals(expected, ours(hf));
    assertEquals(expected, ours(back));
    assertEquals(expected, peer(back));
    Path quantized =
        fletch(folder.resolve("q8.gguf"), "quantize", "-m", hf.toString(), "--type", "Q8_0");
    assertEquals(peer(quantized), ours(quantized));
    for (String type : List.of("F32", "BF16")) {
      Path file =
          fletch(folder.resolve(type + ".gguf"), "quantize", "-m", back.toString(), "--type", type);
      assertEquals(peer(file), ours(file), type);
    }
    List<String> same = new ArrayList<>();
    for (String type : RECIPES) {
      Path file =
          fletch(folder.resolve(type + ".gguf"), "quantize", "-m", back.toString(), "--type", type);
      // Activations are rounded in different ways, so texts may part where two tokens are about
      // equally likely; they begin alike.
      String theirs = peer(file);
      String ours = ours(file);
      assertEquals(beginning(theirs), beginning(ours), type + ": " + theirs + " | " + ours);
      if (theirs.equals(ours)) {
        same.add(type);
      }
      Files.delete(file);
    }
    assertTrue(same.size() >= RECIPES.size() / 2, "the same text to its end: " + same);
  }

  private static String beginning(String text) {
    return text.substring(0, Math.min(2, text.length()));
  }

  private static String peer(Path file) {
    ModelParameters parameters =
        new ModelParameters()
            .setModel(file.toString())
            .setThreads(1)
            .setThreadsBatch(1)
            .setCtxSize(128)
            .disableLog();
    StringBuilder text = new StringBuilder();
    try (LlamaModel model = new LlamaModel(parameters)) {
      for (LlamaOutput output :
          model.generate(new InferenceParameters(PROMPT).setTemperature(0).setNPredict(TOKENS))) {
        text.append(output.text);
      }
    }
    return text.toString();
  }

  private static String ours(Path file) {
    try (Model model =
            Model.open(file, ModelOptions.defaults().withThreads(1).withContextLength(128));
        Session session = model.newSession();
        Generation generation =
            session.generate(PROMPT, GenerationOptions.greedy().withMaxTokens(TOKENS))) {
      return generation.result().text();
    }
  }
}
