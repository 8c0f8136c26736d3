package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
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
import io.fletch.quant.GgufWriter;
import io.fletch.quant.Quantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * llama.cpp, live, through {@code de.kherud:llama}: the same file gives the same tokens and the
 * same greedy text.
 *
 * <p>Its llama.cpp is older than the {@code qwen3} architecture of the demo model ({@link
 * LlamaCppGreedyTest} has recorded answers of a newer one), so the file is the demo diffusion
 * model, whose body is a llama, rewritten as one by our writer: the weights are trained, the text
 * is babble, and every layer counts. Skipped where the peer's native library does not load.
 */
class PeerTest {
  private static final int TOKENS = 32;
  private static final List<String> PROMPTS =
      List.of(
          "<|im_start|>user\nReverse the word: planet<|im_end|>\n<|im_start|>assistant\n",
          "What is 457 + 386? The answer is",
          "Write  two  spaces, a tab\tand ünïcödé 你好.");

  @TempDir static Path folder;

  @BeforeAll
  static void peerLoads() {
    try {
      LlamaModel.setLogger(LogFormat.TEXT, (level, message) -> {});
    } catch (Throwable e) {
      System.out.println(
          "PeerTest skipped: the library of de.kherud:llama does not load here: " + e);
      assumeTrue(false, () -> "the library of de.kherud:llama does not load here: " + e);
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "F16"})
  void sameTokensAndSameGreedyText(TensorType type) throws IOException {
    Path file = llama(folder, type);
    ModelParameters parameters =
        new ModelParameters()
            .setModel(file.toString())
            .setThreads(1)
            .setThreadsBatch(1)
            .setCtxSize(256)
            .disableLog();
    try (LlamaModel peer = new LlamaModel(parameters);
        Model model =
            Model.open(
                file,
                ModelOptions.defaults()
                    .withThreads(1)
                    .withKvType(ModelOptions.KvType.F16)
                    .withContextLength(256));
        Session session = model.newSession()) {
      for (String prompt : PROMPTS) {
        assertEquals(
            ints(peer.encode(prompt)),
            ints(model.tokenizer().encode(prompt)),
            "tokens of " + prompt);
        assertEquals(
            peerText(peer, prompt), ourText(session, prompt), "greedy text after " + prompt);
      }
    }
  }

  private static String peerText(LlamaModel peer, String prompt) {
    StringBuilder text = new StringBuilder();
    InferenceParameters parameters =
        new InferenceParameters(prompt).setTemperature(0).setNPredict(TOKENS);
    for (LlamaOutput output : peer.generate(parameters)) {
      text.append(output.text);
    }
    return text.toString();
  }

  private static String ourText(Session session, String prompt) {
    session.truncate(0);
    GenerationOptions options = GenerationOptions.greedy().withMaxTokens(TOKENS);
    try (Generation generation = session.generate(prompt, options)) {
      return generation.result().text();
    }
  }

  private static List<Integer> ints(int[] ids) {
    return java.util.Arrays.stream(ids).boxed().toList();
  }

  /** The demo diffusion model as a causal llama with matrices of a type. */
  static Path llama(Path folder, TensorType type) throws IOException {
    Path source = folder.resolve("source.gguf");
    if (!Files.exists(source)) {
      try (InputStream in =
          PeerTest.class.getResourceAsStream("/META-INF/fletch/demo/demo-diffusion.gguf")) {
        Files.copy(in, source);
      }
    }
    Path target = folder.resolve("llama-" + type + ".gguf");
    try (WeightFile file = WeightFile.open(source);
        TensorStore store = TensorStore.create()) {
      GgufWriter writer = new GgufWriter().putAll(file.metadata());
      for (Map.Entry<String, Object> entry : file.metadata().entries().entrySet()) {
        String key = entry.getKey();
        if (key.startsWith("llada.")) {
          writer.remove(key);
          String renamed = "llama." + key.substring("llada.".length());
          switch (entry.getValue()) {
            case Long value -> writer.put(renamed, Math.toIntExact(value));
            case Double value -> writer.put(renamed, value.floatValue());
            case Boolean value -> {} // attention.causal
            default -> throw new AssertionError("unexpected value of " + key);
          }
        } else if (key.startsWith("diffusion.") || key.equals("tokenizer.ggml.mask_token_id")) {
          writer.remove(key);
        }
      }
      writer.put("general.architecture", "llama");
      for (Tensor tensor : file.tensors().values()) {
        if (tensor.rank() != 2) {
          writer.add(tensor);
          continue;
        }
        writer.add(Quantizer.quantize(tensor, type, store));
      }
      writer.write(target);
    }
    return target;
  }
}
