package io.fletch.runtime.arch;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import java.io.IOException;
import java.io.InputStream;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A model whose logits were computed by another implementation: {@code
 * runtime/src/test/python/tiny_models.py} wrote what is read here and says how weights follow from
 * names.
 *
 * @param hidden whether the logits are hidden states
 */
public record TinyModel(
    Map<String, Object> config,
    Map<String, float[]> weights,
    Map<String, long[]> shapes,
    int[] ids,
    boolean hidden,
    float[][] logits) {
  /** Reads the model of a resource. */
  public static TinyModel read(String name) throws IOException {
    Map<String, Object> all;
    try (InputStream in = TinyModel.class.getResourceAsStream("tiny/" + name + ".json")) {
      all = JSON.std.mapFrom(in.readAllBytes());
    }
    Map<String, float[]> weights = new LinkedHashMap<>();
    Map<String, long[]> shapes = new LinkedHashMap<>();
    for (Object entry : (List<?>) all.get("tensors")) {
      Map<?, ?> t = (Map<?, ?>) entry;
      String tensor = (String) t.get("name");
      long[] shape =
          ((List<?>) t.get("shape")).stream().mapToLong(d -> ((Number) d).longValue()).toArray();
      shapes.put(tensor, shape);
      weights.put(
          tensor,
          TinyWeights.values(
              tensor,
              shape,
              ((Number) t.get("scale")).doubleValue(),
              ((Number) t.get("offset")).doubleValue()));
    }
    @SuppressWarnings("unchecked")
    Map<String, Object> config = (Map<String, Object>) all.get("config");
    return new TinyModel(
        config,
        weights,
        shapes,
        ((List<?>) all.get("ids")).stream().mapToInt(i -> ((Number) i).intValue()).toArray(),
        Boolean.TRUE.equals(all.get("hidden")),
        ((List<?>) all.get("logits")).stream().map(TinyModel::floats).toArray(float[][]::new));
  }

  private static float[] floats(Object row) {
    List<?> list = (List<?>) row;
    float[] out = new float[list.size()];
    for (int i = 0; i < out.length; i++) {
      out[i] = ((Number) list.get(i)).floatValue();
    }
    return out;
  }

  /** The tensors under their own names, in memory of the store. */
  public Map<String, Tensor> tensors(TensorStore store) {
    Map<String, Tensor> out = new LinkedHashMap<>();
    weights.forEach((name, x) -> out.put(name, store.floats(name, x, shapes.get(name))));
    return out;
  }
}
