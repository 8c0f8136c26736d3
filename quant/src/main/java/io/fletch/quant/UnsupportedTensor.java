package io.fletch.quant;

import java.util.List;

/**
 * A tensor that a file holds in an element type that cannot be computed with. It does not keep the
 * file from opening, since a model may never ask for it.
 *
 * @param name its name in the file
 * @param type the element type as the file calls it, such as {@code F8_E4M3} or {@code IQ2_XXS}
 * @param shape outermost axis first
 * @param bytes its size in the file
 */
public record UnsupportedTensor(String name, String type, List<Long> shape, long bytes) {
  /** Copies the shape. */
  public UnsupportedTensor {
    shape = List.copyOf(shape);
  }
}
