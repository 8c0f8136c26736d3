package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Model;
import io.fletch.Routing;
import io.fletch.Tokenizer;
import io.fletch.graph.GraphException;
import io.fletch.quant.ArrowWriter;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.Metadata;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.quant.WeightFileException;
import io.fletch.sampling.LearnedRouter;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

/**
 * Trained routers as Fletch Arrow files (specs/autoregressive.md P7): one tensor, and metadata that
 * bind it to the two models it was trained for. Stateless.
 */
public final class RouterFile {
  private static final String PREFIX = "fletch.router.";
  private static final String WEIGHTS = "router.weights";
  private static final int VERSION = 2;

  private RouterFile() {}

  /** See {@link Routing#save}. */
  public static void save(Routing routing, Path file, Model large, Map<String, Object> facts) {
    if (!(routing.router() instanceof LearnedRouter router)) {
      throw new FletchException("router " + routing.router().name() + " has nothing to save");
    }
    try (TensorStore store = TensorStore.create()) {
      float[] values = router.weights();
      Tensor weights = store.floats(WEIGHTS, values, values.length);
      ArrowWriter writer = new ArrowWriter();
      facts.forEach((key, value) -> writer.put(PREFIX + key, value));
      writer
          .put("general.type", "router")
          .put(PREFIX + "technique", "r2r")
          .put(PREFIX + "version", VERSION)
          .put(PREFIX + "small", LoadedModel.hash(routing.small()))
          .put(PREFIX + "large", LoadedModel.hash(large))
          .put(PREFIX + "tokenizer", tokens(large))
          .put(PREFIX + "threshold", routing.threshold())
          .put(PREFIX + "hidden_width", router.hiddenWidth())
          .tensor(weights)
          .write(file);
    }
  }

  /** See {@link Routing#load}. */
  public static Routing load(Path file, Model small, Model large) {
    WeightFile in = null;
    Routing routing = null;
    try {
      in = WeightFile.open(file);
      routing = load(in, file, small, large);
      return routing;
    } catch (WeightFileException
        | GraphException
        | IllegalArgumentException
        | ArithmeticException
        | FletchException e) {
      throw ModelLoader.failure(file, e);
    } finally {
      // A network keeps its file, which is closed with the model that owns it.
      if (in != null && (routing == null || !(routing.router() instanceof RouterNetwork))) {
        in.close();
      }
    }
  }

  private static Routing load(WeightFile in, Path file, Model small, Model large) {
    if (in.format() == WeightFile.Format.SAFETENSORS) {
      if (!(small instanceof LoadedModel loaded)) {
        throw new FletchException("model " + small.name() + " is not one that Fletch opened");
      }
      return RouterNetwork.open(in, loaded);
    }
    Metadata m = in.metadata();
    String technique = m.string(PREFIX + "technique").orElse("nothing");
    long version = m.integer(PREFIX + "version").orElse(0L);
    if (!technique.equals("r2r") || version != VERSION) {
      throw new FletchException(
          file
              + ": not a router: expected=r2r version "
              + VERSION
              + " actual="
              + technique
              + " version "
              + version);
    }
    check(file, m, "small", small);
    check(file, m, "large", large);
    for (Model model : List.of(small, large)) {
      if (!m.string(PREFIX + "tokenizer").orElse("").equals(tokens(model))) {
        throw new FletchException(
            file + ": the router was trained for another tokenizer than that of " + model.name());
      }
    }
    // Files that do not say read logits alone.
    long hiddenWidth = m.integer(PREFIX + "hidden_width").orElse(0L);
    if (hiddenWidth != 0 && hiddenWidth != small.info().embeddingLength()) {
      throw new FletchException(
          file
              + ": hidden width: expected="
              + small.info().embeddingLength()
              + " actual="
              + hiddenWidth);
    }
    int expected = LearnedRouter.weights((int) hiddenWidth);
    Tensor weights = in.tensors().get(WEIGHTS);
    if (weights == null || weights.type() != TensorType.F32 || weights.elements() != expected) {
      throw new FletchException(
          file + ": " + WEIGHTS + ": expected=F32 [" + expected + "] actual=" + weights);
    }
    double threshold =
        m.number(PREFIX + "threshold")
            .orElseThrow(() -> new FletchException(file + ": " + PREFIX + "threshold: missing"));
    LearnedRouter router = new LearnedRouter(Dequantizer.toFloats(weights), (int) hiddenWidth);
    return new Routing(small, router, threshold);
  }

  private static void check(Path file, Metadata m, String role, Model model) {
    String expected = m.string(PREFIX + role).orElse("");
    if (!expected.equals(LoadedModel.hash(model))) {
      throw new FletchException(
          file + ": the router was trained for another " + role + " model than " + model.name());
    }
  }

  /** Hash of the spelling of all tokens, in the order of their ids. */
  private static String tokens(Model model) {
    try {
      MessageDigest digest = MessageDigest.getInstance("SHA-256");
      Tokenizer tokenizer = model.tokenizer();
      for (int id = 0; id < tokenizer.vocabularySize(); id++) {
        byte[] bytes = tokenizer.token(id).getBytes(StandardCharsets.UTF_8);
        digest.update(ByteBuffer.allocate(4).putInt(bytes.length).flip());
        digest.update(bytes);
      }
      return HexFormat.of().formatHex(digest.digest());
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }
}
