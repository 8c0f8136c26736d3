package io.fletch.quant;

import com.fasterxml.jackson.core.JsonToken;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeSet;

/**
 * Opens safetensors models: a file, the shards named by an index, or a folder that holds either
 * beside a {@code config.json} (specs weights 1.4).
 *
 * <p>The index maps each tensor to the file that holds it. It is believed only where the files
 * agree: a file holds exactly the tensors that are mapped to it. Its {@code total_size} is not
 * used, since tied tensors make it wrong in honest files.
 */
final class SafetensorsFiles {
  static final String SINGLE = "model.safetensors";
  static final String INDEX = "model.safetensors.index.json";
  static final String CONFIG = "config.json";
  static final String INDEX_SUFFIX = ".safetensors.index.json";
  private static final String FILE_METADATA = "__metadata__.";
  private static final int MAX_CONFIG_BYTES = 16 << 20;

  private SafetensorsFiles() {}

  /** Opens a folder with {@code config.json} and {@code model.safetensors[.index.json]}. */
  static WeightFile openFolder(Path folder) {
    if (!Files.exists(folder.resolve(CONFIG))) {
      throw Json.fail(folder, CONFIG, "present", "absent");
    }
    if (Files.exists(folder.resolve(SINGLE))) {
      return open(folder, folder.resolve(SINGLE), null);
    }
    if (Files.exists(folder.resolve(INDEX))) {
      return open(folder, null, folder.resolve(INDEX));
    }
    throw Json.fail(folder, "weights", SINGLE + " or " + INDEX, "neither");
  }

  /** Opens a single file; a {@code config.json} beside it gives the metadata. */
  static WeightFile openFile(Path file) {
    return open(file, file, null);
  }

  /** Opens the shards of an index; a {@code config.json} beside it gives the metadata. */
  static WeightFile openIndex(Path index) {
    return open(index, null, index);
  }

  private static WeightFile open(Path path, Path single, Path index) {
    try (MappedWeights.Builder builder = new MappedWeights.Builder()) {
      Path some = single != null ? single : index;
      Path config = some.resolveSibling(CONFIG);
      Map<String, Object> entries =
          Files.exists(config)
              ? Json.flatten(config, Json.bytes(config, MAX_CONFIG_BYTES))
              : new LinkedHashMap<>();
      if (single != null) {
        addFile(builder, single, entries, null);
      } else {
        addShards(builder, index, entries);
      }
      return builder.build(WeightFile.Format.SAFETENSORS, path, new JsonMetadata(config, entries));
    }
  }

  private static void addShards(
      MappedWeights.Builder builder, Path index, Map<String, Object> entries) {
    Map<String, String> map = weightMap(index);
    for (String name : new TreeSet<>(map.values())) {
      if (name.isEmpty() || name.contains("/") || name.contains("\\") || name.contains("..")) {
        throw Json.fail(index, "file name", "one without path", name);
      }
      Path file = index.resolveSibling(name);
      if (!Files.exists(file)) {
        throw Json.fail(index, "file " + name, "present", "absent");
      }
      addFile(builder, file, entries, map);
    }
    if (builder.size() != map.size()) {
      String missing =
          map.keySet().stream().filter(t -> !builder.contains(t)).findFirst().orElseThrow();
      throw Json.fail(index, "tensor " + missing, "in " + map.get(missing), "absent");
    }
  }

  private static void addFile(
      MappedWeights.Builder builder,
      Path file,
      Map<String, Object> entries,
      Map<String, String> map) {
    MappedWeights.Shard shard = builder.map(file);
    SafetensorsReader.Header header = SafetensorsReader.read(file, shard.segment());
    header.metadata().forEach((key, value) -> entries.putIfAbsent(FILE_METADATA + key, value));
    String fileName = file.getFileName().toString();
    for (SafetensorsReader.Info t : header.tensors()) {
      if (map != null && !fileName.equals(map.get(t.name()))) {
        throw Json.fail(
            file, "tensor " + t.name() + ": file in the index", fileName, map.get(t.name()));
      }
      builder.add(shard, t.name(), t.type(), t.typeName(), t.shape(), t.start(), t.bytes());
    }
  }

  private static Map<String, String> weightMap(Path index) {
    Map<String, String> result = new HashMap<>();
    boolean[] found = {false};
    Json.object(
        index,
        Json.bytes(index, SafetensorsReader.MAX_HEADER_BYTES),
        p -> {
          while (p.nextToken() != JsonToken.END_OBJECT) {
            String key = p.currentName();
            JsonToken token = p.nextToken();
            if (!key.equals("weight_map")) {
              p.skipChildren();
              continue;
            }
            found[0] = true;
            if (token != JsonToken.START_OBJECT) {
              throw Json.fail(index, "weight_map", "an object", token);
            }
            while (p.nextToken() != JsonToken.END_OBJECT) {
              String tensor = p.currentName();
              if (p.nextToken() != JsonToken.VALUE_STRING) {
                throw Json.fail(index, "file of " + tensor, "a string", p.currentToken());
              }
              result.put(tensor, p.getText());
            }
          }
          return null;
        });
    if (!found[0]) {
      throw Json.fail(index, "weight_map", "present", "absent");
    }
    return result;
  }
}
