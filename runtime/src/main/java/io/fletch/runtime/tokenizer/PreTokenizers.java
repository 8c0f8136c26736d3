package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * Pre-tokenizers of known models by their name in {@code tokenizer.ggml.pre}. The patterns are
 * those of the models' own tokenizer.json.
 */
final class PreTokenizers {
  static final String GPT2 =
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

  private static final String CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
  private static final String WORD = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
  private static final String SYMBOLS = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*";
  private static final String SPACES = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

  private static final String LLAMA3 =
      CONTRACTIONS + "|" + WORD + "|\\p{N}{1,3}|" + SYMBOLS + "|" + SPACES;
  private static final String QWEN2 =
      CONTRACTIONS + "|" + WORD + "|\\p{N}|" + SYMBOLS + "|" + SPACES;
  private static final String QWEN35 =
      CONTRACTIONS
          + "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
          + "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|"
          + SPACES;
  private static final String BAILING =
      "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}"
          + "| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+";
  private static final String SEED_CODER =
      CONTRACTIONS + "|" + WORD + "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" + SPACES;
  private static final String CASCADED_SPACES =
      CONTRACTIONS
          + "|"
          + WORD
          + "|\\p{N}{1,3}|"
          + SYMBOLS
          + "|\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)|\\s{64}(?!\\S)"
          + "|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|\\s{1}";
  private static final String EXAONE_MOE =
      CONTRACTIONS
          + "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}"
          + "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+";

  private static final String UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
  private static final String LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
  private static final String SLASHED_SYMBOLS = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*";
  private static final String TEKKEN = cased("") + "|\\p{N}|" + SLASHED_SYMBOLS + "|" + SPACES;
  private static final String GPT4O =
      cased(CONTRACTIONS + "?") + "|\\p{N}{1,3}|" + SLASHED_SYMBOLS + "|" + SPACES;
  private static final String YOUTU =
      cased(CONTRACTIONS + "?") + "|\\p{N}|" + SLASHED_SYMBOLS + "|" + SPACES;

  private static final String DEEPSEEK3 =
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
          + "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
          + SPACES;

  /** Cased letters of living scripts as DeepSeek's first tokenizer lists them. */
  private static final String DEEPSEEK_LETTERS =
      "\\s?[A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}"
          + "\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}"
          + "\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}"
          + "\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}"
          + "\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}"
          + "\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}"
          + "\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}"
          + "\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}"
          + "\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}"
          + "\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}"
          + "\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}"
          + "\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}"
          + "\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"
          + "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}"
          + "\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}"
          + "\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}"
          + "\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}"
          + "\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"
          + "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}"
          + "\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}"
          + "\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}"
          + "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}"
          + "\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}]+";

  private static final String BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+";

  private PreTokenizers() {}

  private static String cased(String suffix) {
    return "[^\\r\\n\\p{L}\\p{N}]?"
        + (UPPER + "*" + LOWER + "+" + suffix)
        + ("|[^\\r\\n\\p{L}\\p{N}]?" + UPPER + "+" + LOWER + "*" + suffix);
  }

  /**
   * The pre-tokenizer of a name.
   *
   * @throws FletchException for a name that is not known; a wrong guess would give a model text
   *     that it was not trained on
   */
  static PreTokenizer named(String pre) {
    return switch (pre) {
      case "default" -> steps("[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]");
      case "llama3",
          "llama-v3",
          "llama-bpe",
          "falcon3",
          "falcon-h1",
          "pixtral",
          "midm-2.0",
          "lfm2",
          "jina-v5-nano",
          "dbrx",
          "smaug-bpe",
          "glm4",
          "chatglm-bpe",
          "llada" ->
          steps(LLAMA3);
      case "jais-2" -> steps(CASCADED_SPACES);
      case "qwen2",
          "deepseek-r1-qwen",
          "kormo",
          "f2llmv2",
          "megrez",
          "dream",
          "stablelm2",
          "hunyuan",
          "solar-open",
          "grok-2" ->
          steps(QWEN2);
      case "qwen35" -> steps(QWEN35);
      case "deepseek-llm" ->
          PreTokenizer.sequence(
              List.of(
                  PreTokenizer.isolate("[\r\n]"),
                  PreTokenizer.isolate(DEEPSEEK_LETTERS),
                  PreTokenizer.isolate("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                  PreTokenizer.trailingSpace(),
                  PreTokenizer.isolate("[一-龥ࠀ-一가-퟿]+"),
                  PreTokenizer.isolate("\\p{N}+")));
      case "deepseek-coder" ->
          steps("[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", "\\p{N}");
      case "deepseek-v3", "step35", "hunyuan-dense", "joyai-llm" ->
          steps("\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3);
      case "youtu" -> steps("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU);
      case "falcon" -> steps("[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]");
      case "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b" ->
          steps("\\p{N}", GPT2);
      case "gpt-2",
          "phi-2",
          "jina-es",
          "jina-de",
          "jina-v1-en",
          "jina-v2-es",
          "jina-v2-de",
          "jina-v2-code",
          "roberta-bpe",
          "gigachat",
          "a.x-4.0",
          "mellum",
          "modern-bert",
          "mpt",
          "olmo",
          "jais",
          "trillion",
          "granite-docling",
          "exaone4" ->
          steps(GPT2);
      case "poro-chat", "bloom", "gpt3-finnish" -> steps(BLOOM);
      case "viking" -> steps(BLOOM, "\\p{N}");
      case "tekken" -> steps(TEKKEN);
      case "gpt-4o", "llama4", "kanana2", "minimax-m2" -> steps(GPT4O);
      case "tiny_aya" ->
          PreTokenizer.sequence(
              List.of(PreTokenizer.digitGroups(true), PreTokenizer.isolate(GPT4O)));
      case "superbpe" ->
          PreTokenizer.sequence(
              List.of(PreTokenizer.isolate("\\p{N}+"), PreTokenizer.digitGroups(false)));
      case "bailingmoe", "bailingmoe2", "llada-moe" -> steps(BAILING);
      case "seed-coder" -> steps(SEED_CODER);
      case "exaone-moe" -> steps(EXAONE_MOE);
      case "chameleon" ->
          steps(
              "<sentinel:[0-9]+>",
              "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
              "([\\t\\n]|    |  )",
              "\\p{N}",
              "[\\p{P}!-/:-@\\[-`{-~]",
              GPT2);
      default ->
          throw new FletchException(
              "tokenizer.ggml.pre: unknown pre-tokenizer '"
                  + pre
                  + "'; convert the model again with a known one, or use its tokenizer.json");
    };
  }

  /** Whether a whole piece that is a token is taken without looking at the merges. */
  static boolean ignoresMerges(String pre) {
    return switch (pre) {
      case "llama3",
          "llama-v3",
          "llama-bpe",
          "falcon3",
          "falcon-h1",
          "pixtral",
          "midm-2.0",
          "lfm2",
          "jina-v5-nano",
          "llada",
          "youtu",
          "tekken" ->
          true;
      default -> false;
    };
  }

  /** Whether the beginning token is added when the file does not say. */
  static boolean addsBos(String pre) {
    return switch (pre) {
      case "youtu", "llada" -> false;
      case "chameleon" -> true;
      default -> ignoresMerges(pre);
    };
  }

  private static PreTokenizer steps(String... regexes) {
    List<PreTokenizer> steps = new ArrayList<>();
    for (String regex : regexes) {
      steps.add(PreTokenizer.isolate(regex));
    }
    return steps.size() == 1 ? steps.getFirst() : PreTokenizer.sequence(steps);
  }

  /** A hand-written step for a pattern that needs more than one character of look-ahead. */
  static Optional<PreTokenizer> known(String regex) {
    return switch (regex) {
      case "\\s+$" -> Optional.of(PreTokenizer.trailingSpace());
      case "(?=(\\d{3})+(?!\\d))" -> Optional.of(PreTokenizer.digitGroups(false));
      case "\\d{1,3}(?=(?:\\d{3})*\\b)" -> Optional.of(PreTokenizer.digitGroups(true));
      default -> Optional.empty();
    };
  }
}
