package io.fletch.tools;

import io.fletch.quant.QuantMix;
import io.fletch.quant.TensorCopy;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.convert.ModelConversion;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** {@code fletch convert}: the same weights in another container. */
final class ConvertCommand implements Command {
  /** Element types that both containers have. */
  enum Type {
    F32,
    F16,
    BF16
  }

  @Override
  public String usage() {
    return "--model IN -o OUT [--type f16] [--sparse KIND]";
  }

  @Override
  public String description() {
    return """
    Writes a model as GGUF, as a Fletch Arrow file, or as a folder with model.safetensors,
    config.json and tokenizer.json. Values are copied bit for bit where the type stays the same.
    Quantized blocks become F16 in safetensors. Between the containers go llama, qwen2
    and qwen3 with byte-level BPE tokenizers; everything else is refused. Sparse and factorised
    matrices become dense in GGUF and safetensors, and take another form with --sparse.\
    """;
  }

  @Override
  public List<Section> sections() {
    List<org.apache.commons.cli.Option> what =
        new ArrayList<>(
            List.of(
                ModelOutput.option(),
                Command.value("type", "T", "f32, f16 or bf16 for matrices (default: as they are)"),
                Command.value(
                    "shard-size",
                    "MB",
                    "cut NAME.gguf or NAME.arrow into NAME-00001-of-0000N with at most so many"
                        + " megabytes of tensors each"),
                Command.flag("json", "print one JSON object")));
    what.addAll(SparseRequest.options());
    return List.of(new Section("What to write", what), ModelFlags.fileSection());
  }

  @Override
  public List<String> examples() {
    return List.of(
        "fletch convert --model Qwen3-0.6B -o qwen3-0.6b.gguf",
        "fletch convert --model demo -o demo-folder --type f16",
        "fletch convert --model pruned.gguf -o sparse.arrow --sparse auto");
  }

  @Override
  public int run(Arguments arguments, Io io) throws IOException {
    arguments.checkNoRest();
    Path output = Path.of(arguments.required("output"));
    Optional<TensorType> wanted =
        arguments.has("type")
            ? Optional.of(TensorType.valueOf(arguments.choice("type", Type.F16).name()))
            : Optional.empty();
    WeightFile.Format to = ModelOutput.format(output);
    Optional<SparseRequest> sparse = SparseRequest.of(arguments, output);
    long shard = arguments.whole("shard-size", 0, 1, 1 << 24);
    if (shard > 0 && to == WeightFile.Format.SAFETENSORS) {
      throw new UsageException("--shard-size: expected=NAME.gguf or NAME.arrow actual=" + output);
    }
    Map<String, Integer> kinds;
    long bytes;
    int count;
    try (WeightFile input = WeightFile.open(ModelFlags.path(arguments));
        DenseCopy dense =
            DenseCopy.of(
                input,
                output,
                to != input.format() || sparse.isPresent(),
                sparse.isPresent() || wanted.filter(t -> t == TensorType.F32).isPresent());
        TensorStore derived = TensorStore.create()) {
      WeightFile file = dense.file();
      ModelOutput.View view = ModelOutput.View.of(file, to, derived);
      view.notes().forEach(note -> io.note("fletch: " + note));
      try (ModelOutput out =
          new ModelOutput(
              output, input, List.of(), "convert " + to + " " + wanted + " " + sparse)) {
        if (shard > 0) {
          out.shards(shard * 1_000_000);
        }
        List<TensorCopy> tensors = view.tensors();
        count = tensors.size();
        try (Progress _ =
            Progress.show(io, () -> ModelOutput.line("converting", out.done(), tensors.size()))) {
          for (TensorCopy tensor : tensors) {
            TensorType type =
                wanted.isPresent() && QuantMix.takesPart(tensor.name(), tensor.shape())
                    ? wanted.get()
                    : dense.isDecoded(tensor.name())
                        ? TensorType.F16
                        : ModelConversion.defaultType(tensor, to);
            if (sparse.isPresent() && SparseRequest.takesPart(tensor)) {
              out.add(tensor, sparse.get(), type);
              continue;
            }
            out.add(tensor.name(), type, tensor.shape(), tensor.as(type, null));
          }
        }
        bytes = out.bytes();
        kinds = out.kinds();
        if (view.gguf() != null && wanted.isPresent()) {
          view.gguf().put("general.file_type", QuantMix.valueOf(wanted.get().name()).fileType());
        }
        out.write(view);
      }
    }
    if (arguments.has("json")) {
      io.println(
          Json.line(
              Map.of(
                  "output",
                  output.toString(),
                  "format",
                  to.name(),
                  "tensors",
                  count,
                  "bytes",
                  bytes,
                  "matrices",
                  kinds)));
    } else {
      io.printf(
          "%s  %s, %d tensors, %s%s",
          output, to, count, Texts.bytes(bytes), kinds.isEmpty() ? "" : ", " + kinds);
    }
    return Cli.OK;
  }
}
