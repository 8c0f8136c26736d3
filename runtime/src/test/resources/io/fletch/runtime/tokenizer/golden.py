"""Makes pretokenizers.json with the tokenizers library: pieces of texts by name of pre-tokenizer."""
import json, os, random
from tokenizers import pre_tokenizers, Regex

HERE = os.path.dirname(os.path.abspath(__file__))
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
I = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
W = r"[^\r\n\p{L}\p{N}]?"
U, L = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SYM = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
O200K = f"{W}{U}*{L}+{I}?|{W}{U}+{L}*{I}?|\\p{{N}}{{1,3}}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n/]*|{END}"
LETTERS = (
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}"
    r"\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}"
    r"\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}"
    r"\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}"
    r"\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}"
    r"\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}"
    r"\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}"
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}"
    r"\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}"
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}"
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}"
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}"
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}"
    r"\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}"
    r"\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}"
    r"\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}"
    r"\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}"
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}"
    r"\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}"
    r"\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+")
PATTERNS = {
    "gpt-2": [GPT2],
    "llama-bpe": [I + "|" + W + r"\p{L}+|\p{N}{1,3}|" + SYM + "|" + END],
    "qwen2": [I + "|" + W + r"\p{L}+|\p{N}|" + SYM + "|" + END],
    "qwen35": [I + "|" + W + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + END],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"],
    "deepseek-llm": ["[\r\n]", LETTERS, "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
                     "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}+"],
    "deepseek-v3": [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                    r"| ?[\p{P}\p{S}]+[\r\n]*|" + END],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "starcoder": [r"\p{N}", GPT2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "tekken": [f"{W}{U}*{L}+|{W}{U}+{L}*|\\p{{N}}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n/]*|{END}"],
    "gpt-4o": [O200K],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", O200K],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "bailingmoe": [r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    "seed-coder": [I + "|" + W + r"\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}" + "\r\n" + r"]+|" + END],
    "jais-2": [I + "|" + W + r"\p{L}+|\p{N}{1,3}|" + SYM + r"|\s*[\r\n]+|" + "|".join(
        r"\s{%d}(?!\S)" % (1 << k) for k in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"],
    "exaone-moe": [I + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
                   r"|\s*[\r\n]|\s+(?!\S)|\s+"],
    "bloom": [" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"],
    "chameleon": ["<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", r"\p{N}",
                  r"[\p{P}!-/:-@\[-`{-~]", GPT2],
}
TEXTS = [
    "Hello, y'all! I'VE seen it's 'D we'll they\u2019re 'llx 's", " leading", "trailing ", "  two  spaces   three", "tabs\t\tand\n\n\nlines\r\n \r\n x \n",
    "1234567 12 1 123 3.14159 1,000,000 \u0663\u0664\u0665 \u2167 \u00bd\u00b2 abc123def 007", "caf\u00e9 na\u00efve \u0130stanbul \u01c5 \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "\U0001f680\U0001f636\u200d\U0001f32b\ufe0f \u2705 e\u0301a\u0300 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22", "a_b-c.d/e\\f:g;h|i <html> {json: [1, 2]} @#$%^&*() ~`+=",
    "camelCase XMLHttpRequest ABCdef aBC A aB //x \n//y\n", "x\u00a0y\u3000z\u2028w\u0085v\u200bu", "!!!\n\n???\r\r...  !!", "    \n    indented\n\tcode();  // c\n",
    "\u00a7 \u20ac5 \u00b1 \u2211 \u221e \u00ab\u00bb \u201cq\u201d \u2014", "'", "' s", "''s", "", " ", "\n", "   ", "\u017f 's'\u017f K\u212a", "<sentinel:12> IMGIMGABZ IMGIMGABCDEZ",
    "Gr\u00f6\u00dfe \u0438 \u0436\u0438\u0437\u043d\u044c! \u039a\u03cc\u03c3\u03bc\u03b5 \u1f41 \u2124\u212a\u2126 ab  \n  ", " " * 20 + "x" + " " * 7, "12345678901234567890", "12345a 678 9012_ 1234", "a b c d \u0e01 e", "\u4e00\u4e8cabc\u4e09 12\u56db",
]
rng = random.Random(7)
ALPHABET = "aZ\u00e9\u4f60\u3042\u0301\u0939 '  \n\r\t.,!/-_19\u00bd\u0663\U0001f680\u00a0sStT(|"
TEXTS += ["".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 60))) for _ in range(80)]

result = {"texts": TEXTS, "pieces": {}}
for name, patterns in PATTERNS.items():
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns])
    result["pieces"][name] = [[piece for piece, _ in pre.pre_tokenize_str(text)] for text in TEXTS]
json.dump(result, open(os.path.join(HERE, "pretokenizers.json"), "w"), indent=None, separators=(",", ":"))
