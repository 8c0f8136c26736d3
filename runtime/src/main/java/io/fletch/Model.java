package io.fletch;

import io.fletch.sampling.DiffusionModel;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * An open model: immutable, shared between threads. It owns weights, kernels and worker threads
 * until it is closed; its sessions must be closed before it. Sessions that generate at the same
 * time on several threads share forward passes, see {@link Session}.
 */
public interface Model extends AutoCloseable {
  /**
   * Opens a model file or folder: GGUF, or safetensors with config.json and tokenizer.json.
   *
   * @throws FletchException if it cannot be run
   * @throws java.io.UncheckedIOException if reading fails
   */
  static Model open(Path path) {
    return open(path, ModelOptions.defaults());
  }

  /**
   * Opens a model file or folder with options.
   *
   * @throws FletchException if it cannot be run, or not as the options say
   * @throws java.io.UncheckedIOException if reading fails
   */
  static Model open(Path path, ModelOptions options) {
    return Models.open(path, options);
  }

  /**
   * Opens an embedded demo model by name: {@code demo}, {@code demo-small}, {@code demo-diffusion}.
   * They are in the jar of the command line ({@code fletch-tools}), not in that of the library.
   *
   * @throws FletchException as {@link #demoFile}
   */
  static Model demo(String name, ModelOptions options) {
    return Models.demo(name, options);
  }

  /**
   * The file of an embedded demo model, extracted into the cache folder if it is not there yet.
   *
   * @throws FletchException if there is no model of that name, or the jar that holds it is missing
   */
  static Path demoFile(String name) {
    return Models.demoFile(name);
  }

  /** Name for people: that of the file or folder. */
  String name();

  /** What it is made of. Still there when the model is closed. */
  Info info();

  /**
   * What decoding must know of a diffusion model, for {@code DiffusionPresets} and {@code
   * DiffusionTechnique}; empty for an autoregressive model.
   */
  Optional<DiffusionModel> diffusion();

  /** The tokenizer. */
  Tokenizer tokenizer();

  /**
   * Renders messages with the model's chat template. Encode the text with {@code encode(text,
   * false, true)}: it has the beginning token and the special tokens in it.
   *
   * @param addGenerationPrompt end with the start of an assistant turn
   * @param variables further template variables, for example {@code tools}
   * @throws FletchException if there is no template, or it refuses the messages
   */
  String chatPrompt(
      List<Message> messages, boolean addGenerationPrompt, Map<String, Object> variables);

  /** How the model calls tools, as its chat template says; empty if that knows no tools. */
  Optional<ToolCallFormat> toolCallFormat();

  /**
   * Registers a low-rank adapter, over whatever the weights are stored as; sessions may list it
   * from then on. A PEFT folder or a GGUF file with {@code adapter.type = "lora"}, for a model of
   * any format. May be called at any time, while sessions generate too.
   *
   * @throws FletchException if it is of a kind that is not supported, or not for this model
   * @throws java.io.UncheckedIOException if reading fails
   */
  Adapter adapter(Path path);

  /** The adapters that are registered and open, in the order of their ids. */
  List<Adapter> adapters();

  /**
   * Checks a prompt and options as {@link Session#generate(int[], GenerationOptions)} does, for
   * those who want to refuse a request before there is a session for it. Whether a small model or a
   * guide has the same tokens is left to the session. Thread-safe; runs nothing, but a grammar is
   * prepared for the vocabulary and kept.
   *
   * @param prompt token ids
   * @throws FletchException if the prompt does not fit, or the model cannot do what the options say
   * @throws IllegalArgumentException if a token id is none of the model's
   */
  void check(int[] prompt, GenerationOptions options);

  /**
   * Bytes of keys and values that a session keeps per token, in all layers: what a session of n
   * tokens takes is n times this, and buffers that do not grow with it. Depends on {@link
   * ModelOptions#kvType}.
   */
  long kvBytesPerToken();

  /**
   * Makes a session for up to {@link Info#contextLength} tokens. Its memory is reserved here and
   * taken as tokens come ({@link #kvBytesPerToken}).
   *
   * @throws IllegalStateException if the model is closed
   * @throws FletchException if a GPU has too little memory
   */
  Session newSession();

  /** One line: backend, kernels, threads, and why. */
  String backendDescription();

  /** The execution plans as a table: for every row bucket its steps, kernels, buffers and bytes. */
  String plan();

  /**
   * Measures the kernels of a decode step, each by itself: their sum is more than a step takes.
   * Empty for backends other than a GPU. Other work on the model waits meanwhile.
   *
   * @param context tokens that the step sees, itself included, from 1 to {@link Info#contextLength}
   * @return one entry per kernel, the slowest first
   * @throws FletchException if the device fails or has too little memory for the context
   */
  List<KernelTime> kernelTimes(int context);

  /**
   * What one kernel takes in a decode step.
   *
   * @param kernel its name in {@link #plan}
   * @param launches launches per step
   * @param micros microseconds of all of them
   * @param weightBytes bytes of weights that they read
   */
  record KernelTime(String kernel, int launches, double micros, long weightBytes) {}

  /**
   * Releases the weights. Closing a closed model does nothing.
   *
   * @throws IllegalStateException if sessions are open; the model stays open then
   */
  @Override
  void close();

  /**
   * What a model is made of.
   *
   * @param architecture for example {@code llama}
   * @param decoding {@code autoregressive} or {@code diffusion}
   * @param contextLength most tokens of a session
   * @param vocabularySize rows of the output matrix
   * @param layers blocks
   * @param embeddingLength width of the residual stream
   * @param parameters number of weights
   * @param weightBytes bytes of all tensors
   * @param bytesPerToken bytes of weights read to decode one token
   * @param mainType the most common weight type, for example {@code Q8_0}
   */
  record Info(
      String architecture,
      String decoding,
      int contextLength,
      int vocabularySize,
      int layers,
      int embeddingLength,
      long parameters,
      long weightBytes,
      long bytesPerToken,
      String mainType) {}
}
