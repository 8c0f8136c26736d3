package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.ModelOptions;
import java.util.List;
import org.junit.jupiter.api.Test;

class ArgumentsTest {
  private static Arguments parse(String... args) {
    return Arguments.parse(
        List.of(
            new Command.Section(
                "Test",
                List.of(
                    Command.value("n", "number", "N", "a number"),
                    Command.value("text", "T", "a text"),
                    Command.value("kernels", "NAME", "a choice"),
                    Command.flag("switch", "a switch")))),
        List.of(args));
  }

  @Test
  void lastOneCountsAndAllCanBeHad() {
    Arguments arguments = parse("--text", "a", "--text=b", "-n", "1", "--number", "2");
    assertEquals("b", arguments.required("text"));
    assertEquals(List.of("a", "b"), arguments.strings("text"));
    assertEquals(2, arguments.integer("number", 0, 0, 9));
  }

  @Test
  void valuesAreTakenAsTheyAre() {
    assertEquals("\"quoted\"", parse("--text", "\"quoted\"").required("text"));
    assertEquals("", parse("--text=").required("text"));
    assertEquals("a=b c", parse("--text=a=b c").required("text"));
    assertEquals(-7, parse("--number", "-7").whole("number", 0, Long.MIN_VALUE, Long.MAX_VALUE));
    assertEquals(
        Long.MIN_VALUE,
        parse("--number=-9223372036854775808").whole("number", 0, Long.MIN_VALUE, Long.MAX_VALUE));
  }

  @Test
  void whatIsNotAnOptionIsTheRest() {
    assertEquals(List.of("a", "b"), parse("a", "--switch", "b").rest());
    assertEquals(List.of("--switch"), parse("--", "--switch").rest());
    assertThrows(UsageException.class, () -> parse("a").checkNoRest());
  }

  @Test
  void rangesHold() {
    assertEquals(5, parse("-n", "5").integer("number", 0, 5, 5));
    for (String wrong : List.of("4", "6", "", "5.0", "five", "99999999999999999999")) {
      assertThrows(
          UsageException.class, () -> parse("-n", wrong).integer("number", 0, 5, 5), wrong);
    }
    assertEquals(0.5f, parse("-n", "0.5").real("number", 0, 0, 1));
    for (String wrong : List.of("-0.1", "1.1", "NaN", "Infinity", "x")) {
      assertThrows(UsageException.class, () -> parse("-n", wrong).real("number", 0, 0, 1), wrong);
    }
    assertEquals(3, parse().integer("number", 3, 5, 5));
  }

  @Test
  void choicesAreLowerCaseNames() {
    ModelOptions.Kernels auto = ModelOptions.Kernels.AUTO;
    assertEquals(ModelOptions.Kernels.NATIVE, parse("--kernels", "native").choice("kernels", auto));
    assertEquals(auto, parse().choice("kernels", auto));
    assertThrows(UsageException.class, () -> parse("--kernels", "NATIVE").choice("kernels", auto));
  }

  @Test
  void modelOptionsReachTheModel() {
    Arguments arguments =
        Arguments.parse(
            List.of(ModelFlags.section()),
            List.of(
                ("--threads 3 --backend reference --kernels scalar --weights mapped --kv q8_0"
                        + " --ctx 99 --pack-cache /x --verify-pack-cache")
                    .split(" ")));
    assertEquals(
        ModelOptions.defaults()
            .withThreads(3)
            .withBackend(ModelOptions.Backend.REFERENCE)
            .withKernels(ModelOptions.Kernels.SCALAR)
            .withWeights(ModelOptions.Weights.MAPPED)
            .withKvType(ModelOptions.KvType.Q8_0)
            .withContextLength(99)
            .withPackCache(ModelOptions.PackCache.in(java.nio.file.Path.of("/x")).verified()),
        ModelFlags.options(arguments));
    assertEquals("demo", ModelFlags.name(arguments));
  }

  @Test
  void samplingOptionsReachTheSampler() {
    Arguments arguments =
        Arguments.parse(
            List.of(SamplingFlags.section()),
            List.of(
                ("--temp 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --repeat-penalty 1.1"
                        + " --frequency-penalty 0.2 --presence-penalty 0.3 --repeat-last-n 5"
                        + " --logit-bias 4=-inf --logit-bias 5=1.5 --seed -9 --max-tokens 11"
                        + " --stop a --stop b --ignore-eos")
                    .split(" ")));
    io.fletch.GenerationOptions options = SamplingFlags.parse(arguments, true);
    assertEquals(
        new io.fletch.sampling.SamplingOptions(
            0.5f,
            7,
            0.9f,
            0.1f,
            1.1f,
            0.2f,
            0.3f,
            5,
            java.util.Map.of(4, Float.NEGATIVE_INFINITY, 5, 1.5f),
            -9),
        options.sampling());
    assertEquals(11, options.maxTokens());
    assertEquals(List.of("a", "b"), options.stopStrings());
    assertEquals(true, options.ignoreEnd());
  }

  @Test
  void demoModelsAreGreedyUnlessAsked() {
    Arguments none = Arguments.parse(List.of(SamplingFlags.section()), List.of());
    assertEquals(0f, SamplingFlags.parse(none, true).sampling().temperature());
    assertEquals(
        io.fletch.sampling.SamplingOptions.defaults().temperature(),
        SamplingFlags.parse(none, false).sampling().temperature());
    Arguments warm = Arguments.parse(List.of(SamplingFlags.section()), List.of("--temp", "0.7"));
    assertEquals(0.7f, SamplingFlags.parse(warm, true).sampling().temperature());
    assertEquals(
        io.fletch.sampling.SamplingOptions.defaults().topK(),
        SamplingFlags.parse(warm, true).sampling().topK());
  }
}
