package io.fletch.runtime.engine;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.Pooling;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * What sentence-transformers keeps beside a checkpoint: {@code modules.json}, the settings of its
 * pooling, and {@code sentence_bert_config.json}. A module that changes the vectors and is not
 * supported is an error.
 *
 * @param pooling how the hidden states of a text become its vector
 * @param maxTokens most tokens of a text; 0 if nothing says so
 */
public record SentenceSettings(Optional<Pooling> pooling, int maxTokens) {
  /** Nothing is said. */
  static final SentenceSettings NONE = new SentenceSettings(Optional.empty(), 0);

  private static final String MODES = "pooling_mode_";

  /** Whether there are any. */
  boolean isEmbedding() {
    return pooling.isPresent();
  }

  /**
   * Reads the settings of a folder.
   *
   * @throws FletchException if they are damaged or not supported
   */
  public static SentenceSettings read(Path folder) {
    Path modules = folder.resolve("modules.json");
    Path pooling = folder.resolve("1_Pooling/config.json");
    if (Files.isRegularFile(modules)) {
      for (Object entry : list(modules)) {
        if (!(entry instanceof Map<?, ?> module) || !(module.get("type") instanceof String type)) {
          throw new FletchException(modules + ": expected=a list of modules with types");
        }
        String kind = type.substring(type.lastIndexOf('.') + 1);
        switch (kind) {
          // Vectors are normalised by an option, on unless asked otherwise.
          case "Transformer", "Normalize" -> {}
          case "Pooling" ->
              pooling = inside(folder, String.valueOf(module.get("path"))).resolve("config.json");
          default -> throw new FletchException(modules + ": module not supported: " + type);
        }
      }
    }
    return new SentenceSettings(
        Files.isRegularFile(pooling) ? Optional.of(mode(pooling)) : Optional.empty(),
        maxTokens(folder.resolve("sentence_bert_config.json")));
  }

  private static Path inside(Path folder, String name) {
    Path path = folder.resolve(name).normalize();
    if (!path.startsWith(folder.normalize())) {
      throw new FletchException(
          folder.resolve("modules.json") + ": path outside the model: " + name);
    }
    return path;
  }

  private static Pooling mode(Path file) {
    Map<String, Object> config = object(file);
    List<String> modes = new ArrayList<>();
    if (config.get("pooling_mode") instanceof String mode) {
      modes.add(mode);
    }
    config.forEach((key, value) -> {
      if (key.startsWith(MODES) && Boolean.TRUE.equals(value)) {
        modes.add(key.substring(MODES.length()).replaceFirst("_tokens?$", ""));
      }
    });
    if (Boolean.FALSE.equals(config.get("include_prompt"))) {
      throw new FletchException(file + ": include_prompt: not supported: false");
    }
    if (modes.size() != 1) {
      throw new FletchException(file + ": pooling: expected=one mode actual=" + modes);
    }
    return switch (modes.getFirst()) {
      case "mean" -> Pooling.MEAN;
      case "cls" -> Pooling.CLS;
      case "lasttoken" -> Pooling.LAST;
      default -> throw new FletchException(file + ": pooling not supported: " + modes.getFirst());
    };
  }

  private static int maxTokens(Path file) {
    if (!Files.isRegularFile(file)) {
      return 0;
    }
    Object value = object(file).get("max_seq_length");
    if (value == null) {
      return 0;
    }
    if (!(value instanceof Integer n) || n < 1) {
      throw new FletchException(file + ": max_seq_length: expected=a whole number >= 1");
    }
    return n;
  }

  private static Map<String, Object> object(Path file) {
    try {
      return JSON.std.mapFrom(Files.readAllBytes(file));
    } catch (com.fasterxml.jackson.core.JacksonException e) {
      throw new FletchException(file + ": not a JSON object: " + e.getOriginalMessage(), e);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static List<Object> list(Path file) {
    try {
      return JSON.std.listFrom(Files.readAllBytes(file));
    } catch (com.fasterxml.jackson.core.JacksonException e) {
      throw new FletchException(file + ": not a JSON list: " + e.getOriginalMessage(), e);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
