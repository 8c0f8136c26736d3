package io.fletch.tools.server;

import io.fletch.Embedder;
import io.fletch.FletchException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * What an embeddings request asks for, checked, and its answer.
 *
 * @param inputs token ids of each text
 * @param dimensions elements of a vector
 * @param base64 whether vectors are written as little-endian float32 in base64
 */
record EmbeddingRequest(List<int[]> inputs, int dimensions, boolean base64) {
  /** As many as OpenAI takes. */
  private static final int MOST_INPUTS = 2048;

  private static final Set<String> KNOWN =
      Set.of("model", "input", "encoding_format", "dimensions", "user");

  static EmbeddingRequest of(Wire body, Embedder embedder) {
    body.only(KNOWN);
    int width = embedder.info().dimensions();
    boolean base64 =
        switch (body.text("encoding_format", "float")) {
          case "float" -> false;
          case "base64" -> true;
          default ->
              throw body.wrong("encoding_format", "float or base64", body.get("encoding_format"));
        };
    return new EmbeddingRequest(
        inputs(body, embedder), (int) body.whole("dimensions", width, 1, width), base64);
  }

  private static List<int[]> inputs(Wire body, Embedder embedder) {
    Object input = body.get("input");
    if (input instanceof List<?> list && !list.isEmpty() && list.getFirst() instanceof Number) {
      return List.of(ids(list, "input", embedder));
    }
    List<?> all = input instanceof List<?> list ? list : Arrays.asList(input);
    if (all.isEmpty() || all.size() > MOST_INPUTS) {
      throw ApiException.invalid(
          "input", "input: expected=1 to " + MOST_INPUTS + " texts actual=" + all.size());
    }
    List<int[]> out = new ArrayList<>();
    for (int i = 0; i < all.size(); i++) {
      String name = input instanceof List<?> ? "input[" + i + "]" : "input";
      switch (all.get(i)) {
        case String text -> out.add(encode(text, name, embedder));
        case List<?> list -> out.add(ids(list, name, embedder));
        case null, default ->
            throw ApiException.invalid(name, name + ": expected=a text or an array of token ids");
      }
    }
    return out;
  }

  private static int[] encode(String text, String name, Embedder embedder) {
    int[] ids;
    try {
      ids = embedder.tokens(text);
    } catch (FletchException e) {
      throw tooLong(name, e.getMessage());
    }
    return ids;
  }

  private static ApiException tooLong(String name, String message) {
    return ApiException.of(400, "context_length_exceeded", name, name + ": " + message);
  }

  private static int[] ids(List<?> list, String name, Embedder embedder) {
    int most = embedder.info().maxTokens();
    int vocabulary = embedder.tokenizer().vocabularySize();
    if (list.isEmpty()) {
      throw ApiException.invalid(name, name + ": expected=at least one token id actual=none");
    }
    if (list.size() > most) {
      throw tooLong(name, "tokens: expected<=" + most + " actual=" + list.size());
    }
    int[] out = new int[list.size()];
    for (int i = 0; i < out.length; i++) {
      if (!(list.get(i) instanceof Integer id) || id < 0 || id >= vocabulary) {
        throw ApiException.invalid(
            name, name + "[" + i + "]: expected=a token id from 0 to " + (vocabulary - 1));
      }
      out[i] = id;
    }
    return out;
  }

  int tokens() {
    return inputs.stream().mapToInt(ids -> ids.length).sum();
  }

  /** The answer with all vectors, in the order of the inputs. */
  Map<String, Object> answer(String model, List<float[]> vectors) {
    List<Object> data = new ArrayList<>();
    for (float[] whole : vectors) {
      float[] vector = dimensions < whole.length ? Embedder.shortened(whole, dimensions) : whole;
      Map<String, Object> one = new LinkedHashMap<>();
      one.put("object", "embedding");
      one.put("index", data.size());
      one.put("embedding", base64 ? base64(vector) : floats(vector));
      data.add(one);
    }
    Map<String, Object> out = new LinkedHashMap<>();
    out.put("object", "list");
    out.put("data", data);
    out.put("model", model);
    out.put("usage", Map.of("prompt_tokens", tokens(), "total_tokens", tokens()));
    return out;
  }

  private static String base64(float[] vector) {
    ByteBuffer bytes =
        ByteBuffer.allocate(Float.BYTES * vector.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(vector);
    return Base64.getEncoder().encodeToString(bytes.array());
  }

  private static List<Float> floats(float[] vector) {
    List<Float> out = new ArrayList<>(vector.length);
    for (float x : vector) {
      out.add(x);
    }
    return out;
  }
}
