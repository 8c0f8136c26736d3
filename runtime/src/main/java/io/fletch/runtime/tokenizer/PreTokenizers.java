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
      "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
          + "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
          + "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

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
