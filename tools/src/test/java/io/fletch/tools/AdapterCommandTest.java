package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.TensorStore;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Adapters from the command line, over the embedded quantized model. */
class AdapterCommandTest {
  private static final int RANK = 2;

  @TempDir private Path folder;

  /** An adapter of the first output projection, whose second factor is {@code factor} times. */
  private Path adapter(String name, float factor) {
    int width;
    try (Model model = Model.demo("demo-small", ModelOptions.defaults())) {
      width = model.info().embeddingLength();
    }
    Random random = new Random(3);
    float[] a = new float[RANK * width];
    float[] b = new float[width * RANK];
    for (int i = 0; i < a.length; i++) {
      a[i] = (float) random.nextGaussian();
      b[i] = factor * (float) random.nextGaussian();
    }
    Path file = folder.resolve(name);
    try (TensorStore store = TensorStore.create()) {
      new GgufWriter()
          .put("general.type", "adapter")
          .put("adapter.type", "lora")
          .put("adapter.lora.alpha", 2f)
          .add(store.floats("blk.0.attn_output.weight.lora_a", a, RANK, width))
          .add(store.floats("blk.0.attn_output.weight.lora_b", b, width, RANK))
          .write(file);
    }
    return file;
  }

  private byte[] logits(String... more) throws IOException {
    Path out = folder.resolve("logits.npy");
    String[] words = {"logits", "-m", "demo-small", "--ids", "5 6 7", "-o", out.toString()};
    String[] all = Arrays.copyOf(words, words.length + more.length);
    System.arraycopy(more, 0, all, words.length, more.length);
    Fletch.ok(all);
    return Files.readAllBytes(out);
  }

  @Test
  void adaptersAreAddedWithTheirScales() throws IOException {
    String one = adapter("one.gguf", 0.5f).toString();
    String twice = adapter("twice.gguf", 1f).toString();
    byte[] base = logits();
    byte[] adapted = logits("--lora", one);
    assertNotEquals(Arrays.hashCode(base), Arrays.hashCode(adapted));
    assertEquals(Arrays.hashCode(base), Arrays.hashCode(logits("--lora", one + "=0")));
    // A power of two rounds nothing, so doubling the factor or the scale is the same.
    assertEquals(
        Arrays.hashCode(logits("--lora", twice)), Arrays.hashCode(logits("--lora", one + "=2")));
    assertEquals(
        Arrays.hashCode(adapted),
        Arrays.hashCode(logits("--lora", one, "--lora", twice + "=0")),
        "several");
  }

  @Test
  void whatIsNoAdapterIsRefused() throws IOException {
    for (String wrong : List.of("x.gguf=", "=1", "x.gguf=much", "x.gguf=NaN")) {
      Fletch.Outcome no = Fletch.run("run", "-m", "demo-small", "--lora", wrong, "Hi");
      assertEquals(2, no.status(), wrong + no.err());
      assertTrue(no.err().contains("expected=FILE or FILE=NUMBER actual=" + wrong), no.err());
    }
    Path text = Files.writeString(folder.resolve("x.gguf"), "no adapter");
    assertEquals(
        1, Fletch.run("run", "-m", "demo-small", "--lora", text.toString(), "Hi").status());
  }

  @Test
  void aChatChangesItsAdapters() {
    Path strong = adapter("strong.gguf", 2f);
    String question = "What is 4 + 3?\n";
    String base = Fletch.runWith(question, "chat", "-m", "demo-small").out();
    String with =
        Fletch.runWith(question, "chat", "-m", "demo-small", "--lora", strong + "=1").out();
    assertNotEquals(base, with);
    Fletch.Outcome changed =
        Fletch.runWith(
            question
                + "/reset\n/lora strong=0\n"
                + question
                + "/reset\n/lora strong=1\n"
                + question
                + "/lora\n",
            "chat",
            "-m",
            "demo-small",
            "--lora",
            strong.toString());
    assertEquals(with + base + with, changed.out());
    assertTrue(changed.err().contains("[strong=1.0, rank 2]"), changed.err());
    Fletch.Outcome added =
        Fletch.runWith("/lora " + strong + "=1\n" + question, "chat", "-m", "demo-small");
    assertEquals(with, added.out());
    Fletch.Outcome wrong = Fletch.runWith("/lora other=1\n", "chat", "-m", "demo-small");
    assertEquals(1, wrong.status());
    assertTrue(wrong.err().contains("/lora: expected=[] or a file actual=other"), wrong.err());
  }

  /** A PEFT folder goes with a GGUF model and with its copy in safetensors. */
  @Test
  void peftFoldersGoWithModelsOfBothFormats() throws IOException {
    Path copy = folder.resolve("copy");
    Fletch.ok("convert", "-m", "demo-small", "-o", copy.toString());
    int width;
    try (Model model = Model.demo("demo-small", ModelOptions.defaults())) {
      width = model.info().embeddingLength();
    }
    Path peft = Files.createDirectories(folder.resolve("peft"));
    Files.writeString(
        peft.resolve("adapter_config.json"),
        "{\"peft_type\":\"LORA\",\"lora_alpha\":8,\"use_rslora\":true}");
    Random random = new Random(5);
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      for (String part : List.of("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")) {
        String stem = "base_model.model.model.layers.0." + part;
        int out = part.endsWith("k_proj") ? width / 2 : width;
        int in = part.endsWith("down_proj") ? 2 * width : width;
        writer.add(store.floats(stem + ".lora_A.weight", floats(random, RANK * in), RANK, in));
        writer.add(store.floats(stem + ".lora_B.weight", floats(random, out * RANK), out, RANK));
      }
      writer.write(peft.resolve("adapter_model.safetensors"));
    }
    int[] ids = {5, 6, 7, 80};
    float[][] gguf = adapted(Model.demoFile("demo-small"), peft, ids);
    float[][] safetensors = adapted(copy, peft, ids);
    float[][] base = adapted(copy, null, ids);
    double change = 0;
    for (int r = 0; r < ids.length; r++) {
      for (int i = 0; i < base[r].length; i++) {
        assertEquals(safetensors[r][i], gguf[r][i], 0.3, "row " + r);
        change = Math.max(change, Math.abs(base[r][i] - gguf[r][i]));
      }
    }
    assertTrue(change > 2, "the adapter does something: " + change);
  }

  private static float[] floats(Random random, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = 0.3f * (float) random.nextGaussian();
    }
    return x;
  }

  private static float[][] adapted(Path file, Path adapter, int[] ids) {
    try (Model model = Model.open(file, ModelOptions.defaults().withThreads(1));
        Session session = model.newSession()) {
      if (adapter != null) {
        session.adapters(List.of(model.adapter(adapter).scaled(0.5f)));
      }
      return session.logits(ids);
    }
  }

  @Test
  void aSavedSessionBelongsToItsAdapters() {
    Path one = adapter("one.gguf", 0.5f);
    Path saved = folder.resolve("session");
    ModelOptions adapted =
        ModelOptions.defaults().withAdapters(List.of(new ModelOptions.Adapter(one, 1)));
    try (Model model = Model.demo("demo-small", adapted);
        Session session = model.newSession();
        Session other = model.newSession()) {
      session.generate("What is", GenerationOptions.defaults().withMaxTokens(2)).result().text();
      session.save(saved);
      other.restore(saved);
      assertEquals(session.tokens(), other.tokens());
    }
    try (Model model = Model.demo("demo-small", ModelOptions.defaults());
        Session session = model.newSession()) {
      assertThrows(FletchException.class, () -> session.restore(saved));
    }
  }
}
